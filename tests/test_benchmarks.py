import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import large_sweep, latents, measure, mlflow_stub, replay, scale, scoring, startup, training
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


def test_what_a_large_sweep_takes_is_measured_on_a_sweep_that_reads_without_a_problem(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(large_sweep, "browser_time", lambda report: "not measured")
    folder = large_sweep.write_sweep(tmp_path / "large", trials=6)
    known = records.read_records(folder)
    assert known.problems == []
    assert Counter(repeat.status for repeat in known.repeats) == {"finished": 17, "failed": 1}
    costs = large_sweep.measure(folder)
    assert re.fullmatch(r"[\d.]+ MB", costs["size of report.html"])
    assert re.fullmatch(r"[\d.]+ s", costs["report.html, with all of that"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browsers_time_is_that_of_the_whole_page(tmp_path: Path):
    page = tmp_path / "page.html"
    wait = "const end = performance.now() + 700; while (performance.now() < end);"
    page.write_text(f"<!doctype html><title>page</title><body><script>{wait}</script></body>")
    seconds = re.fullmatch(r"([\d.]+) s", large_sweep.browser_time(page))
    assert seconds
    assert 0.7 <= float(seconds[1]) < 10
