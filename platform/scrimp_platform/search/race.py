"""Which trials continue: successive halving at a rung of the search, and the race of the leaders over more seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence

from scrimp_platform.search import records, stats
from scrimp_platform.search.records import Trial
from scrimp_platform.search.study import excesses
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow

MIN_REPEATS_BEFORE_ELIMINATION = 2
"""Finished repeats of the race, each with a fresh seed, before a trial may be dropped from it."""


def order(rows: Sequence[MetricsRow], space: Space) -> list[int]:
    """Return the positions of `rows` from best to worst.

    They are ordered by how much they break the constraints, then by the Pareto fronts of several objectives, then by
    the first objective.
    """
    violations = []
    for row in rows:
        excess = excesses(space, row).values()
        violations.append(sum(max(value, 0.0) for value in excess))

    points = [{name: row.value(name) for name in space.objectives} for row in rows]
    fronts = [0] * len(points)
    if len(space.objectives) > 1:
        fronts = stats.fronts(points, space.objectives)
    first, direction = next(iter(space.objectives.items()))
    sign = 1 if direction == "minimize" else -1
    return sorted(range(len(rows)), key=lambda i: (violations[i], fronts[i], sign * points[i][first]))


def survives(row: MetricsRow, others: Sequence[MetricsRow], space: Space) -> bool:
    """Whether a trial continues after a rung: it is among the best 1/reduction of those that have reached it (ASHA).

    Li et al. 2020, "A system for massively parallel hyperparameter tuning", in the variant that stops trials
    and never pauses them: the first to reach a rung always continues.
    """
    places = math.ceil((len(others) + 1) / space.budget.reduction)
    return order([row, *others], space).index(0) < places


def leaders(trials: Sequence[Trial], space: Space) -> list[Trial]:
    """Return the trials that enter the race: the best of the search, by their first repeat at the last rung."""
    rung = space.budget.rungs_kimg[-1]
    complete = [trial for trial in trials if trial.status == "complete" and rung in trial.repeats[0].rungs]
    rows = [trial.repeats[0].rungs[rung] for trial in complete]
    ranking = order(rows, space)
    return [complete[i] for i in ranking[: space.budget.leaders]]


def next_trial(raced: Sequence[Trial], space: Space) -> Trial | None:
    """Return the trial of the race that gets the next repeat: of those that may still win, the one with the fewest.

    As in SMAC3's intensification, a trial is repeated only while it may win. None means that all of those have as many
    repeats as the budget allows. Arms are compared, so each gets all repeats.
    """
    incomplete = [trial for trial in raced if len(trial.repeats) < space.budget.repeats]
    incomplete.sort(key=lambda trial: len(trial.repeats))
    candidates = iter(incomplete) if space.arms else contenders(incomplete, raced, space)
    return next(candidates, None)


def contenders(trials: Sequence[Trial], raced: Sequence[Trial], space: Space) -> Iterator[Trial]:
    """Yield those of `trials` that may still win the race among the trials in `raced`.

    A trial is eliminated once another one is significantly better in some objective, and significantly better or
    exactly equal in every other. The scores by which the search chose the trials do not count.
    """
    rung = space.budget.rungs_kimg[-1]
    counted = {trial.number: records.unbiased_repeats(trial, space, rung) for trial in raced}
    samples: dict[str, dict[int, list[float]]] = {name: {} for name in space.objectives}
    for name, by_trial in samples.items():
        for number, repeats in counted.items():
            by_trial[number] = records.finite_scores(repeats, name, rung)

    def may_win(trial: Trial) -> bool:
        if len(counted[trial.number]) < MIN_REPEATS_BEFORE_ELIMINATION:
            return True
        rivals = [rival for rival in raced if rival is not trial]
        return not any(_beaten(trial.number, rival.number, samples, space) for rival in rivals)

    return filter(may_win, trials)


def _beaten(trial: int, rival: int, samples: Mapping[str, Mapping[int, Sequence[float]]], space: Space) -> bool:
    """Whether `rival` is significantly better than `trial` in some objective, and in the others better or equal."""
    significantly_worse = False
    for name, direction in space.objectives.items():
        own = samples[name][trial]
        other = samples[name][rival]
        if own and set(own) == set(other) and len(set(own)) == 1:
            continue  # the same value every time, such as the cost of two networks of one size
        std, freedom = stats.pool(list(samples[name].values()))
        if not stats.worse(own, other, std, freedom, direction):
            return False
        significantly_worse = True
    return significantly_worse
