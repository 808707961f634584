"""What a sweep's driver costs as its nodes grow: the real searcher, ledger, leaderboard and tracker, no training.

A repeat takes no time here, so what is measured is the driver: not Ray, not the disk, whose syncs are counted and not
waited for, and not the MLflow server, in whose place a stub answers.
"""

import contextlib
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from rich.table import Table

from benchmarks import mlflow_stub
from benchmarks.measure import console
from benchmarks.replay import make_plan, replay
from scrimp_platform.plan import Plan

NODES = (10, 100, 1000)
ROWS = {
    "repeats": "{:,.0f}",
    "CPU a repeat, decisions": "{:.1f} ms",
    "... of it Optuna's proposals": "{:.1f} ms",
    "CPU a repeat, tracker": "{:.1f} ms",
    "a decision, median": "{:.1f} ms",
    "a decision, 99 in 100": "{:.1f} ms",
    "the leaderboard": "{:.1f} ms",
    "syncs to disk a repeat": "{:.1f}",
    "memory": "{:,.0f} MB",
    "MLflow has heard all after": "{:.1f} s",
}
"""What is measured, and how it is written."""


def main(device: str, threads: int, rounds: int, nodes: Sequence[int] = NODES) -> None:
    """Measure and print; beside each number by how many times it has grown since the fewer nodes."""
    del device, threads, rounds  # one thread decides, another tells MLflow
    found: list[list[float]] = []
    for count in nodes:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # each has a memory of its own
            found.append(pool.submit(measure, count).result())
    table = Table("", title="A sweep's driver, at up to three repeats a node", title_justify="left")
    for count in nodes:
        table.add_column(f"{count:,} nodes", justify="right")
    for (name, form), values in zip(ROWS.items(), zip(*found, strict=True), strict=True):
        growth = ["", *(f"  x {now / then:4.1f}" for then, now in itertools.pairwise(values))]
        table.add_row(name, *(form.format(value) + more for value, more in zip(values, growth, strict=True)))
    console.print(table, "")


def measure(nodes: int) -> list[float]:
    """Return the numbers of a column, in the order of the rows."""
    with tempfile.TemporaryDirectory() as storage, mlflow_stub.serving() as uri, Path(os.devnull).open("w") as nowhere:
        the_plan = make_plan(Path(storage), nodes, uri)
        with contextlib.redirect_stdout(nowhere):
            found = drive(the_plan, nodes)
        heard = mlflow_stub.heard(uri)
        assert len(heard) == len(set(heard)) == found[0] + (the_plan.space.budget.trials or 0) + 1
    return found


def drive(the_plan: Plan, nodes: int) -> list[float]:
    """Run a sweep as `scrimp_platform.sweep` does, but for its training; return what that cost."""
    import mlflow  # noqa: F401  it would be imported in the midst of it

    from scrimp_platform import store, sweep
    from scrimp_platform.cli import terminal
    from scrimp_platform.cluster import Placement
    from scrimp_platform.report import leaderboard
    from scrimp_platform.search import proposals as proposing
    from scrimp_platform.search.tune_loop import RepeatSearcher
    from scrimp_platform.sweep_record import sweep_record
    from scrimp_platform.tracking.mirror_thread import MirrorThread

    folder, synced, propose = the_plan.folder, [], proposing.propose
    asked, proposals, board, rest = Stopwatch(), Stopwatch(), Stopwatch(), Stopwatch()

    def timed_propose(*arguments: Any) -> Any:
        return proposals(propose, *arguments)

    with mock.patch("os.fsync", synced.append), mock.patch.object(proposing, "propose", timed_propose):
        all_threads, this_thread = time.process_time(), time.thread_time()
        store.write_json(folder.description, sweep_record(the_plan))
        tracker = MirrorThread(folder, the_plan.storage, the_plan.options.tracking_uri, terminal.say)
        tracker.start()
        ledger = sweep.open_ledger(the_plan, Placement((), 0, nodes))
        replay(ledger, RepeatSearcher(ledger, lambda: nodes, list, str, _raise), nodes, asked)
        store.write_json(folder.outcome, {"reason": "complete", "ended": time.time()})

        rows = board(leaderboard.rank, ledger.trials, ledger.space)
        board(leaderboard.write_csv, rows, ledger.space, folder)
        rest(tracker.stop, 3600.0)
        told = time.process_time() - all_threads - (time.thread_time() - this_thread)
    repeats = len(ledger.repeats)
    return [
        repeats,
        1000 * asked.cpu / repeats,
        1000 * proposals.cpu / repeats,
        1000 * told / repeats,
        1000 * statistics.median(asked.seconds),
        1000 * statistics.quantiles(asked.seconds, n=100)[-1],
        1000 * sum(board.seconds),
        len(synced) / repeats,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        sum(rest.seconds),
    ]


class Stopwatch:
    """Calls functions, and keeps what each call took and how much of it this thread was at work."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu = 0.0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; return what it does."""
        began, cpu = time.perf_counter(), time.thread_time()
        answer = function(*arguments)
        self.seconds.append(time.perf_counter() - began)
        self.cpu += time.thread_time() - cpu
        return answer


def _raise(error: OSError) -> None:
    raise error
