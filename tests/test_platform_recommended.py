"""The recommended model of a sweep: who it is, and that the commands which a sweep's end prints do what they say."""

import shlex
import shutil
from pathlib import Path

import pytest
from made_up_sweep import make_space, write_sweep

from scrimp_platform import operations, recommended, store
from scrimp_platform.cli import main
from scrimp_platform.recommended import Recommended
from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder
from scrimp_platform.sweep import conclude
from scrimp_trainers.common import checksums, metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe

BUDGET = {"trials": 4, "rungs_kimg": [1, 2], "reduction": 2, "leaders": 2, "repeats": 3}
SMALL = {"network.channels": 16, "network.blocks": 1, "sampler.steps": 2}


@pytest.fixture(scope="module")
def sweep(digits_dataset, tmp_path_factory) -> SweepFolder:
    """A sweep with made-up scores, in whose recommended repeat a small network was really trained, if not for long."""
    from scrimp_trainers.run import train_repeat

    space = make_space(search={"optimizer.lr": {"loguniform": [5e-4, 1e-2]}}, override=SMALL, budget=BUDGET)
    folder = write_sweep(tmp_path_factory.mktemp("my runs") / "sweep", space)
    description = store.read_json(folder.description)
    description["dataset"]["folder"] = str(digits_dataset.folder)
    store.write_json(folder.description, description)

    chosen = recommended.find(folder)
    recipe = rewrite_recipe(chosen, {"training.kimg": 0.128})
    made_up = chosen.files.metrics.read_text()
    chosen.files.metrics.unlink()
    list(train_repeat(recipe, digits_dataset, chosen.files.path, chosen.seed, rungs_kimg=[0.128]))
    chosen.files.metrics.write_text(made_up)
    return folder


def rewrite_recipe(chosen: Recommended, changes: dict) -> Recipe:
    """Let the recommended repeat have been trained with another recipe."""
    recipe = recipes.read(chosen.files.recipe).replace(changes)
    chosen.files.recipe.write_text(recipe.to_yaml())
    record = store.read_json(chosen.files.record)
    store.write_json(chosen.files.record, record | {"recipe": checksums.text_checksum(recipe.to_yaml())})
    return recipe


def printed(folder: SweepFolder, capsys) -> dict[str, str]:
    """Return what the end of a sweep prints, by the word before it."""
    conclude(folder, records.space_of(folder), "complete")
    lines = capsys.readouterr().out.splitlines()
    return {line[:13].strip(): line[13:] for line in lines}


def run(command: str, capsys) -> str:
    main.main(shlex.split(command)[1:])
    return capsys.readouterr().out


def test_the_end_of_a_sweep_names_the_model_and_commands_that_sample_it_and_train_it_longer(
    sweep, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    end = printed(sweep, capsys)
    assert Path(end["its model"]) == recommended.find(sweep).files.model

    assert end["its model"] in run(end["sample it"], capsys)
    assert len(list(Path("sweep-samples").glob("*.png"))) == 64 + 1

    copy, _, train = end["train on"].partition(" && ")
    _, _, source, target = shlex.split(copy)
    shutil.copytree(source, target)
    Path(target, "metrics.jsonl").unlink()  # made up
    run(train, capsys)
    rows = metrics_log.read_rows(Path(target, "metrics.jsonl"))
    assert [row.images for row in rows if row.images > 128][-1] == 256
    assert (Path(target) / "model").is_dir()


@pytest.mark.parametrize("changes", [{"sparsity.method": "rigl"}, {"training.select": "best"}])
def test_a_recipe_that_depends_on_its_length_is_trained_anew(sweep, changes, tmp_path):
    copy = SweepFolder(shutil.copytree(sweep.path, tmp_path / "sweep"))
    chosen = recommended.find(copy)
    rewrite_recipe(chosen, changes)
    words = shlex.split(recommended.longer_command(copy, chosen, records.space_of(copy)))
    assert words[:2] == ["scrimp", "train"]
    assert ("--rungs" in words) == ("training.select" in changes)


def test_the_recommended_model_is_scored_as_the_sweep_scores(sweep, digits_dataset, monkeypatch, capsys):
    def evaluate(model, data, scoring, *_):
        asked.append((model.folder, data, scoring))
        return {}, None

    asked = []
    monkeypatch.setattr(operations, "evaluate", evaluate)
    monkeypatch.setattr(names, "check_scoring", lambda *_: None)  # the digits of this sweep have no classifier
    run(shlex.join(["scrimp", "evaluate", str(sweep.path), "--samples", "64"]), capsys)
    ((model, data, scoring),) = asked
    assert model == recommended.find(sweep).files.model
    assert data == digits_dataset.folder
    assert scoring == records.space_of(sweep).scoring.model_copy(update={"samples": 64})


def test_a_sweep_without_a_best_trial_has_no_model_and_says_why(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(), most=3, reason="interrupted")
    with pytest.raises(UserError, match="no best model; No trial has been trained to the end"):
        recommended.find(folder)


def test_a_model_alone_does_not_say_against_which_data(sweep, capsys):
    with pytest.raises(SystemExit):
        main.main(["evaluate", str(recommended.find(sweep).files.model)])
    assert "name DATA, too" in capsys.readouterr().err
