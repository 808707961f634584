"""The live table: what it shows, that it fits any terminal, that it is absent from pipes and leaves no trace."""

import asyncio
import io
import math
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from made_up_sweep import make_space, next_repeat, write_sweep
from rich.console import Console

from scrimp_platform import job
from scrimp_platform.cli import live, status, terminal
from scrimp_platform.search.ledger import Ledger

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

BUDGET = {"trials": 14, "rungs_kimg": [10, 20, 4000], "reduction": 2, "leaders": 3, "repeats": 3, "max_gpu_hours": 40}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> Ledger:
    """A sweep of which nine repeats were handed out, and twelve more run."""
    folder = write_sweep(tmp_path_factory.mktemp("runs") / "lab", make_space(budget=BUDGET), most=9, reason="")
    ledger = Ledger(folder, make_space(budget=BUDGET), 5, 1, lambda _: None)
    for _ in range(4):
        next_repeat(ledger)
    return ledger


def use_terminal(monkeypatch, width: int, height: int = 24) -> io.StringIO:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=height, highlight=False, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    return screen


def drawn(ledger: Ledger, monkeypatch, width: int, height: int = 24) -> list[str]:
    screen = use_terminal(monkeypatch, width, height)
    terminal.console.print(live.LiveView(lambda: status.of_driver(ledger)).draw())
    return [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_each_repeat_takes_one_line_and_nothing_is_wider_than_the_terminal(ledger, monkeypatch, width):
    lines = drawn(ledger, monkeypatch, width)
    assert max(map(len, lines)) <= width
    assert len(lines) < 24
    headings = next(line for line in lines if line.split()[:2] == ["repeat", "phase"])
    assert headings.split() == ["repeat", "phase", "node", "kimg", "fd_classifier", "next", "rung"]
    labels = [line.split()[0] for line in lines[lines.index(headings) + 2 :] if line.strip()[:1].isdigit()]
    assert labels == [f"{repeat.trial}.{repeat.repeat}" for repeat in ledger.running]


def test_what_is_known_of_the_sweep_stands_below(ledger, monkeypatch):
    text = "\n".join(drawn(ledger, monkeypatch, 120))
    assert " begun, " in text
    assert f"{len(ledger.running)} running" in text
    assert "No trial has been trained to the end" in text
    assert " device-hours of at most 40" in text


def test_a_repeat_shows_its_scores_and_the_time_to_its_next_rung(ledger, monkeypatch):
    repeat = next(repeat for repeat in ledger.running if repeat.rungs)
    row = max(repeat.rungs)
    known = status.RunningRepeat(repeat, "7.0", "ws-03", 15.0, 1000.0, 2.0)
    monkeypatch.setattr(status, "read_running", lambda *_: [known])
    (line,) = [line for line in drawn(ledger, monkeypatch, 80) if line.split()[:1] == ["7.0"]]
    score = repeat.score("fd_classifier", row)
    assert math.isfinite(score)
    assert f"{score:.3g}" in line
    goal = next(mark for mark in BUDGET["rungs_kimg"] if mark > repeat.passed)
    if goal == 20:  # 5 kimg at 1000 images a second, of which 2 s have passed
        assert line.endswith("20 in 3 s")


def test_a_low_terminal_shows_as_many_repeats_as_fit(ledger, monkeypatch):
    known = status.read_running(ledger.folder, ledger.repeats)[0]
    monkeypatch.setattr(status, "read_running", lambda *_: [known] * 30)
    lines = drawn(ledger, monkeypatch, 80, height=20)
    assert len(lines) <= 20
    assert any(line.split()[:1] == ["and"] and line.endswith(" more") for line in lines)


def test_lines_are_printed_above_it_and_it_is_gone_in_the_end(ledger, monkeypatch):
    screen = use_terminal(monkeypatch, 80)
    with live.live_table(lambda: status.of_driver(ledger)) as refresh:
        refresh()
        terminal.say("promoting repeat 3.0")
        refresh()
    text = screen.getvalue()
    assert "promoting repeat 3.0" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b[2K" in text[text.rindex("spent") :]  # the table was erased


def test_a_pipe_gets_none_of_it(ledger, capsys):
    def read():
        raise AssertionError("nobody would see it")

    with live.live_table(read) as refresh:
        refresh()
    assert capsys.readouterr().out == ""


def test_a_thousand_trials_are_not_ranked_again_at_each_refresh(ledger, monkeypatch):
    ranked = []
    monkeypatch.setattr(live.leaderboard, "rank", lambda *_: ranked.append(1) or [])
    view = live.LiveView(lambda: status.of_driver(ledger))
    use_terminal(monkeypatch, 80)
    for _ in range(3):
        view.draw()
    assert len(ranked) == 1


def test_an_error_of_the_table_does_not_end_the_sweep(ledger, monkeypatch):
    def read():
        raise ZeroDivisionError("by zero")

    screen = use_terminal(monkeypatch, 120)
    with live.live_table(read) as refresh:
        refresh()
        refresh()
    assert screen.getvalue().count("the live table stopped after an error of its own (ZeroDivisionError: by zero)") == 1


def test_who_follows_a_job_sees_the_table_below_its_lines(ledger, monkeypatch):
    class Client:
        """A cluster's Jobs API with one job."""

        async def tail_job_logs(self, name):
            await asyncio.sleep(0.1)
            yield "  0:07  promoting repeat 3.0\n"

        def get_job_info(self, name):
            return SimpleNamespace(status="SUCCEEDED")

    screen = use_terminal(monkeypatch, 120)
    assert job.follow(cast("JobSubmissionClient", Client()), "lab-20260131", ledger.folder) == 0
    text = screen.getvalue()
    assert "  0:07  promoting repeat 3.0\n" in text
    assert " device-hours of at most 40" in text
