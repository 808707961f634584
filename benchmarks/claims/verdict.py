"""What the scores of a claim's arms show: effects with intervals, the regime, and the verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.claims.claim import Budget, Claim, Comparison, Criterion, rung_at
from benchmarks.claims.records import Curves

CONFIDENCE = 0.95
LEVEL = 0.05

Side = Literal["holds", "fails", "undecided"]
Verdict = Literal[
    "supported",
    "effect supported, mechanism not shown",
    "not supported",
    "undecided",
    "out of its regime: undecided",
]
"""In the order of what they say for the claim."""


@dataclass(frozen=True)
class Effect:
    """An arm's mean over the other's as a ratio, or their difference, with its 95% interval and a test."""

    scale: Literal["ratio", "difference"]
    """Which of the two."""
    estimate: float
    """Ratio of geometric means, or difference of means; nan where there are fewer than two seeds on either side."""
    low: float
    high: float
    """The interval."""
    p: float
    """Of a two-sided test that the effect lies exactly on the border of what is expected; 1 if there is none."""
    expected: bool
    """Whether the estimate is on the expected side of that border."""

    @property
    def side(self) -> Side:
        """What the test says by itself, uncorrected."""
        return side(self, self.p)


def side(effect: Effect, p: float) -> Side:
    """Say on which side of its border an effect is, given a p that may be corrected."""
    if p >= LEVEL:
        return "undecided"
    return "holds" if effect.expected else "fails"


def estimate(comparison: Comparison, arm: Sequence[float], against: Sequence[float]) -> Effect:
    """Estimate an effect by Welch's method, of a ratio from the logarithms of the values.

    The border of `lower` and `higher` is a ratio of 1 or a difference of 0; a margin moves it. Where no seed changes
    the scores, as with FLOPs, the interval is a point and p is 0.
    """
    ratio = comparison.scale == "ratio"
    if min(len(arm), len(against)) < 2 or (ratio and min(*arm, *against) <= 0):
        return Effect(comparison.scale, math.nan, math.nan, math.nan, 1.0, False)
    ours, theirs = (list(map(math.log, side)) if ratio else list(side) for side in (arm, against))

    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    error, freedom = _welch(ours, theirs)
    half = _quantile((1 + CONFIDENCE) / 2, freedom) * error if error else 0.0
    border = _border(comparison)
    upwards = comparison.expect in ("higher", "no lower")
    expected = mean > border if upwards else mean < border
    ends = [mean, mean - half, mean + half]
    numbers = [math.exp(end) for end in ends] if ratio else ends
    return Effect(comparison.scale, *numbers, p=_p(mean - border, error, freedom), expected=expected)


def _border(comparison: Comparison) -> float:
    sign = {"no higher": 1, "no lower": -1}.get(comparison.expect, 0)
    margin = sign * comparison.margin
    return math.log1p(margin) if comparison.scale == "ratio" else margin


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and its degrees of freedom."""
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (ours, theirs)]
    squared = sum(part for part, _ in parts)
    if squared == 0:
        return 0.0, math.inf
    return math.sqrt(squared), 1 / sum((part / squared) ** 2 / free for part, free in parts)


def _p(gap: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr

    if error == 0:
        return 0.0 if gap else 1.0
    return float(2 * stdtr(freedom, -abs(gap) / error))


def _quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def at_end(comparison: Comparison, curves: Curves, budget: Budget) -> Effect:
    """Estimate an effect where the comparison asks for it, which is at the last rung unless it says otherwise."""
    arm = curves.values(comparison.arm, comparison.score, rung_at(budget, comparison.at))
    against = curves.values(comparison.against, comparison.score, rung_at(budget, comparison.against_at))
    return estimate(comparison, arm, against)


def at_rungs(comparison: Comparison, curves: Curves, budget: Budget) -> dict[float, Effect]:
    """Estimate an effect at each rung; none of a comparison between different lengths."""
    if (comparison.at, comparison.against_at) != (1, 1):
        return {}
    return {
        rung: estimate(comparison, *(curves.values(arm, comparison.score, rung) for arm in comparison.arms))
        for rung in budget.rungs_kimg
    }


@dataclass(frozen=True)
class Check:
    """A criterion of the regime, checked at a rung."""

    criterion: Criterion
    value: float
    """The mean, or by what share it has changed since the rung before; nan where there is none."""
    met: bool
    """Whether it is met."""


def check(criterion: Criterion, curves: Curves, budget: Budget, rung: float) -> Check:
    """Check a criterion at a rung."""
    mean = _mean(curves.values(criterion.arm, criterion.score, rung))
    if criterion.at_least is not None:
        return Check(criterion, mean, mean >= criterion.at_least)
    assert criterion.settled is not None
    place = budget.rungs_kimg.index(rung)
    before = _mean(curves.values(criterion.arm, criterion.score, budget.rungs_kimg[place - 1])) if place else math.nan
    change = abs(mean - before) / abs(before) if before else math.nan
    return Check(criterion, change, change <= criterion.settled)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def checks(claim: Claim, curves: Curves, budget: Budget, rung: float | None = None) -> list[Check]:
    """Check the whole regime at a rung, by default the last one."""
    return [check(each, curves, budget, rung or budget.rungs_kimg[-1]) for each in claim.regime]


def judge(claim: Claim, curves: Curves, budget: Budget, p: float) -> Verdict:
    """Return the verdict on a claim, given the corrected p of its primary comparison.

    The regime comes first. Then the primary comparison decides, and if it holds each of the controls has to hold as
    well, or its mechanism is not shown. Of several controls that must all hold none needs a correction.
    """
    assert claim.primary
    if not all(each.met for each in checks(claim, curves, budget)):
        return "out of its regime: undecided"
    if any(curves.diverged(arm) for arm in claim.primary.arms):
        return "undecided"

    shown_side = side(at_end(claim.primary, curves, budget), p)
    if shown_side != "holds":
        return "not supported" if shown_side == "fails" else "undecided"
    shown = all(at_end(control, curves, budget).side == "holds" for control in claim.controls)
    return "supported" if shown else "effect supported, mechanism not shown"


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's corrected p values: of any true hypotheses one falls below 5% in at most 5% of cases."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(ps) - place) * p))
        corrected[name] = largest
    return corrected
