"""Which of the raced trials is recommended, and how sure that is: by the posterior of their scores over fresh seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scrimp_platform.search import posterior, records, stats
from scrimp_platform.search.posterior import Array, Posterior
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.stats import Summary
from scrimp_spaces.space import Space

MARGIN = 0.02
"""A trial is as good as the best one if its score is worse by at most this share."""
SAME_HOURS = 0.1
"""Two trials take the same time if it differs by at most this share: machines and what else runs there make more of a
difference between repeats of one recipe."""
SURE = 0.95
"""Probability from which on a trial counts as worse than another, or as good as the best."""


@dataclass(frozen=True)
class Cost:
    """What a repeat of a trial costs to the end: its device-hours, and the parameters; nan if not known."""

    hours: float
    parameters: float


@dataclass(frozen=True)
class Verdict:
    """What the fresh seeds say of the trials that keep the constraints; the keys are the numbers of the trials."""

    recommended: int
    """The best mean, or, where the space prefers the cheapest, the cheapest trial that cannot be told from it and whose
    mean is as good to within 2%. With several objectives the best mean of the first, since what a trial costs may be
    among them."""
    tied: list[int]
    """The trial with the best mean of the first objective, and those that cannot be told from it: they are worse with
    a probability below 0.95. In the order of their means."""
    best: dict[int, float]
    """Probability to be the best; with several objectives, that no other trial dominates it."""
    near: dict[int, float]
    """Probability to be within 2% of the best; with several objectives as `best`."""
    summaries: dict[int, dict[str, Summary]]
    """Means and intervals by objective."""
    is_measured: bool
    """Whether a trial has two seeds, so that the noise of the first objective is known."""


def judge(trials: Sequence[Trial], space: Space) -> Verdict | None:
    """Return the verdict on trials of the race; none while none of them has a finished repeat within the constraints.

    A trial without a finished repeat has its chances, too, but is not recommended yet.
    """
    kimg = space.budget.rungs_kimg[-1]
    counted = {trial.number: records.unbiased_repeats(trial, space, kimg) for trial in trials}
    counted = {number: repeats for number, repeats in counted.items() if not repeats or not excess(repeats, space)}
    numbers = list(counted)
    if not numbers:
        return None

    posteriors: dict[str, Posterior] = {}
    for name, direction in space.objectives.items():
        samples = [records.finite_scores(repeats, name, kimg) for repeats in counted.values()]
        posteriors[name] = posterior.of_scores(samples, direction)

    name, direction = next(iter(space.objectives.items()))
    first = posteriors[name]
    sign = 1 if direction == "minimize" else -1
    scored = [place for place, summary in enumerate(first.summaries) if summary.n]
    by_mean = sorted(scored, key=lambda place: sign * first.summaries[place].mean)
    if not by_mean:
        return None

    tied = [by_mean[0]]
    tied += [place for place in by_mean[1:] if first.worse(place, by_mean[0]) < SURE]
    recommended = numbers[by_mean[0]]
    if space.prefer == "cheapest" and len(space.objectives) == 1 and first.freedom:
        as_good = [numbers[place] for place in tied if first.excess(place, by_mean[0]) <= MARGIN]
        recommended = cheapest({number: repeat_cost(counted[number], kimg) for number in as_good})[0]

    if len(space.objectives) == 1:
        best = first.near_best(0.0)
        near = first.near_best(MARGIN)
    else:
        best = near = _undominated([own.draws for own in posteriors.values()])
    summaries: dict[int, dict[str, Summary]] = {}
    for place, number in enumerate(numbers):
        summaries[number] = {name: own.summaries[place] for name, own in posteriors.items()}
    return Verdict(
        recommended=recommended,
        tied=[numbers[place] for place in tied],
        best=dict(zip(numbers, best, strict=True)),
        near=dict(zip(numbers, near, strict=True)),
        summaries=summaries,
        is_measured=first.freedom > 0,
    )


def cheapest(costs: Mapping[int, Cost]) -> list[int]:
    """Return the trials of which no other one is cheaper, in their order.

    A cheaper one takes fewer device-hours. Where they are equal to within 10%, or some are missing, it has fewer
    parameters.
    """
    hours = [own.hours for own in costs.values()]
    candidates = dict(costs)
    if all(map(math.isfinite, hours)):
        candidates = {number: own for number, own in costs.items() if own.hours <= (1 + SAME_HOURS) * min(hours)}
    sizes = [own.parameters for own in candidates.values()]
    if not all(map(math.isfinite, sizes)):
        return list(candidates)
    return [number for number, own in candidates.items() if own.parameters == min(sizes)]


def repeat_cost(repeats: Sequence[Repeat], kimg: float) -> Cost:
    """Return what one of these repeats costs, up to this rung and with all of the reference and proxy it needs.

    The hours are the median: one repeat on a machine that was busy with something else changes nothing.
    """
    hours = [repeat.recipe_hours for repeat in repeats if repeat.recipe_hours]
    return Cost(
        hours=statistics.median(hours) if hours else math.nan,
        parameters=stats.summarize(records.finite_scores(repeats, "parameters", kimg)).mean,
    )


def excess(repeats: Sequence[Repeat], space: Space) -> float:
    """Return by which shares of their limits the constraints' means over these repeats break them, in all."""
    kimg = space.budget.rungs_kimg[-1]
    means = {name: stats.summarize(records.finite_scores(repeats, name, kimg)).mean for name in space.constraints}
    return sum(violation(space, name, mean) for name, mean in means.items())


def violation(space: Space, name: str, mean: float) -> float:
    """Return by which share of its limit a mean violates a constraint; infinite if the score was not measured."""
    if not math.isfinite(mean):
        return math.inf
    return max(0.0, space.constraints[name].excess(mean))


def _undominated(draws: Sequence[Array]) -> list[float]:
    """Return the share of draws in which no other trial is better in some objective and in none worse."""
    own = np.stack(draws, axis=-1)  # [draws, trials, objectives]
    shares: list[float] = []
    for place in range(own.shape[1]):
        point = own[:, place : place + 1]
        dominated = (own <= point).all(axis=-1) & (own < point).any(axis=-1)
        shares.append(float(np.mean(~dominated.any(axis=-1))))
    return shares
