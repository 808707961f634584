import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import latents, measure, mlflow_stub, replay, scale, scoring, startup, training
from benchmarks.measure import Comparison, Side, interleave
from scrimp_platform.search import records
from scrimp_trainers.recipe.recipe import load

TINY = load("tiny-ddpm").replace(
    training.EXAMPLE
    | {"network.channels": 8, "network.multipliers": [1], "network.attention": [], "training.batch_size": 4}
)
ROW = r"│ (\d+\.\d{3}) │ \1 to \1 in 1 *│"
"""The ratio and the spread of a single round."""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure.console, "_width", 240)


def test_sides_take_turns_and_so_does_who_begins():
    turns: list[str] = []

    class Fake(Side):
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.each = name, seconds

        def warm(self) -> None:
            turns.append(f"warm {self.name}")

        def seconds(self, times: int) -> float:
            turns.append(self.name)
            return self.each * times

    found = interleave(Fake("a", 1), Fake("b", 2), rounds=3, times=5)
    assert turns == ["warm a", "warm b", "a", "b", "b", "a", "a", "b"]
    assert found == ([5, 5, 5], [10, 10, 10])


def test_a_ratio_is_that_of_one_round():
    """A machine that is slow for one round is slow for both sides of it."""
    assert Comparison("", "s", ours=[1, 10, 2], theirs=[2, 20, 4], goal="").ratios == [0.5, 0.5, 0.5]


def test_training_prints_its_ratio_and_where_the_time_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "cases", lambda device: [training.Case("toy", TINY, steps=2)])
    monkeypatch.setattr(training, "IMAGES", 16)
    training.main("cpu", threads=1, rounds=1)
    said = capsys.readouterr().out
    assert re.search(ROW, said)
    for part in ("load images", "forward", "loss, backward", "optimizer", training.REST):
        assert re.search(rf"│ {part} +│ +\d\S* +\d+% │ +\d\S* +\d+% │", said), part


@pytest.mark.slow
def test_latents_print_their_ratio(capsys: pytest.CaptureFixture[str]):
    latents.main("cpu", threads=1, rounds=1, images=4, widths=(32, 32, 32, 32))
    said = capsys.readouterr().out
    assert re.search(ROW, said)
    assert re.search(r"encoding takes [\d,]+ times as long", said)


@pytest.mark.slow
def test_scoring_prints_its_ratio(capsys: pytest.CaptureFixture[str]):
    scoring.main("cpu", threads=2, rounds=1, count=20, images=20)
    assert re.search(ROW, capsys.readouterr().out)


@pytest.mark.slow
def test_startup_says_what_the_time_goes_to(capsys: pytest.CaptureFixture[str]):
    startup.main("cpu", threads=2, rounds=1)
    assert re.search(r"│ all +│ +\d+\S* s +│", capsys.readouterr().out)


def test_a_replayed_sweep_trains_each_repeat_once_and_mlflow_hears_of_each_once(tmp_path: Path):
    with mlflow_stub.serving() as uri:
        plan = replay.make_plan(tmp_path, 3, uri)
        scale.drive(plan, 3)
        heard = mlflow_stub.heard(uri)
    trials = records.read_records(plan.folder).trials
    repeats = [repeat for trial in trials for repeat in trial.repeats]
    assert len(trials) == 6
    assert [len(trial.repeats) for trial in trials].count(6) == 1  # the one leader
    assert len(repeats) == 11
    assert {repeat.status for repeat in repeats} == {"finished", "stopped"}
    assert all(list(repeat.rungs) == [15.0, 45.0][: len(repeat.rungs)] for repeat in repeats)
    assert Counter(heard) == Counter(
        ["replay", *(f"trial {trial.number}" for trial in trials)]
        + [f"repeat {repeat.trial}.{repeat.repeat}" for repeat in repeats]
    )


@pytest.mark.slow
def test_the_driver_s_numbers_are_printed_with_their_growth(capsys: pytest.CaptureFixture[str]):
    scale.main("cpu", threads=1, rounds=1, nodes=[1, 2])
    said = capsys.readouterr().out
    assert re.search(r"│ repeats +│ +7 │ +9 +x +1\.3 │", said)
    assert re.search(r"│ CPU a repeat, tracker +│ +[\d.]+ ms │ +[\d.]+ ms +x +[\d.]+ │", said)
