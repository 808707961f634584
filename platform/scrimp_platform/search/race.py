"""The race of the search's best trials over more seeds: which enter it, and which gets the next seed."""

from collections.abc import Iterator, Mapping, Sequence

from scrimp_platform.search import records, stats
from scrimp_platform.search.order import order, violation
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space

MIN_REPEATS_BEFORE_ELIMINATION = 2
"""Finished repeats of the race, each with a fresh seed, before a trial may be dropped from it."""


def leaders(trials: Sequence[Trial], space: Space, expected: Mapping[int, float] | None = None) -> list[Trial]:
    """Return the trials that enter the race: the best of the search, by their first repeat at the last rung."""
    rung = space.budget.rungs_kimg[-1]
    complete = [trial for trial in trials if trial.status == "complete" and rung in trial.repeats[0].rungs]
    rows = [trial.repeats[0].rungs[rung] for trial in complete]
    ranking = order(rows, space)
    if expected:
        ranking = sorted(ranking, key=lambda i: (violation(rows[i], space), expected[complete[i].number]))
    distinct: list[Trial] = []
    for i in ranking:
        if all(complete[i].params != other.params for other in distinct):
            distinct.append(complete[i])
    return distinct[: space.budget.leaders]


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
