"""The race of the search's best trials over more seeds: which enter it, and which gets the next seed."""

from collections.abc import Mapping, Sequence

from scrimp_platform.search.order import Rank, order, total_excess
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.verdict import SURE, Verdict, judge
from scrimp_spaces.space import Space

FIRST_SEEDS = 2
"""Fresh seeds that each trial of the race gets before any is dropped: one says nothing of the noise."""
LEAST_CHANCE = 0.03
"""A trial is dropped once its probability to be the best is below this. Simulated races that are looked at after every
seed then drop the truly best trial in at most 5% (`tests/test_platform_race.py`)."""


def leaders(trials: Sequence[Trial], space: Space, expected: Mapping[int, Rank] | None = None) -> list[Trial]:
    """Return the trials that enter the race: the best recipes of the search.

    Parameters
    ----------
    trials
        Of the sweep. Of those with the same recipe one races: the one with the most repeats, or the first. One that a
        user has stopped leaves its place to another, unless it has fresh seeds to be judged by.
    space
        With the objectives, the constraints and the number of leaders.
    expected
        How good a model expects each trial to be at the last rung, by number; lower is better. Without it the score of
        the first repeat counts.
    """
    rung = space.budget.rungs_kimg[-1]
    complete = [trial for trial in trials if trial.status == "complete" and rung in trial.repeats[0].rungs]
    complete = [trial for trial in complete if not trial.stopped or len(trial.repeats) > 1]
    distinct: dict[str, Trial] = {}
    for trial in sorted(complete, key=lambda trial: (-len(trial.repeats), trial.number)):
        distinct.setdefault(repr(sorted(trial.params.items())), trial)

    candidates = sorted(distinct.values(), key=lambda trial: trial.number)
    rows = [trial.repeats[0].rungs[rung] for trial in candidates]
    ranking = order(rows, space)
    if expected:
        keys = [(total_excess(row, space), expected[trial.number]) for row, trial in zip(rows, candidates, strict=True)]
        ranking.sort(key=keys.__getitem__)
    return [candidates[i] for i in ranking[: space.budget.leaders]]


def next_trial(raced: Sequence[Trial], space: Space) -> Trial | None:
    """Return the trial of the race that gets the next seed; none if the race needs no more, or has to wait.

    Each gets two seeds first, and nothing is decided before these have ended. Nodes that are free until then train a
    third seed of each, from the leader on. From then on a trial that is almost certainly not the best gets none. Of the
    others that one gets the seed for which p (1 - p) / (n (n + 1)) is largest: p is its probability to be the best,
    which is least certain at 1/2, and with one more than n seeds the variance of its mean falls by s^2 / (n (n + 1)).
    Repeats that wait or run count as seeds. Once the recommended trial is within 2% of the best with a probability of
    0.95, only its own repeats are completed. Arms are compared, so each gets all repeats.
    """
    incomplete = [trial for trial in raced if len(trial.repeats) < space.budget.repeats and not trial.stopped]
    incomplete.sort(key=lambda trial: len(trial.repeats))
    few = [trial for trial in incomplete if space.arms or len(_seeds(trial)) < FIRST_SEEDS]
    if few:
        return few[0]
    if any(repeat.open for trial in raced for repeat in _seeds(trial)[:FIRST_SEEDS]):
        return next((trial for trial in incomplete if len(_seeds(trial)) == FIRST_SEEDS), None)

    verdict = judge(raced, space)
    if verdict is None:  # all break a constraint, perhaps by bad luck
        return next(iter(incomplete), None)

    settled = len(space.objectives) == 1 and verdict.near[verdict.recommended] >= SURE
    if settled:
        return next((trial for trial in incomplete if trial.number == verdict.recommended), None)
    contenders = [trial for trial in incomplete if may_win(trial, verdict)]

    def gain(trial: Trial) -> float:
        probability = verdict.best[trial.number]
        seeds = len(_seeds(trial))
        return probability * (1 - probability) / (seeds * (seeds + 1))

    return max(contenders, key=gain, default=None)


def may_win(trial: Trial, verdict: Verdict) -> bool:
    """Whether a trial stays in the race: it may be the best, or is recommended for another reason."""
    return trial.number == verdict.recommended or verdict.best.get(trial.number, 0.0) >= LEAST_CHANCE


def _seeds(trial: Trial) -> list[Repeat]:
    """Return the repeats that the race has given a trial of a search, whether they have ended or not."""
    return trial.repeats[1:]
