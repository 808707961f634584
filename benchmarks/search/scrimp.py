"""Scrimp as a method of the simulator: its own ledger, study, race and ranking, in a folder of their own."""

from pathlib import Path
from typing import Any

from benchmarks.search.curves import OBJECTIVE, Values
from benchmarks.search.simulate import Decision, Statement, Task
from scrimp_platform.report import ranking
from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.records import Repeat
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow

NOT_SIMULATED: dict[str, Any] = {
    "images": 0,
    "step": 0,
    "loss": 0.0,
    "lr": 0.0,
    "nonzero_fraction": 1.0,
    "train_flops": 0.0,
    "images_per_second": 1.0,
}
"""What else a row has."""


class Scrimp:
    """A sweep of a space, whose files lie in `folder`; it may be given something of earlier ones."""

    def __init__(self, space: Space, seed: int, folder: Path, warm_start: WarmStart | None = None) -> None:
        self._space = space
        self._ledger = Ledger(SweepFolder(folder), space, seed, devices=1, say=_keep_quiet, warm_start=warm_start)

    def propose(self) -> Task | None:
        """Return what the ledger hands out."""
        repeat = self._ledger.propose()
        if not isinstance(repeat, Repeat):  # the recipes of a surface need no reference
            return None
        trial = next(trial for trial in self._ledger.trials if trial.number == repeat.trial)
        return Task((repeat.trial, repeat.repeat), trial.params, repeat.seed, max(repeat.rungs, default=0.0))

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        """Write a rung's line as a worker does, and report it as Tune does."""
        scores: dict[str, float | str] = {OBJECTIVE: score, **others}
        line = MetricsRow(**NOT_SIMULATED, kimg=kimg, rung=kimg, seconds=3600 * hours, scores=scores)
        with self._ledger.folder.repeat(*task.key).metrics.open("a") as file:
            file.write(metrics_log.row_text(line))
        continues = self._ledger.report(self._repeat(task), line)
        return "continue" if continues else "pause"

    def end(self, task: Task, failure: str) -> None:
        """Report an end; what has diverged is not tried again."""
        self._ledger.finish(self._repeat(task), failure, final=bool(failure))

    def recommend(self) -> Values | None:
        """Return the recipe at the head of the leaderboard."""
        rows = self._rows()
        return rows[0].trial.params if rows else None

    def front(self) -> list[Values]:
        """Return the recipes that share the first place of the leaderboard."""
        return [row.trial.params for row in self._rows() if row.rank == 1]

    def statement(self) -> Statement | None:
        """Return what the leaderboard says of the first trial: the mean over fresh seeds, and how good it is."""
        rows = self._rows()
        if not rows or not rows[0].fresh or rows[0].repeat_count < 2:
            return None
        summary = rows[0].summaries[OBJECTIVE]
        raced = [(row.trial.params, row.repeat_count) for row in rows if row.raced]
        return Statement(
            mean=summary.mean,
            low=summary.low,
            high=summary.high,
            best=rows[0].probability_best,
            near=rows[0].probability,
            alone=not any(row.status == "tied" for row in rows[1:]),
            raced=raced,
        )

    def _rows(self) -> list[TrialRow]:
        scored = [trial for trial in self._ledger.trials if any(repeat.rungs for repeat in trial.repeats)]
        return ranking.rank(scored, self._space)

    def _repeat(self, task: Task) -> Repeat:
        trial, number = task.key
        return next(one for one in self._ledger.trials if one.number == trial).repeats[number]


def _keep_quiet(decision: str) -> None:
    del decision
