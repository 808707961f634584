"""`scrimp tune`: EMA width, guidance and steps, chosen on one set of samples and scored on another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_sweep import make_space, write_sweep
from trainers_small import small

import scrimp
from scrimp_platform import store, tune
from scrimp_platform.cli import main
from scrimp_platform.model import Model
from scrimp_platform.tune import Setting
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.training.snapshots import Snapshots

FAST: dict[str, Any] = {"network__attention": [], "sampler__steps": 2, "training__kimg": 0.08}
CLASSES: dict[str, Any] = {"conditioning__classes": True, "conditioning__label_drop": 0.2}
OPTIONS = ["--extractor", "classifier", "--samples", "20"]


@pytest.fixture(scope="module")
def run(scored_digits, tmp_path_factory) -> Path:
    """Folder of a training of ten steps that kept five snapshots."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    list(scrimp.train(small(ema__snapshots=5, **FAST, **CLASSES), scored_digits, folder, device="cpu"))
    return folder


@pytest.fixture(scope="module")
def tuned(run, scored_digits, tmp_path_factory):
    """What tuning says of it, and the model that it writes."""
    model = tmp_path_factory.mktemp("tuned") / "model"
    values = {"widths": [0.05], "guidance": [1.0, 2.0], "steps": [2, 3], "samples": 20, "model": model}
    return scrimp.tune(run, scored_digits, extractor="classifier", device="cpu", **values), model


def test_every_combination_is_scored_and_the_lowest_is_chosen(tuned):
    found, _ = tuned
    tried = [candidate.setting for candidate in found.candidates]
    assert tried == [
        Setting(width, guidance, steps) for width in (None, 0.05) for guidance in (1.0, 2.0) for steps in (2, 3)
    ]
    assert [candidate.nfe for candidate in found.candidates] == [3, 5, 6, 10] * 2
    lowest = min(found.candidates, key=lambda candidate: candidate.score)
    assert found.chosen == lowest.setting


def test_the_chosen_is_scored_by_the_samples_of_the_next_seed(tuned, run, scored_digits):
    found, model = tuned
    options = {"extractor": "classifier", "samples": 20}
    assert scrimp.evaluate(model, scored_digits, seed=1, **options) == pytest.approx(found.values)
    assert scrimp.evaluate(run / "model", scored_digits, seed=1, **options) == pytest.approx(found.values_before)
    as_trained = found.candidates[0]
    chosen_by = scrimp.evaluate(run / "model", scored_digits, seed=0, **options)
    assert as_trained.score == pytest.approx(chosen_by["fd_classifier"])


def test_the_table_and_the_new_model_say_what_was_chosen(tuned, run):
    found, folder = tuned
    table = store.read_json(run / "tuned.json")
    assert table["chosen"] == vars(found.chosen)
    assert len(table["candidates"]) == 8
    assert (table["chosen_by"]["seed"], table["scored_with_seed"]) == (0, 1)
    assert json.loads((run / "tuned.json").read_text())

    model = Model.load(folder, "cpu")
    assert model.recipe.sampler.steps == found.chosen.steps
    assert model.recipe.sampler.guidance == found.chosen.guidance
    card = (folder / "README.md").read_text()
    assert "are the best of 8 by fd_classifier of other samples" in card


@pytest.mark.parametrize("network", [{"kind": "unet"}, {"kind": "dit", "layers": 2, "heads": 2}])
def test_the_weights_of_a_width_are_put_into_the_exported_network(scored_digits, tmp_path, network):
    recipe = small(ema__snapshots=2, **FAST).replace({"network": network, "training.kimg": 0.016})
    list(scrimp.train(recipe, scored_digits, tmp_path, device="cpu"))
    snapshots = Snapshots.find(tmp_path, 16)
    weights = tune._Weights(Model.load(tmp_path / "model", "cpu"), snapshots)

    own = weights.model(Setting(None, 1.0, 2), recipe).network
    before = {name: weight.clone() for name, weight in own.named_parameters()}
    wide = weights.model(Setting(0.1, 1.0, 2), recipe).network
    for name, average in snapshots.average(0.1).items():
        assert torch.equal(wide.get_parameter(name), average)
    again = weights.model(Setting(None, 1.0, 2), recipe).network
    assert all(torch.equal(weight, before[name]) for name, weight in again.named_parameters())


def test_the_command_prints_the_table_and_the_scores_before_and_after(run, scored_digits, capsys):
    main.main(["tune", str(run), str(scored_digits.folder), "--width", "0.05,0.1", *OPTIONS])
    said = capsys.readouterr().out
    assert "as trained" in said
    assert "by other samples fd_classifier" in said
    assert f"table in {run / 'tuned.json'}" in said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--width", "0.2"], "width 0.2 cannot be made of 5 snapshots"),
        (["--width", "0.5"], "width 0.5: must be above 0 and at most 0.289"),
        (["--steps", "2.5"], "steps 2.5: not a whole number"),
        (["--steps", "0"], "sampler.steps: Input should be greater than or equal to 1"),
        (["--guidance", "-1"], "sampler.guidance: Input should be greater than or equal to 0"),
        (["--guidance", "a"], "'a' is not a list of numbers"),
        (["--model", "."], "--model .: exists already"),
        (["--samples", "5"], "samples: Input should be greater than or equal to 20"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_drawn(run, scored_digits, capsys, options, complaint):
    with pytest.raises(SystemExit) as left:
        main.main(["tune", str(run), str(scored_digits.folder), *OPTIONS, *options])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert complaint in told
    assert told.count("\n") == 1


def test_what_is_no_finished_training_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a training \(no recipe\.yaml\) nor a sweep \(no sweep\.json\)"):
        tune.training(tmp_path)
    (tmp_path / "recipe.yaml").write_text(small().to_yaml())
    with pytest.raises(UserError, match="has no model/ yet; finish the training first"):
        tune.training(tmp_path)


def test_of_a_sweep_the_typical_repeat_of_the_best_trial_is_meant(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", make_space())
    rows = scrimp.Result.load(sweep.path).leaderboard
    best = (rows if isinstance(rows, list) else rows.to_dict("records"))[0]
    repeats = [files for files in sweep.repeats() if files.trial == best["trial"] and files.repeat > 0]
    scores = [metrics_log.read_rows(files.metrics)[-1].value("fd_classifier") for files in repeats]
    nearest = min(range(len(scores)), key=lambda place: abs(scores[place] - sum(scores) / len(scores)))
    with pytest.raises(UserError, match=r"has no model/ yet") as refused:
        tune.training(sweep.path)
    assert str(refused.value).startswith(str(repeats[nearest].path))
