"""The ranking of a sweep's trials, and the status of each."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scrimp_platform.search import posterior, records, stats, verdict
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.stats import Summary
from scrimp_platform.search.verdict import Verdict
from scrimp_spaces.space import Space

Status = Literal[
    "recommended",
    "leader",
    "front",
    "tied",
    "beaten",
    "single",
    "infeasible",
    "running",
    "paused",
    "pruned",
    "failed",
    "damaged",
]

MEANINGS: dict[Status, str] = {
    "recommended": "the best of the race, or of those that cannot be told from it the one that the space prefers",
    "leader": "best so far; the race is not over, or there was none",
    "front": "no other trial is better in every objective",
    "tied": "cannot be told from the best: it is worse with a probability below 0.95",
    "beaten": "worse than the best with a probability of 0.95 or more",
    "single": "trained to the end once; its score is the one that the search chose it by, so it is biased",
    "infeasible": "violates a constraint",
    "running": "its first repeat has not ended",
    "paused": "waits at a rung, and continues if it is among the best there; the score is that of the rung",
    "pruned": "stopped early; the score is that of the rung it reached",
    "failed": "its training failed",
    "damaged": "its records are damaged or missing, so it is left out",
}
_ORDER: tuple[Status, ...] = ("beaten", "single", "infeasible", "running", "paused", "pruned", "failed", "damaged")


@dataclass
class TrialRow:
    """One trial on the leaderboard.

    What is stated rests on the repeats in `counted`, at `kimg`. For a trial of the race these are its finished repeats
    with fresh seeds, at the last rung (`fresh`); the mean and the interval in its summaries are those of the posterior
    (`search/posterior.py`). For any other trial it is the repeat of the search, at the highest rung that it reached.

    `chosen_at` holds the score of the search for every trial, by objective: it is shown, but is in no mean of a raced
    trial. `probability` is that of a raced trial to be within 2% of the best of the race, `probability_best` to be the
    best itself; with several objectives both say that no other trial dominates it. `gpu_hours` is the median time of
    the counted repeats in device-hours, each with all of the reference and proxy that it needs, `parameters` the size
    of the network. `excess` sums by how much the constraints' means violate their bounds; it is infinite if one was not
    measured.
    """

    trial: Trial
    status: Status
    fresh: bool
    counted: list[Repeat]
    chosen_at: dict[str, float]
    failed: int
    damaged: int
    summaries: dict[str, Summary]
    constraints: dict[str, float]
    excess: float
    kimg: float
    gpu_hours: float
    parameters: float
    probability: float = math.nan
    probability_best: float = math.nan
    rank: int = 0

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    @property
    def repeat_count(self) -> int:
        """Number of repeats in the summaries."""
        return len(self.counted)

    @property
    def raced(self) -> bool:
        """Whether it takes part in the verdict: it keeps the constraints, and its scores are those of fresh seeds."""
        return self.fresh and self.status != "infeasible"

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end at least once."""
        return self.status not in ("running", "paused", "pruned", "failed", "damaged")


def rank(trials: Sequence[Trial], space: Space) -> list[TrialRow]:
    """Order the trials from best to worst.

    Trials of the race come first: the recommended one, then the others by their means over fresh seeds at the last
    rung. Then come trials that were trained to the end only in the search, by the score that the curve model expects of
    them, or else by their own; then those that violate a constraint, by how much; then those not trained to the end
    (running, paused, pruned, failed), by the rung they reached and their score there. With several objectives the
    Pareto front of the means replaces the mean. Trials that are equal in all of this share a rank.
    """
    from scrimp_platform.search.curves import expected_scores  # it takes half a second, which `scrimp status` saves

    rows = [_row(trial, space) for trial in trials]
    judged = verdict.judge([row.trial for row in rows if row.raced], space)
    if judged:
        for row in rows:
            row.summaries = judged.summaries.get(row.number, row.summaries)
            row.probability = judged.near.get(row.number, math.nan)
            row.probability_best = judged.best.get(row.number, math.nan)

    sort_keys = _sort_keys(rows, space, judged, expected_scores(trials, space))
    ranks = {key: i for i, key in enumerate(sorted(set(sort_keys.values())), 1)}
    for row in rows:
        row.rank = ranks[sort_keys[row.number]]

    first, direction = next(iter(space.objectives.items()))
    rows.sort(key=lambda row: (row.rank, as_minimized(row.summaries[first].mean, direction), row.number))
    is_open = any(trial.unfinished or any(repeat.open for repeat in trial.repeats) for trial in trials)
    is_over = not is_open and not any(map(may_hide_best, trials))
    _set_statuses(rows, space, judged, is_over)
    return rows


def may_hide_best(trial: Trial) -> bool:
    """Whether a trial has damaged records and may be the best, so that another one would take its place."""
    damaged = trial.status == "damaged" or any(repeat.status == "damaged" for repeat in trial.repeats)
    return damaged and trial.status not in ("pruned", "failed")


def best(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the first row if its trial was trained to the end and keeps the constraints."""
    if rows and rows[0].finished and rows[0].status != "infeasible":
        return rows[0]
    return None


def typical_repeat(row: TrialRow, space: Space) -> Repeat:
    """Return the repeat of a trial whose score is nearest to the trial's mean; the best one would be misleading."""
    name = next(iter(space.objectives))
    mean = row.summaries[name].mean
    return min(row.counted, key=lambda repeat: abs(repeat.score(name, row.kimg) - mean))


def best_repeat(rows: Sequence[TrialRow], space: Space) -> Repeat | None:
    """Return the typical repeat of the best trial; None without one, or while a damaged trial may be better."""
    first = best(rows)
    if first is None or any(may_hide_best(row.trial) for row in rows):
        return None
    return typical_repeat(first, space)


def _row(trial: Trial, space: Space) -> TrialRow:
    # The repeats that count: fresh seeds, else those trained to the end, else those at the highest rung reached.
    kimg = space.budget.rungs_kimg[-1]
    counted = records.unbiased_repeats(trial, space, kimg)
    fresh = bool(counted)
    counted = counted or trial.finished_repeats(kimg)
    finished = bool(counted)
    if not finished:
        kimg = max((rung for repeat in trial.repeats for rung in repeat.rungs), default=0.0)
        counted = [repeat for repeat in trial.repeats if kimg in repeat.rungs]

    def summarize(repeats: list[Repeat], name: str) -> Summary:
        return stats.summarize(records.finite_scores(repeats, name, kimg))

    constraints = {name: summarize(counted, name).mean for name in space.constraints}
    excess = verdict.excess(counted, space) if finished else 0.0
    damaged = sum(repeat.status == "damaged" for repeat in trial.repeats)
    status: Status = "failed" if trial.status in ("complete", "skipped") else trial.status
    if finished and excess > 0:
        status = "infeasible"
    elif finished:
        status = "beaten" if fresh else "single"
    elif damaged and trial.status == "complete":
        status = "damaged"

    judged = [repeat for repeat in trial.repeats if repeat.phase == "search" and not space.arms]
    cost = verdict.repeat_cost(counted or trial.repeats, kimg)
    summaries = {name: summarize(counted, name) for name in space.objectives}
    if fresh and status == "infeasible":  # it is compared with no other trial
        for name, direction in space.objectives.items():
            own = posterior.of_scores([records.finite_scores(counted, name, kimg)], direction)
            summaries[name] = own.summaries[0]
    return TrialRow(
        trial=trial,
        status=status,
        fresh=fresh,
        counted=counted,
        chosen_at={name: summarize(judged, name).mean for name in space.objectives},
        failed=sum(repeat.status == "failed" for repeat in trial.repeats),
        damaged=damaged,
        summaries=summaries,
        constraints=constraints,
        excess=excess,
        kimg=kimg,
        gpu_hours=cost.hours,
        parameters=cost.parameters,
    )


def as_minimized(value: float, direction: stats.Direction) -> float:
    """Return a score with the sign for which lower is better; a missing score is the worst."""
    if not math.isfinite(value):
        return math.inf
    return value if direction == "minimize" else -value


def _sort_keys(
    rows: Sequence[TrialRow], space: Space, judged: Verdict | None, expected: Mapping[int, float] | None
) -> dict[int, tuple[float, ...]]:
    """Return the sort key of each trial: the class of its status, then rung or violation, then its Pareto front.

    With one objective a front is a place by the mean, and the recommended trial is before the first.
    """
    groups: dict[tuple[int, float], list[TrialRow]] = defaultdict(list)
    for row in rows:
        if row.status == "infeasible":
            subclass = row.excess
        elif row.finished:
            subclass = 0.0
        else:
            subclass = -row.kimg
        groups[_ORDER.index(row.status), subclass].append(row)

    sort_keys = {}
    directions: dict[str, stats.Direction] = dict.fromkeys(space.objectives, "minimize")
    for group_key, group in groups.items():
        fronts = stats.fronts([_point(row, space) for row in group], directions)
        for row, front in zip(group, fronts, strict=True):
            sort_keys[row.number] = (*group_key, front)
    for row in rows:
        if expected and row.status == "single":
            sort_keys[row.number] = (*sort_keys[row.number][:-1], expected[row.number])
    if judged and len(space.objectives) == 1:
        *group_key, _ = sort_keys[judged.recommended]
        sort_keys[judged.recommended] = (*group_key, -1)
    return sort_keys


def _point(row: TrialRow, space: Space) -> dict[str, float]:
    """Return the means of a trial by objective, signed so that lower is better."""
    return {name: as_minimized(row.summaries[name].mean, direction) for name, direction in space.objectives.items()}


def _set_statuses(rows: Sequence[TrialRow], space: Space, judged: Verdict | None, is_over: bool) -> None:
    """Set the status of the trials that were compared with the best: recommended, leader, front, tied or beaten."""
    first = best(rows)
    if first is None:
        return
    heads = [row for row in rows if row.rank == first.rank]
    if judged is None:
        for row in heads:
            row.status = "leader"
        return

    raced = [row for row in rows if row.raced]
    for row in raced:
        tied = row.number in judged.tied
        if len(space.objectives) > 1:
            tied = judged.best[row.number] > 1 - verdict.SURE
        row.status = "tied" if tied else "beaten"

    # A trial is recommended for good only if it was compared with another one, over seeds that show the noise.
    is_settled = is_over and judged.is_measured and first.repeat_count > 1 and len(raced) > 1
    for row in heads:
        if not is_settled:
            row.status = "leader"
        elif len(space.objectives) > 1:
            row.status = "front"
        else:
            row.status = "recommended"
