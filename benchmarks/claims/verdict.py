"""What a comparison of two arms shows: a difference of means with its 95% interval over seeds, and the verdict."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.claims.claim import Comparison

CONFIDENCE = 0.95

Verdict = Literal["supported", "not supported", "undecided at this scale"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; nan where there are fewer than two seeds on either side."""

    mean: float
    low: float
    high: float


def difference(arm: Sequence[float], against: Sequence[float], factor: float = 1.0) -> Interval:
    """Estimate mean(arm) - factor * mean(against) by Welch's method: neither spread is taken to be the other's.

    Where no seed changes the scores, as with FLOPs, the interval is a point.
    """
    if min(len(arm), len(against)) < 2:
        return Interval(math.nan, math.nan, math.nan)
    mean = statistics.fmean(arm) - factor * statistics.fmean(against)
    parts = [(statistics.variance(arm) / len(arm), len(arm) - 1)]
    parts.append((factor**2 * statistics.variance(against) / len(against), len(against) - 1))
    error = math.sqrt(sum(part for part, _ in parts))
    if error == 0:
        return Interval(mean, mean, mean)
    # Welch-Satterthwaite, with shares of the squared error so that large scores (FLOPs) do not overflow.
    freedom = 1 / sum((part / error**2) ** 2 / free for part, free in parts)
    half = _quantile((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(mean, mean - half, mean + half)


def judge(comparison: Comparison, arm: Sequence[float], against: Sequence[float]) -> Verdict:
    """Say whether the values bear out what the comparison expects.

    A margin enters as a factor on the other arm's mean, so that the spread of that mean is in the interval too.
    """
    upwards = comparison.expect in ("higher", "no lower")
    factor = 1 - comparison.margin if upwards else 1 + comparison.margin
    gap = difference(arm, against, factor)
    low, high = (gap.low, gap.high) if upwards else (-gap.high, -gap.low)
    if low > 0:
        return "supported"
    return "not supported" if high < 0 else "undecided at this scale"


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on all comparisons together: each must be supported, and one that is refuted refutes."""
    found = set(verdicts)
    if found == {"supported"}:
        return "supported"
    return "not supported" if "not supported" in found else "undecided at this scale"


def _quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
