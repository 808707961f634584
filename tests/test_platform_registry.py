"""The winner of a sweep is a model that others load: by MLflow's registry, from its folder, without Scrimp."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from autoencoders_small import save_autoencoders
from drawings_small import recipe_of
from test_platform_race import finished, make_space
from test_trainers_export import MANIFEST, awake
from tracked_sweep import RUNGS, add_repeat, ended_sweep, sync_until_killed
from trainers_small import small
from without_scrimp import HIDDEN

from scrimp_platform import store, winner
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records
from scrimp_platform.search.records import Repeat
from scrimp_platform.store import SweepFolder
from scrimp_platform.tracking.mirror import Mirror
from scrimp_trainers.common import parts
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.export import export_model
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.recipe import Recipe


def with_model(where: Path, network: Any, recipe: Recipe, manifest: Manifest) -> SweepFolder:
    """A sweep that has ended, whose winner's typical repeat has this model."""
    folder = ended_sweep(where)
    add_repeat(folder, Repeat(0, 3, 16, "race", "finished"), rungs=RUNGS)  # of repeats 1, 2 and 3 it is the second
    files = folder.repeat(0, 2)
    for file in sorted(files.model.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    files.model.rmdir()
    export_model(files.model, network, recipe, manifest, {"fd_classifier": 1.25})
    files.recipe.write_text(recipe.to_yaml())
    conclude(folder)
    return folder


def conclude(folder: SweepFolder) -> list[str]:
    rows = leaderboard.rank(records.read_records(folder).trials, records.space_of(folder))
    return winner.write_models(folder, rows, records.space_of(folder))


@pytest.fixture
def pixels(tmp_path) -> SweepFolder:
    recipe = small("tiny-ddpm", sampler__steps=4)
    return with_model(tmp_path, awake(recipe), recipe, MANIFEST)


def name_of(folder: SweepFolder) -> str:
    return f"scrimp-data-{folder.path.name}"


def predict(uri: str, name: str, where: Path, before: str = HIDDEN) -> np.ndarray:
    """What the registered model draws in a process of its own, in which Scrimp cannot be imported."""
    code = f"""{before}
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/{name}@recommended")
images = model.predict(3)
assert numpy.array_equal(images, model.predict(3, params={{"seed": 0}}))
assert (images != model.predict(3, params={{"seed": 1}})).any()
numpy.save("images.npy", images)
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, cwd=where, env=environment, capture_output=True, text=True)
    return np.load(where / "images.npy")


def test_the_winners_model_is_registered_and_drawn_without_scrimp(uri, client, pixels, tmp_path):
    Mirror(pixels, uri).sync("complete")
    registered = client.get_registered_model(name_of(pixels))
    assert registered.aliases == {"recommended": "1", "best": "1"}
    version = client.get_model_version_by_alias(name_of(pixels), "best")
    verdict = leaderboard.verdict(
        leaderboard.rank(records.read_records(pixels).trials, records.space_of(pixels)), records.space_of(pixels)
    )
    assert version.description.startswith(verdict)
    assert version.tags["scrimp.repeat"] == "0.2"
    experiment = client.get_experiment_by_name(f"data-{pixels.path.name}")
    (logged,) = client.search_logged_models([experiment.experiment_id])
    assert str(logged.status) == "READY"
    (run,) = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{pixels.path.name}'")
    assert logged.source_run_id == run.info.run_id

    images = predict(uri, name_of(pixels), tmp_path)
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), np.uint8)
    assert images.std() > 5


def test_the_folder_is_a_pipeline_a_model_of_mlflow_and_a_page_of_the_hub(pixels):
    from diffusers import DiffusionPipeline

    model = pixels.models["recommended"]
    pipeline = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    assert type(pipeline).__name__ == "DDIMPipeline"
    card = (model / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "unknown"
    assert head["library_name"] == "diffusers"
    assert "![Samples](samples.png)" in card
    described = yaml.safe_load((model / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["model_code_path"] == "python_model.py"
    assert '"shape": [-1, 8, 8, 1]' in described["signature"]["outputs"]
    assert not [path for path in model.rglob("*") if path.suffix in (".pkl", ".bin", ".pt", ".ckpt")]
    assert "torch==" in (model / "requirements.txt").read_text()


def test_a_card_that_its_owner_has_changed_stays_until_another_model_wins(pixels):
    card = pixels.models["recommended"] / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: cc-by-4.0"))
    assert conclude(pixels) == []
    assert "license: cc-by-4.0" in card.read_text()
    export = pixels.repeat(0, 2).model / "README.md"
    export.write_text(export.read_text() + "\n")
    conclude(pixels)
    assert "license: unknown" in card.read_text()

    # Without the repeat's own model it stays; if another repeat is now the typical one, it goes.
    shutil.rmtree(pixels.repeat(0, 2).model)
    conclude(pixels)
    assert card.exists()
    add_repeat(pixels, Repeat(0, 4, 17, "race", "finished"), rungs=RUNGS)
    add_repeat(pixels, Repeat(0, 5, 18, "race", "finished"), rungs=RUNGS)
    shutil.rmtree(pixels.repeat(0, 3).model)
    conclude(pixels)
    assert not card.exists()


def test_a_kill_after_any_request_registers_a_model_once(uri, client, pixels, monkeypatch):
    Mirror(pixels, uri).sync()  # the runs
    for answers in range(1, 61, 7):
        if sync_until_killed(Mirror(pixels, uri), answers, monkeypatch):
            break
    Mirror(pixels, uri).sync("complete")
    (version,) = client.search_model_versions(f"name = '{name_of(pixels)}'")
    experiment = client.get_experiment_by_name(f"data-{pixels.path.name}")
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert client.get_registered_model(name_of(pixels)).aliases["recommended"] == version.version


def test_an_earlier_sweep_that_is_sent_again_does_not_take_the_aliases_back(uri, client, pixels, tmp_path):
    recipe = small("tiny-ddpm", sampler__steps=4)
    later = with_model(tmp_path / "later", awake(recipe), recipe, MANIFEST)
    for folder, ended in ((pixels, 1000.0), (later, 2000.0)):
        record = store.read_json(folder.description)
        record["dataset"]["name"] = f"shared-{pixels.path.name}"
        store.write_json(folder.description, record)
        store.write_json(folder.outcome, {"reason": "complete", "ended": ended})
    for folder in (pixels, later, pixels):
        Mirror(folder, uri).sync("complete")
    name = f"scrimp-shared-{pixels.path.name}"
    assert client.get_model_version_by_alias(name, "recommended").tags["scrimp.ended"] == "2000.000"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


def test_a_name_of_a_dataset_cannot_break_out_of_a_filter():
    assert winner.registered_name("cats ' or/1:2") == "scrimp-cats - or-1-2"


def test_the_recommended_and_the_best_model_may_be_two():
    space = make_space()
    best = finished(0, 9.0, 5.0, 5.2, 4.8, parameters=2e6)
    cheapest = finished(1, 9.0, 5.05, 5.25, 4.85, parameters=1e6)
    rows = leaderboard.rank([best, cheapest], space)
    numbers = {alias: row.number for alias, row in winner.winners(rows, space).items()}
    assert numbers == {"recommended": 1, "best": 0}


@pytest.mark.slow
def test_a_latent_model_is_drawn_without_scrimp_and_without_its_autoencoders_place(uri, tmp_path):
    save_autoencoders(tmp_path / "autoencoders")
    path = tmp_path / "autoencoders" / "kl"
    recipe = small("tiny-ddpm", sampler__steps=4, codec__kind="kl", codec__encoder=str(path), codec__decoder=str(path))
    network = build(recipe.network, image_size=8, channels=4)  # type: ignore[arg-type]
    manifest = MANIFEST.model_copy(update={"size": 64, "channels": 3})
    folder = with_model(tmp_path / "sweep", network, recipe, manifest)
    path.rename(tmp_path / "gone")
    Mirror(folder, uri).sync("complete")
    images = predict(uri, name_of(folder), tmp_path)
    assert (images.shape, images.dtype) == ((3, 64, 64, 3), np.uint8)


@pytest.mark.slow
def test_a_model_of_drawings_is_drawn_as_pictures_without_scrimp(uri, tmp_path):
    recipe = recipe_of()
    torch.manual_seed(1)
    network = parts.module("networks", "gru").build(
        recipe.network, image_size=30, channels=3, timesteps=50, form="delta"
    )
    network.tell_lengths([0] * 20 + [10] * 11)
    lengths = [0] * 20 + [10] * 11
    manifest = MANIFEST.model_copy(update={"modality": "strokes", "size": 30, "channels": 3, "lengths": lengths})
    folder = with_model(tmp_path, network, recipe, manifest)
    Mirror(folder, uri).sync("complete")
    images = predict(uri, name_of(folder), tmp_path)
    assert (images.shape, images.dtype) == ((3, 64, 64, 1), np.uint8)
    assert images.min() == 0


@pytest.mark.slow
def test_a_model_that_scrimp_alone_samples_says_so_in_one_line(uri, tmp_path):
    recipe = small("tiny-ddpm", sampler__steps=18)  # steps of a chain that diffusers does not take
    folder = with_model(tmp_path, awake(recipe), recipe, MANIFEST)
    Mirror(folder, uri).sync("complete")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        predict(uri, name_of(folder), tmp_path)
    assert refused.value.stderr.splitlines()[-1] == (
        "ImportError: diffusers has no code for this model, so Scrimp has to sample it: pip install scrimp"
    )
    assert predict(uri, name_of(folder), tmp_path, "").shape == (3, 8, 8, 1)
