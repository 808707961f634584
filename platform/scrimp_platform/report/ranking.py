"""The order of a sweep's trials, and what can be said of each."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scrimp_platform import stats
from scrimp_platform.records import Repeat, Trial
from scrimp_platform.stats import Summary
from scrimp_spaces.space import Space

Status = Literal["winner", "leader", "front", "tied", "beaten", "single", "infeasible", "running", "pruned", "failed"]

MEANINGS: dict[Status, str] = {
    "winner": "best mean over several repeats",
    "leader": "best so far; the race is not over, or there was none",
    "front": "no other trial is better in every objective",
    "tied": "its 95% interval overlaps that of the best",
    "beaten": "its 95% interval does not overlap that of the best",
    "single": "trained to the end once: a value without an interval",
    "infeasible": "breaks a constraint",
    "running": "its first repeat has not ended",
    "pruned": "stopped early, with the score of the rung it reached",
    "failed": "its training came to nothing",
}
_ORDER: tuple[Status, ...] = ("beaten", "single", "infeasible", "running", "pruned", "failed")


@dataclass
class Row:
    """One trial on the leaderboard.

    The summaries are over `repeats` values, all measured at `kimg`: those of the finished repeats at the last rung,
    or for a trial without one those of the highest rung that it reached. `gpu_hours` is what one of these repeats
    took on average (of CPU workers where there is no GPU), `parameters` the size of the network. `excess` is the sum
    of what the constraints' means exceed their bounds by, infinite where one was not measured.
    """

    trial: Trial
    status: Status
    repeats: int
    failed: int
    summaries: dict[str, Summary]
    constraints: dict[str, float]
    excess: float
    kimg: float
    gpu_hours: float
    parameters: float
    rank: int = 0

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end at least once."""
        return self.status not in ("running", "pruned", "failed")

    @property
    def raced(self) -> bool:
        """Whether it has an interval and a part in the verdict."""
        return self.finished and self.repeats > 1 and self.status != "infeasible"


def rank(trials: Sequence[Trial], space: Space) -> list[Row]:
    """Order the trials from best to worst.

    First those with several finished repeats, by their means at the last rung; then those with one, by its value;
    then those that break a constraint, by how much; then those not trained to the end (running, pruned, failed), by
    the rung they reached and their value there. With several objectives the Pareto front of the means takes the
    place of the mean. Trials that nothing tells apart share a rank.
    """
    rows = [_row(trial, space) for trial in trials]
    places = _places(rows, space)
    ranks = {place: i for i, place in enumerate(sorted(set(places.values())), 1)}
    for row in rows:
        row.rank = ranks[places[row.number]]
    first, direction = next(iter(space.objectives.items()))
    rows.sort(key=lambda row: (row.rank, cost(row.summaries[first].mean, direction), row.number))
    _judge(rows, space, over=not any(repeat.open for trial in trials for repeat in trial.repeats))
    return rows


def winner(rows: Sequence[Row]) -> Row | None:
    """Return the first row, if its trial was trained to the end and keeps the constraints."""
    return rows[0] if rows and rows[0].finished and rows[0].status != "infeasible" else None


def _row(trial: Trial, space: Space) -> Row:
    kimg = space.budget.rungs_kimg[-1]
    counted = [repeat for repeat in trial.repeats if repeat.status == "finished" and kimg in repeat.scores]
    done = bool(counted)
    if not done:
        kimg = max((rung for repeat in trial.repeats for rung in repeat.scores), default=0.0)
        counted = [repeat for repeat in trial.repeats if kimg in repeat.scores]
    summaries = {name: stats.summarize(_values(counted, kimg, name)) for name in space.objectives}
    constraints = {name: stats.summarize(_values(counted, kimg, name)).mean for name in space.constraints}
    excess = sum(violation(space, name, mean) for name, mean in constraints.items()) if done else 0.0
    status: Status = "failed" if trial.status == "complete" else trial.status
    if done:
        status = "infeasible" if excess > 0 else "beaten" if len(counted) > 1 else "single"
    spent = [hours for repeat in counted or trial.repeats if (hours := repeat.device_hours)]
    return Row(
        trial=trial,
        status=status,
        repeats=len(counted),
        failed=sum(repeat.status == "failed" for repeat in trial.repeats),
        summaries=summaries,
        constraints=constraints,
        excess=excess,
        kimg=kimg,
        gpu_hours=stats.summarize(spent).mean,
        parameters=stats.summarize(_values(counted, kimg, "parameters")).mean,
    )


def _values(repeats: Sequence[Repeat], kimg: float, name: str) -> list[float]:
    values = [float(repeat.scores[kimg].get(name, math.nan)) for repeat in repeats]
    return [value for value in values if math.isfinite(value)]


def violation(space: Space, name: str, mean: float) -> float:
    """By how much a constraint's mean breaks its bound: 0 where it is kept, infinite where it was not measured."""
    return max(0.0, space.constraints[name].excess(mean)) if math.isfinite(mean) else math.inf


def cost(value: float, direction: stats.Direction) -> float:
    """Return a value that is to be minimised; a missing one is the worst."""
    if not math.isfinite(value):
        return math.inf
    return value if direction == "minimize" else -value


def _places(rows: Sequence[Row], space: Space) -> dict[int, tuple[float, ...]]:
    """Return what each trial is ordered by: its kind, then rung or violation, then its Pareto front."""
    places, groups = {}, defaultdict(list)
    for row in rows:
        coarse = row.excess if row.status == "infeasible" else 0.0 if row.finished else -row.kimg
        groups[_ORDER.index(row.status), coarse].append(row)
    for place, group in groups.items():
        points = [
            {name: cost(row.summaries[name].mean, way) for name, way in space.objectives.items()} for row in group
        ]
        fronts = stats.fronts(points, dict.fromkeys(space.objectives, "minimize"))
        for row, front in zip(group, fronts, strict=True):
            places[row.number] = (*place, front)
    return places


def _judge(rows: Sequence[Row], space: Space, over: bool) -> None:
    """Say of each ranked trial whether it wins, ties or is beaten."""
    best = winner(rows)
    if best is None:
        return
    leaders = [row for row in rows if row.rank == best.rank]
    settled = over and best.repeats > 1
    for row in rows:
        if row.rank == best.rank:
            alone = "winner" if row is best else "tied"
            row.status = "leader" if not settled else "front" if len(space.objectives) > 1 else alone
        elif row.raced:
            row.status = "beaten" if any(_beats(leader, row, space) for leader in leaders) else "tied"


def _beats(leader: Row, row: Row, space: Space) -> bool:
    """Whether `leader` is better where the two intervals do not overlap, and that leaves no other objective open."""
    clear = []
    for name, way in space.objectives.items():
        one, other = leader.summaries[name], row.summaries[name]
        if one.low == one.high == other.low == other.high:
            continue  # the same without any spread, like the cost of two networks of one size
        clear.append(cost(one.mean, way) < cost(other.mean, way) and not stats.tied(one, other))
    return any(clear) and all(clear)
