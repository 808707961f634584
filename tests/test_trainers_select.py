"""`training.select: best`: the model of the best rung is exported, and nobody takes its score for a plain one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from trainers_small import small

import scrimp
from scrimp_platform.cli import commands
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.export import load_model
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Reweighting
from scrimp_trainers.run import train_repeat
from scrimp_trainers.training import session

RUNGS = [0.032, 0.064, 0.096]
SCORES = [3.0, 1.0, 5.0, 2.0]


@pytest.fixture
def scores(monkeypatch):
    """The score at each step, which a stand-in for the scorer gives by the step that the session is at."""
    values = dict(enumerate(SCORES, 1))
    score_rung = session.Session.score_rung

    class FakeScorer:
        step = 0

        def __init__(self, *arguments):
            pass

        def score(self, samples, classes, statistics, tokens):
            images = torch.cat(list(samples))
            scores = {"fd": values[FakeScorer.step], "extractor": "classifier"}
            return type("Scores", (), {"values": scores, "samples": images[:4], "nearest": images[4:8]})()

    def at_step(self, row):
        FakeScorer.step = row.step
        return score_rung(self, row)

    monkeypatch.setattr("scrimp_trainers.metrics.score.Scorer", FakeScorer)
    monkeypatch.setattr(session.Session, "score_rung", at_step)
    return values


def recipe(**values):
    return small(**{"training__batch_size": 32, "training__kimg": 0.128, "sampler__steps": 1} | values)


def train(dataset, folder, select="best", **values):
    scoring = Scoring(extractor="classifier", samples=20)
    return list(
        train_repeat(
            recipe(training__select=select, **values),
            dataset,
            folder,
            5,
            rungs_kimg=RUNGS,
            scoring=scoring,
            objective="fd",
        )
    )


def exported(folder):
    return load_model(folder / "model")[0].state_dict()


def averages(folder, name):
    return load_file(folder / "checkpoint" / name / "ema.safetensors")


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_best_rung_is_exported_and_everything_says_that_it_was_chosen(digits_dataset, tmp_path, scores):
    rows = train(digits_dataset, tmp_path)
    assert same(exported(tmp_path), averages(tmp_path, "best"))
    assert not same(exported(tmp_path), averages(tmp_path, "last"))
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {"last", "previous", "best"}

    note = "chosen as the best of 4 evaluations by fd, at 0.064 kimg"
    assert [row.value("fd") for row in rows] == SCORES
    assert rows[-1].scores["selected"] == note
    assert metrics_log.read_rows(tmp_path / "metrics.jsonl")[-1] == rows[-1]
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"The model was {note}. A score by which a model was chosen is optimistic" in card
    assert "| fd | 1 |" in card
    assert f"| seconds | {rows[-1].seconds:.6g} |" in card  # of the whole training, not up to the chosen rung


def test_selecting_changes_nothing_of_the_training(digits_dataset, tmp_path, scores):
    train(digits_dataset, tmp_path / "best")
    rows = train(digits_dataset, tmp_path / "last", select="last")
    assert same(averages(tmp_path / "best", "last"), averages(tmp_path / "last", "last"))
    assert same(exported(tmp_path / "last"), averages(tmp_path / "last", "last"))
    assert not any("selected" in row.scores for row in rows)
    assert "optimistic" not in (tmp_path / "last" / "model" / "README.md").read_text()


def test_a_score_that_is_missing_is_no_evaluation(digits_dataset, tmp_path, scores):
    scores[4] = float("nan")
    rows = train(digits_dataset, tmp_path)
    assert rows[-1].scores["selected"] == "chosen as the best of 3 evaluations by fd, at 0.064 kimg"

    scores |= dict.fromkeys(scores, float("nan"))
    with pytest.raises(UserError, match=r"no rung has a finite fd, so training\.select: best has no choice"):
        train(digits_dataset, tmp_path / "none")


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_run_killed_before_a_checkpoint_of_any_rung_ends_as_if_nothing_had_been(
    digits_dataset, tmp_path, scores, monkeypatch, step, name
):
    train(digits_dataset, tmp_path / "whole")
    save = session.Session.save

    def killed(self, which):
        if (self.state.step, which) == (step, name):
            raise KeyboardInterrupt
        save(self, which)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "save", killed)
        try:
            train(digits_dataset, tmp_path / "killed")
        except KeyboardInterrupt:
            assert not (tmp_path / "killed" / "model").exists()

    rows = train(digits_dataset, tmp_path / "killed")
    assert rows[-1].scores["selected"] == "chosen as the best of 4 evaluations by fd, at 0.064 kimg"
    assert same(exported(tmp_path / "killed"), exported(tmp_path / "whole"))


def test_a_rung_that_scores_worse_when_it_is_trained_again_does_not_replace_the_best(
    digits_dataset, tmp_path, scores, monkeypatch
):
    """On a GPU the second training to a rung may differ from the first, whose model is the best one all the same."""
    save = session.Session.save

    def killed(self, which):
        if (self.state.step, which) == (2, "last"):
            raise KeyboardInterrupt
        save(self, which)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(digits_dataset, tmp_path)
    scores[2] = 1.5
    first = averages(tmp_path, "best")

    rows = train(digits_dataset, tmp_path)
    assert rows[-1].value("fd_best") == 1.0
    assert same(exported(tmp_path), first)
    assert "| fd | 1 |" in (tmp_path / "model" / "README.md").read_text()


def test_a_run_that_becomes_longer_keeps_its_best(digits_dataset, tmp_path, scores):
    scores[5] = 4.0
    train(digits_dataset, tmp_path)
    best = exported(tmp_path)
    rows = train(digits_dataset, tmp_path, training__kimg=0.16)
    assert rows[-1].scores["selected"] == "chosen as the best of 5 evaluations by fd, at 0.064 kimg"
    assert same(exported(tmp_path), best)
    assert "the best of 5 evaluations" in (tmp_path / "model" / "README.md").read_text()


def test_a_best_checkpoint_that_is_damaged_or_gone_is_not_replaced_by_another(digits_dataset, tmp_path, scores):
    train(digits_dataset, tmp_path)
    file = tmp_path / "checkpoint" / "best" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"best: damaged, see ema\.safetensors; the best model is lost, remove "):
        train(digits_dataset, tmp_path)
    shutil.rmtree(file.parent)
    with pytest.raises(UserError, match="best: missing, so the best model is lost; remove "):
        train(digits_dataset, tmp_path)


def test_another_choice_in_the_same_folder_is_refused(digits_dataset, tmp_path, scores):
    train(digits_dataset, tmp_path, select="last")
    with pytest.raises(UserError, match=r"training\.select is 'last' there and 'best' here"):
        train(digits_dataset, tmp_path)


def test_the_command_says_in_its_last_line_how_the_model_was_chosen(scored_digits, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe(training__select="best").to_yaml())
    commands.train(
        str(tmp_path / "recipe.yaml"), scored_digits.folder, tmp_path / "out", None, 5, "classifier", 64, (0.064,)
    )
    *_, row = metrics_log.read_rows(tmp_path / "out" / "metrics.jsonl")
    note = row.scores["selected"]
    assert str(note).startswith("chosen as the best of 2 evaluations by fd_classifier, at 0.")
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"model in {tmp_path / 'out' / 'model'}, {note}; that score is optimistic, `scrimp evaluate")
    assert last.endswith("--seed 6` scores it by other samples")
    state = json.loads((tmp_path / "out" / "checkpoint" / "best" / "state.json").read_text())
    assert state["extra"]["best"] == row.value("fd_classifier_best")


@pytest.mark.parametrize(
    ("select", "options", "message"),
    [
        ("best", {}, r"training\.select: best chooses among scores; name an extractor and rungs"),
        ("best", {"extractor": "classifier"}, r"training\.select: best chooses among scores"),
        ("best", {"extractor": "classifier", "rungs": [0.128]}, r"training\.select: best chooses among scores"),
        ("best", {"rungs": [0.064]}, r"training\.select: best chooses among scores"),
        ("last", {"rungs": [0.2]}, "rung 0.2: training goes from 0 to 0.128 kimg"),
        ("last", {"rungs": [float("nan")]}, "rung nan: training goes from 0 to 0.128 kimg"),
    ],
)
def test_a_choice_without_a_second_score_is_refused(scored_digits, tmp_path, select, options, message):
    with pytest.raises(UserError, match=message):
        scrimp.train(recipe(training__select=select), scored_digits, tmp_path / "out", samples=20, **options)
    assert not (tmp_path / "out").exists()


SPACE = {
    "recipe": "tiny-edm",
    "search": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier"},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"override": {"training.select": "best"}},
        {"search": {"training.select": {"choice": ["last", "best"]}}},
        {"search": {}, "arms": {"last": {}, "best": {"training": {"select": "best"}}}},
    ],
)
def test_a_sweep_compares_no_scores_by_which_a_model_was_chosen(fields):
    with pytest.raises(UserError, match=r"space: training\.select: best is not for a sweep"):
        Space.of(**SPACE | fields)


def test_a_reference_has_no_scores_to_choose_by(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(small("tiny-ddpm", training__select="best").to_yaml())
    with pytest.raises(UserError, match=r"training\.select is best, but reference and proxy are not scored"):
        recipes.reference_recipe(Reweighting(method="dro", recipe=str(file)))
