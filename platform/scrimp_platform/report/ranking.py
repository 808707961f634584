"""The order of a sweep's trials, and what can be said of each."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scrimp_platform.search import records, stats
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.stats import Summary
from scrimp_spaces.space import Space

Status = Literal[
    "winner", "leader", "front", "tied", "beaten", "single", "infeasible", "running", "pruned", "failed", "damaged"
]

MEANINGS: dict[Status, str] = {
    "winner": "best mean over fresh seeds; no other trial's 95% interval overlaps its own",
    "leader": "best so far; the race is not over, or there was none",
    "front": "no other trial is better in every objective",
    "tied": "its 95% interval overlaps that of another of the best",
    "beaten": "its 95% interval does not overlap that of the best",
    "single": "trained to the end once; its score is the one by which it was chosen, which flatters",
    "infeasible": "breaks a constraint",
    "running": "its first repeat has not ended",
    "pruned": "stopped early, with the score of the rung it reached",
    "failed": "its training came to nothing",
    "damaged": "its records are damaged or missing, so it is left out",
}
_ORDER: tuple[Status, ...] = ("beaten", "single", "infeasible", "running", "pruned", "failed", "damaged")


@dataclass
class TrialRow:
    """One trial on the leaderboard.

    The summaries are over the repeats in `counted`, at `kimg`. Of a trial of the race these are its finished repeats
    with fresh seeds, at the last rung (`fresh`). A trial without one has only the score by which the search judged it,
    at the highest rung that it reached. `chosen` is that score for every trial, by objective: it is shown, but counts
    in no mean of a raced trial. `gpu_hours` is what one of the counted repeats took on average (of CPU workers where
    there is no GPU), `parameters` the size of the network. `excess` is the sum of what the constraints' means exceed
    their bounds by, infinite where one was not measured.
    """

    trial: Trial
    status: Status
    fresh: bool
    counted: list[Repeat]
    chosen: dict[str, float]
    failed: int
    damaged: int
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
    def repeats(self) -> int:
        """How many repeats the summaries are over."""
        return len(self.counted)

    @property
    def raced(self) -> bool:
        """Whether it keeps the constraints and its scores are those of fresh seeds: it has a part in the verdict."""
        return self.fresh and self.status != "infeasible"

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end at least once."""
        return self.status not in ("running", "pruned", "failed", "damaged")


def rank(trials: Sequence[Trial], space: Space) -> list[TrialRow]:
    """Order the trials from best to worst.

    First those of the race, by their means over fresh seeds at the last rung; then those trained to the end only in
    the search, by their score there; then those that break a constraint, by how much; then those not trained to the
    end (running, pruned, failed), by the rung they reached and their value there. With several objectives the Pareto
    front of the means takes the place of the mean. Trials that nothing tells apart share a rank.
    """
    rows = [_row(trial, space) for trial in trials]
    places = _places(rows, space)
    ranks = {place: i for i, place in enumerate(sorted(set(places.values())), 1)}
    for row in rows:
        row.rank = ranks[places[row.number]]
    first, direction = next(iter(space.objectives.items()))
    rows.sort(key=lambda row: (row.rank, cost(row.summaries[first].mean, direction), row.number))
    _judge(rows, space, over=not any(lost(trial) or any(repeat.open for repeat in trial.repeats) for trial in trials))
    return rows


def lost(trial: Trial) -> bool:
    """Whether records of a trial that might be the best are damaged, so that another would take its place."""
    damaged = trial.status == "damaged" or any(repeat.status == "damaged" for repeat in trial.repeats)
    return damaged and trial.status not in ("pruned", "failed")


def best(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the first row, if its trial was trained to the end and keeps the constraints."""
    return rows[0] if rows and rows[0].finished and rows[0].status != "infeasible" else None


def typical(row: TrialRow, space: Space) -> Repeat:
    """Return the repeat of a trial whose score is nearest to the trial's mean, not the prettiest."""
    name, kimg = next(iter(space.objectives)), row.kimg
    mean = row.summaries[name].mean
    return min(row.counted, key=lambda repeat: abs(repeat.scores[kimg][name] - mean))


def _row(trial: Trial, space: Space) -> TrialRow:
    kimg = space.budget.rungs_kimg[-1]
    counted = records.unbiased_repeats(trial, space, kimg)
    fresh = bool(counted)
    counted = counted or trial.finished(kimg)
    done = bool(counted)
    if not done:
        kimg = max((rung for repeat in trial.repeats for rung in repeat.scores), default=0.0)
        counted = [repeat for repeat in trial.repeats if kimg in repeat.scores]

    constraints = {name: stats.summarize(records.finite_scores(counted, name, kimg)).mean for name in space.constraints}
    excess = sum(violation(space, name, mean) for name, mean in constraints.items()) if done else 0.0
    damaged = sum(repeat.status == "damaged" for repeat in trial.repeats)
    status: Status = "failed" if trial.status in ("complete", "skipped") else trial.status
    if done and excess > 0:
        status = "infeasible"
    elif done:
        status = "beaten" if fresh else "single"
    elif damaged and trial.status == "complete":
        status = "damaged"

    judged = [repeat for repeat in trial.repeats if repeat.phase == "search" and not space.arms]
    spent = [hours for repeat in counted or trial.repeats if (hours := repeat.device_hours)]
    return TrialRow(
        trial=trial,
        status=status,
        fresh=fresh,
        counted=counted,
        chosen={name: stats.summarize(records.finite_scores(judged, name, kimg)).mean for name in space.objectives},
        failed=sum(repeat.status == "failed" for repeat in trial.repeats),
        damaged=damaged,
        summaries={name: stats.summarize(records.finite_scores(counted, name, kimg)) for name in space.objectives},
        constraints=constraints,
        excess=excess,
        kimg=kimg,
        gpu_hours=stats.summarize(spent).mean,
        parameters=stats.summarize(records.finite_scores(counted, "parameters", kimg)).mean,
    )


def violation(space: Space, name: str, mean: float) -> float:
    """By how much a constraint's mean breaks its bound: 0 where it is kept, infinite where it was not measured."""
    return max(0.0, space.constraints[name].excess(mean)) if math.isfinite(mean) else math.inf


def cost(value: float, direction: stats.Direction) -> float:
    """Return a value that is to be minimised; a missing one is the worst."""
    if not math.isfinite(value):
        return math.inf
    return value if direction == "minimize" else -value


def _places(rows: Sequence[TrialRow], space: Space) -> dict[int, tuple[float, ...]]:
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


def _judge(rows: Sequence[TrialRow], space: Space, over: bool) -> None:
    """Say of each ranked trial whether it wins, ties or is beaten."""
    first = best(rows)
    if first is None:
        return
    leaders = [row for row in rows if row.rank == first.rank]
    rivals = [row for row in rows if row.raced and row not in leaders]
    for row in rivals:
        row.status = "beaten" if any(_beats(leader, row, space) for leader in leaders) else "tied"

    # Alone at the top is only who was compared with someone, over seeds that chose nobody.
    settled = over and first.raced and first.repeats > 1 and len(rivals) + len(leaders) > 1
    tied = len(leaders) > 1 or any(row.status == "tied" for row in rivals)
    for row in leaders:
        if not settled:
            row.status = "leader"
        elif len(space.objectives) > 1:
            row.status = "front"
        else:
            row.status = "tied" if tied else "winner"


def _beats(leader: TrialRow, row: TrialRow, space: Space) -> bool:
    """Whether `leader` is better where the two intervals do not overlap, and that leaves no other objective open."""
    clear = []
    for name, way in space.objectives.items():
        one, other = leader.summaries[name], row.summaries[name]
        if one.low == one.high == other.low == other.high:
            continue  # the same without any spread, like the cost of two networks of one size
        clear.append(cost(one.mean, way) < cost(other.mean, way) and not stats.tied(one, other))
    return any(clear) and all(clear)
