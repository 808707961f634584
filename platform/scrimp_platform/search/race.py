"""Who goes on: successive halving at a rung of the search, and the race of the leaders over further seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scrimp_platform.search import records, stats
from scrimp_platform.search.records import Trial
from scrimp_platform.search.study import excesses
from scrimp_spaces.space import Space

MIN_REPEATS_BEFORE_ELIMINATION = 2
"""Finished repeats of the race, each with a fresh seed, before a trial may be dropped from it."""


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
    complete = [trial for trial in trials if trial.status == "complete" and rung in trial.repeats[0].scores]
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
    """Yield those of `trials` that may still win the race among the trials of `field`.

    A trial is out once another one is surely better in some objective, and surely better or exactly equal in every
    other. The scores by which the search chose the trials do not count.
    """
    rung = space.budget.rungs_kimg[-1]
    counted = {trial.number: records.counted(trial, space, rung) for trial in field}
    samples = {
        name: {number: records.values(repeats, name, rung) for number, repeats in counted.items()}
        for name in space.objectives
    }

    def may_win(trial: Trial) -> bool:
        if len(counted[trial.number]) < MIN_REPEATS_BEFORE_ELIMINATION:
            return True
        rivals = [rival for rival in field if rival is not trial]
        return not any(_beaten(trial.number, rival.number, samples, space) for rival in rivals)

    return filter(may_win, trials)


def _beaten(trial: int, rival: int, samples: Mapping[str, Mapping[int, Sequence[float]]], space: Space) -> bool:
    """Whether `rival` is surely better than `trial` in some objective, and in the others too or exactly equal."""
    surely_worse = False
    for name, direction in space.objectives.items():
        own = samples[name][trial]
        other = samples[name][rival]
        if own and set(own) == set(other) and len(set(own)) == 1:
            continue  # the same value every time, such as the cost of two networks of one size
        if not stats.worse(own, other, *stats.pool(list(samples[name].values())), direction):
            return False
        surely_worse = True
    return surely_worse
