"""Who goes on: successive halving at a rung of the search, and the race of the leaders over further seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scrimp_platform import stats
from scrimp_platform.records import Trial
from scrimp_platform.study import excesses
from scrimp_spaces.space import Space

FAIR = 3
"""Repeats before a trial may be dropped from the race: the interval of two spans thirteen deviations."""


def order(scores: Sequence[Mapping[str, Any]], space: Space) -> list[int]:
    """Return the positions of `scores` from best to worst.

    What keeps the constraints comes before what breaks them, by how much; then the Pareto fronts of the
    objectives (with one objective: its value); then the first objective.
    """
    violations = [sum(max(excess, 0.0) for excess in excesses(space, score).values()) for score in scores]
    points = [{name: float(score[name]) for name in space.objectives} for score in scores]
    fronts = stats.fronts(points, space.objectives) if len(space.objectives) > 1 else [0] * len(points)
    first, direction = next(iter(space.objectives.items()))
    sign = 1 if direction == "minimize" else -1
    return sorted(range(len(scores)), key=lambda i: (violations[i], fronts[i], sign * points[i][first]))


def survives(scores: Mapping[str, Any], others: Sequence[Mapping[str, Any]], space: Space) -> bool:
    """Whether a trial goes on after a rung: it is among the best 1/reduction of those that got there (ASHA).

    Li et al. 2020, "A system for massively parallel hyperparameter tuning", in the form that stops trials
    and never pauses them: the first to reach a rung always goes on.
    """
    places = math.ceil((len(others) + 1) / space.budget.reduction)
    return order([scores, *others], space).index(0) < places


def leaders(trials: Sequence[Trial], space: Space) -> list[Trial]:
    """Return the trials that enter the race: the best of the search, by their first repeat at the last rung."""
    rung = space.budget.rungs_kimg[-1]
    complete = [trial for trial in trials if trial.status == "complete"]
    ranking = order([trial.repeats[0].scores[rung] for trial in complete], space)
    return [complete[i] for i in ranking[: space.budget.leaders]]


def next_trial(field: Sequence[Trial], space: Space) -> Trial | None:
    """Return the trial of the race that gets the next repeat: of those that may still win, the one with the fewest.

    As in SMAC3's intensification a trial is repeated only while it may win; none when all that may have
    every repeat that the budget allows. Arms are compared, so each gets them all.
    """
    short = [trial for trial in field if len(trial.repeats) < space.budget.repeats]
    short.sort(key=lambda trial: len(trial.repeats))
    return next(iter(short) if space.arms else contenders(short, field, space), None)


def contenders(trials: Sequence[Trial], field: Sequence[Trial], space: Space) -> Iterator[Trial]:
    """Yield those of `trials` that may win: no other of the race is better in every objective beyond doubt."""
    rung = space.budget.rungs_kimg[-1]
    samples = {
        objective: {rival.number: rival.finals(objective, rung) for rival in field} for objective in space.objectives
    }
    pools = {objective: stats.pool(list(values.values())) for objective, values in samples.items()}
    for trial in trials:
        beaten = len(trial.repeats) >= FAIR and any(
            all(
                stats.worse(samples[name][trial.number], samples[name][rival.number], *pools[name], direction)
                for name, direction in space.objectives.items()
            )
            for rival in field
            if rival is not trial
        )
        if not beaten:
            yield trial
