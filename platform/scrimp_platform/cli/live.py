"""The live table of a sweep in a terminal: what is trained where, what leads, what is spent and left.

It stands below the lines that the sweep prints. Where there is no terminal, as in a Ray job or a pipe, there are only
these lines.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from scrimp_platform.cli import status_view, terminal
from scrimp_platform.cli.status import RunningRepeat, SweepStatus
from scrimp_platform.report import formatting, leaderboard
from scrimp_platform.search import estimate
from scrimp_platform.throttle import Throttle
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

REFRESH_INTERVAL_S = 1.0
SCORES_SHOWN = 3
"""Rungs of a repeat whose scores fit beside each other."""
MIN_ROWS = 3
"""Repeats that are shown in the lowest terminal."""


@contextlib.contextmanager
def live_table(read: Callable[[], SweepStatus]) -> Iterator[Callable[[], object]]:
    """Show the table until the block ends; yields a function that brings it up to date, if it is time for that.

    That function does all of the work in the thread that calls it: `read` needs no locks, and Ctrl-C finds nothing
    to wait for.
    """
    if not terminal.console.is_terminal or terminal.console.is_dumb_terminal:
        yield lambda: None
        return

    live = Live(
        console=terminal.console,
        auto_refresh=False,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),  # else it is a file, and its lines belong there
        vertical_overflow="crop",
    )
    with live:
        terminal.console.show_cursor(True)  # a driver that is killed could not do it any more
        view = LiveView(read)
        yield lambda: view.refresh(live)


class LiveView:
    """Draws the table, as seldom as its cost asks for.

    Parameters
    ----------
    read : Callable
        Returns the status of the sweep now.
    """

    def __init__(self, read: Callable[[], SweepStatus]) -> None:
        self._read = read
        self._due = 0.0
        self._throttle = Throttle()
        self._verdict_throttle = Throttle()
        self._verdict = ""
        self._judged: Sequence[Any] = ()

    def refresh(self, live: Live) -> None:
        """Show the status now, unless it was shown a moment ago."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + REFRESH_INTERVAL_S
        try:
            self._throttle(lambda: live.update(self.draw(), refresh=True))
        except (OSError, UserError):
            pass  # it may be readable the next time; if the storage is gone, the ledger notices it
        except Exception as error:  # a sweep of many days must not end because of its table
            self._due = math.inf
            live.update("")
            terminal.say(f"the live table stopped after an error of its own ({type(error).__name__}: {error})")

    def draw(self) -> RenderableType:
        """Return the table and the lines below it, as they fit the terminal."""
        sweep = self._read()
        self._update_verdict(sweep)
        console = terminal.console
        summary = _summary(sweep, self._verdict)
        height = len(console.render_lines(summary))
        rows = max(MIN_ROWS, console.height - height - 5)
        parts: list[RenderableType] = [running_table(sweep, sweep.running[:rows])]
        if len(sweep.running) > rows:
            parts.append(f"and {len(sweep.running) - rows} more")
        return Group(*parts, summary)

    def _update_verdict(self, sweep: SweepStatus) -> None:
        """State which trial is the best so far; with thousands of trials that takes time, so only after news."""
        scored = [(trial.status, [len(repeat.rungs) for repeat in trial.repeats]) for trial in sweep.trials]
        if scored == self._judged:
            return

        def judge() -> None:
            self._verdict = leaderboard.verdict(leaderboard.rank(sweep.trials, sweep.space), sweep.space)
            self._judged = scored

        self._verdict_throttle(judge)


def running_table(sweep: SweepStatus, running: Sequence[RunningRepeat]) -> Table:
    """Lay out the repeats that run: what each has scored at its rungs, and when it comes to the next one."""
    objective = next(iter(sweep.space.objectives))
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("repeat", "phase"):
        table.add_column(heading, no_wrap=True)
    table.add_column("node", no_wrap=True, overflow="ellipsis")
    for heading in ("kimg", objective, "next rung"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="ellipsis")

    marks = sweep.space.budget.rungs_kimg
    for each in running:
        table.add_row(
            each.label,
            each.repeat.phase,
            escape(each.node) or "starting",
            f"{each.kimg:,.0f} of {marks[-1]:,g}",
            _scores(each, objective, sweep.space),
            _next_rung(each, marks),
        )
    return table


def _scores(running: RunningRepeat, objective: str, space: Space) -> str:
    """Return the scores at the last rungs, the newest one last, as far as they are of as many samples."""
    rungs = sorted(running.repeat.rungs)[-SCORES_SHOWN:]
    rungs = [rung for rung in rungs if space.samples_at(rung) == space.samples_at(rungs[-1])]
    return " ".join(formatting.number(running.repeat.score(objective, rung)) or "-" for rung in rungs)


def _next_rung(running: RunningRepeat, marks: Sequence[float]) -> str:
    """Return the rung to which a repeat is on its way, and the time until then at its speed."""
    goal = estimate.next_goal(running.repeat, marks)
    if not running.node or not running.images_per_second or goal <= running.kimg:
        return f"{goal:g}"
    seconds = (goal - running.kimg) * 1000 / running.images_per_second
    seconds -= running.seconds_since_update or 0.0
    if seconds <= 0 or not math.isfinite(seconds):
        return f"{goal:g} now"
    return f"{goal:g} in {formatting.duration(seconds / 3600)}"


def _summary(sweep: SweepStatus, verdict: str) -> RenderableType:
    """Lay out the lines below the table: what is begun, spent and left, and the best so far."""
    hours_left = sweep.hours_left
    left = f", about {formatting.duration(hours_left)} left" if hours_left else ""
    rows = {
        "trials": status_view.describe_trials(sweep),
        "repeats": status_view.describe_repeats(sweep),
        "needs": status_view.describe_preparations(sweep),
        "best": verdict,
        "spent": f"{status_view.describe_spent(sweep)}{left}",
    }
    return terminal.list_table({name: text for name, text in rows.items() if text})
