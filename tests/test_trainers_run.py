import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from trainers_small import small
from trainers_worker import interrupted, shared

from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.export import load_model
from scrimp_trainers.recipe.recipe import load
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.run import train_repeat

TIMING = {"seconds", "images_per_second", "device_hours"}
SHORT = small(training__batch_size=32, training__kimg=2.5, sampler__steps=3)


def timeless(known):
    return [{name: value for name, value in line.to_entries().items() if name not in TIMING} for line in known]


def start_worker(*arguments: object) -> subprocess.Popen:
    script = Path(__file__).with_name("trainers_worker.py")
    return subprocess.Popen([sys.executable, str(script), *(str(argument) for argument in arguments)])


def tensors(folder):
    return {
        f"{file}/{name}": tensor.clone()  # it is mapped from the file
        for file in ("network", "ema", "optimizer")
        for name, tensor in load_file(folder / "checkpoint" / "last" / f"{file}.safetensors").items()
    }


@pytest.fixture(scope="module")
def finished(digits_dataset, tmp_path_factory):
    """A short repeat with two rungs, and the lines that it gave."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, list(train_repeat(SHORT, digits_dataset, folder, 5, rungs_kimg=[1.3, 2.5]))


def test_a_line_comes_at_every_tick_and_every_rung(finished):
    folder, heard = finished
    assert [line.images for line in heard] == [1024, 1312, 2016, 2528]  # the first steps at 1, 1.3, 2 and 2.5 kimg
    assert [line.rung for line in heard] == [None, 1.3, None, 2.5]
    assert metrics_log.read_rows(folder / "metrics.jsonl") == heard
    for line in heard:
        assert line.kimg == line.images / 1000
        assert line.step == line.images / 32
        assert 0.1 < line.loss < 3
        assert line.lr == pytest.approx(2e-3 * min(1, line.kimg / 2))
        assert line.images_per_second > 0
    assert [line.seconds for line in heard] == sorted(line.seconds for line in heard)


def test_a_rung_tells_what_it_cost(finished):
    _, heard = finished
    first, second = (line for line in heard if line.rung is not None)
    assert second.train_flops / first.train_flops == pytest.approx(2528 / 1312)
    assert first.value("parameters") == first.value("nonzero_parameters") > 10_000
    assert second.value("device_hours") == pytest.approx(second.seconds / 3600)
    assert second.seconds > first.seconds > 0


def test_a_repeat_leaves_its_files(finished):
    folder, _ = finished
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"recipe.yaml", "metrics.jsonl", "samples.png", "samples/1.3.png", "samples/2.5.png"} <= names
    assert {"model/unet/config.json", "checkpoint/last/state.json"} <= names
    assert not any("/." in name or name.startswith(".") for name in names)
    assert load(folder / "recipe.yaml") == SHORT
    with Image.open(folder / "samples.png") as image:
        assert image.size == (8 * 34 + 2, 8 * 34 + 2)


def test_the_model_is_the_average_of_the_last_checkpoint(finished):
    folder, _ = finished
    model, _ = load_model(folder / "model")
    saved = load_file(folder / "checkpoint" / "last" / "ema.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_a_finished_repeat_tells_its_rungs_again_and_trains_no_more(finished, digits_dataset):
    folder, heard = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = list(train_repeat(SHORT, digits_dataset, folder, 5, rungs_kimg=[1.3, 2.5]))
    assert again == [line for line in heard if line.rung is not None]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_seed_or_recipe_in_the_same_folder_is_refused(finished, digits_dataset):
    folder, _ = finished
    with pytest.raises(UserError, match="seed is 5 there and 6 here"):
        next(train_repeat(SHORT, digits_dataset, folder, 6, rungs_kimg=[2.5]))
    other = SHORT.replace({"optimizer.lr": 0.5})
    with pytest.raises(UserError, match=r"optimizer\.lr is 0\.002 there and 0\.5 here"):
        next(train_repeat(other, digits_dataset, folder, 5, rungs_kimg=[2.5]))


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(digits_dataset, tmp_path):
    """47 steps, against 36 steps, SIGKILL, and 15 steps from the checkpoint of step 32."""
    recipe = interrupted()
    whole = list(train_repeat(recipe, digits_dataset, tmp_path / "whole", 7, rungs_kimg=[3]))
    assert start_worker("killed", digits_dataset.folder, tmp_path / "killed").wait() == -9
    assert [line.step for line in metrics_log.read_rows(tmp_path / "killed" / "metrics.jsonl")] == [16, 32]
    assert (
        load_file(tmp_path / "killed" / "checkpoint" / "last" / "optimizer.safetensors")["step/unet.conv_in.weight"]
        == 32
    )
    rest = list(train_repeat(recipe, digits_dataset, tmp_path / "killed", 7, rungs_kimg=[3]))
    assert [line.step for line in rest] == [32, 47]

    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    resumed = metrics_log.read_rows(tmp_path / "killed" / "metrics.jsonl")
    assert timeless(resumed) == timeless(whole)
    assert [line.seconds for line in resumed] == sorted(line.seconds for line in resumed)
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "killed" / "samples.png").read_bytes()


def test_two_ranks_train_what_one_trains(digits_dataset, tmp_path):
    arguments = ("2", tmp_path / "meeting", digits_dataset.folder, tmp_path / "two")
    (tmp_path / "two").mkdir()
    ranks = [start_worker("rank", number, *arguments) for number in range(2)]
    heard = list(train_repeat(shared(), digits_dataset, tmp_path / "one", 7, rungs_kimg=[0.05]))
    assert [process.wait() for process in ranks] == [0, 0]

    told = [ast.literal_eval((tmp_path / "two" / f"rank-{number}.txt").read_text()) for number in range(2)]
    assert told[0] == told[1]  # every rank hears the same losses, and again when it has finished
    assert told[0][0] == told[0][1] == pytest.approx([line.loss for line in heard], rel=1e-5)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() <= 1e-4 * tensor.abs().max() + 1e-9, name


def test_what_fits_on_one_rank_is_taken_by_all_and_trains_what_one_rank_trains(digits_dataset, tmp_path):
    (tmp_path / "two").mkdir()
    arguments = (tmp_path / "meeting", digits_dataset.folder, tmp_path / "two")
    ranks = [start_worker("narrow", number, *arguments) for number in range(2)]
    list(train_repeat(shared(), digits_dataset, tmp_path / "one", 7, rungs_kimg=[0.05]))
    assert [process.wait() for process in ranks] == [0, 0]

    microbatches = [json.loads((tmp_path / "two" / f"rank-{number}.json").read_text()) for number in range(2)]
    assert microbatches[0] == microbatches[1]
    assert set(microbatches[0]) == {2}  # of eight images a rank
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() <= 1e-4 * tensor.abs().max() + 1e-9, name


def test_a_run_that_diverges_says_at_which_step(digits_dataset, tmp_path):
    recipe = SHORT.replace({"optimizer.lr": 1e30, "optimizer.warmup_kimg": 0})
    with pytest.raises(Diverged, match=r"step \d+: loss (is (nan|inf)|has exploded)"):
        list(train_repeat(recipe, digits_dataset, tmp_path, 5, rungs_kimg=[2.5]))
    assert not (tmp_path / "model").exists()


@pytest.fixture
def scores(monkeypatch):
    """Scores that a stand-in for the scorer gives, in turn."""
    values: list[float] = []

    class FakeScorer:
        def __init__(self, *arguments):
            pass

        def score(self, samples, classes, statistics, tokens):
            images = torch.cat(list(samples))
            assert len(images) == 20
            scores = {"fd": values.pop(0), "extractor": "classifier"}
            return type("Scores", (), {"values": scores, "samples": images[:4], "nearest": images[4:8]})()

    monkeypatch.setattr("scrimp_trainers.metrics.score.Scorer", FakeScorer)
    return values


def four_rungs(dataset, folder):
    recipe = small(training__batch_size=32, training__kimg=0.128, sampler__steps=1)
    scoring, rungs = Scoring(extractor="classifier", samples=20), [0.032, 0.064, 0.096]
    return list(train_repeat(recipe, dataset, folder, 5, rungs_kimg=rungs, scoring=scoring, objective="fd"))


def test_the_best_checkpoint_is_that_of_the_best_rung(digits_dataset, tmp_path, scores):
    scores += [3.0, 1.0, float("nan"), 2.0]
    rows = four_rungs(digits_dataset, tmp_path)
    heard = [(row.value("fd"), row.value("fd_best")) for row in rows if "fd_best" in row.scores]
    assert heard == [(3.0, 3.0), (1.0, 1.0), (2.0, 1.0)]
    best, last = (load_file(tmp_path / "checkpoint" / name / "optimizer.safetensors") for name in ("best", "last"))
    assert best["step/unet.conv_in.weight"] == 2
    assert last["step/unet.conv_in.weight"] == 4
    assert (tmp_path / "neighbours.png").exists()


@pytest.mark.parametrize(
    ("damaged", "resumes"),
    [
        (["last"], "training resumes from {}/previous at 0.096 kimg"),
        (["last", "previous"], "training resumes from {}/best at 0.064 kimg"),
        (["last", "previous", "best"], "training starts again"),
    ],
)
def test_a_run_with_damaged_checkpoints_ends_as_if_nothing_had_been(digits_dataset, tmp_path, scores, damaged, resumes):
    given = [3.0, 1.0, 5.0, 2.0]
    scores += given
    heard = four_rungs(digits_dataset, tmp_path)
    whole = tensors(tmp_path)
    for name in damaged:
        file = tmp_path / "checkpoint" / name / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    scores += given[{1: 3, 2: 2, 3: 0}[len(damaged)] :]
    damage = f"{tmp_path}/checkpoint/last: damaged, see optimizer.safetensors; "
    end = resumes.format(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match=f"^{re.escape(damage)}.*{re.escape(end)}$"):
        again = four_rungs(digits_dataset, tmp_path)
    assert not scores
    assert timeless(again) == timeless(heard)
    assert timeless(metrics_log.read_rows(tmp_path / "metrics.jsonl")) == timeless(heard)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors(tmp_path).items())


@pytest.fixture(scope="module")
def unscored(digits_dataset, tmp_path_factory):
    """A run as `scrimp train` does it, without scores: a checkpoint at each of its two rungs."""
    folder = tmp_path_factory.mktemp("unscored")
    list(train_repeat(UNSCORED, digits_dataset, folder, 5, rungs_kimg=[0.032, 0.064]))
    return folder


UNSCORED = small(training__batch_size=32, training__kimg=0.064, sampler__steps=1)
CHECKPOINT = ["SHA256SUMS", "state.json", "network.safetensors", "ema.safetensors", "optimizer.safetensors"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_flipped_bit_in_any_file_costs_one_checkpoint_and_leaves_the_sound_one(
    unscored, digits_dataset, tmp_path, name
):
    folder = shutil.copytree(unscored, tmp_path / "run")
    flip(folder / "checkpoint" / "last" / name)
    notes: list[str] = []
    list(train_repeat(UNSCORED, digits_dataset, folder, 5, rungs_kimg=[0.032, 0.064], say=notes.append))
    assert notes[0].startswith(f"{folder}/checkpoint/last: damaged, see ")
    assert notes[0].endswith(f"training resumes from {folder}/checkpoint/previous at 0.032 kimg")
    assert images(folder) == {"last": 64, "previous": 32}

    flip(folder / "checkpoint" / "last" / name)
    flip(folder / "checkpoint" / "previous" / name)
    list(train_repeat(UNSCORED, digits_dataset, folder, 5, rungs_kimg=[0.032, 0.064], say=notes.append))
    assert notes[1].endswith("training starts again")
    assert len(notes) == 2
    assert images(folder) == {"last": 64, "previous": 32}


def images(folder):
    checkpoints = (folder / "checkpoint").iterdir()
    return {path.name: json.loads((path / "state.json").read_text())["images"] for path in checkpoints}
