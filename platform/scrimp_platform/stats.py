"""Statistics of repeats: means with 95% intervals, ties, who may still win, Pareto fronts.

Only the standard library and scipy's Student distribution; values are few, so nothing here needs arrays.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimize", "maximize"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A sample's mean with its Student interval; one value has none (nan), so nothing can be said of its spread."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@functools.cache
def quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution."""
    # scipy.stats takes 1.5 s to import; scipy.special has the same function.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def summarize(values: Sequence[float]) -> Summary:
    """Summarise the values of a trial's repeats; without values everything is nan."""
    n = len(values)
    mean = statistics.fmean(values) if n else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = statistics.stdev(values)
    half = quantile((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def tied(one: Summary, other: Summary) -> bool:
    """Whether two intervals overlap. A single value has no interval, so it is tied with everything."""
    if one.n < 2 or other.n < 2:
        return True
    return one.low <= other.high and other.low <= one.high


def worse(values: Sequence[float], best: Sequence[float], pooled: float, freedom: int, direction: Direction) -> bool:
    """Whether `values` are worse than `best` beyond doubt: a one-sided t-test at 95% with the pooled deviation.

    The deviation is pooled over all trials of the race, since two or three repeats say little of their own.
    """
    if not values or not best or freedom < 1:
        return False
    gap = statistics.fmean(values) - statistics.fmean(best)
    if direction == "maximize":
        gap = -gap
    return gap > quantile(CONFIDENCE, freedom) * pooled * math.sqrt(1 / len(values) + 1 / len(best))


def pool(samples: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the pooled standard deviation of several samples and its degrees of freedom."""
    freedom = sum(len(sample) - 1 for sample in samples if len(sample) > 1)
    if freedom == 0:
        return math.nan, 0
    squares = sum(statistics.variance(sample) * (len(sample) - 1) for sample in samples if len(sample) > 1)
    return math.sqrt(squares / freedom), freedom


def dominates(one: Mapping[str, float], other: Mapping[str, float], directions: Mapping[str, Direction]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better."""
    gaps = [
        (one[name] - other[name]) * (1 if direction == "minimize" else -1) for name, direction in directions.items()
    ]
    return all(gap <= 0 for gap in gaps) and any(gap < 0 for gap in gaps)


def fronts(points: Sequence[Mapping[str, float]], directions: Mapping[str, Direction]) -> list[int]:
    """Return the number of each point's Pareto front, 0 for the non-dominated (Deb's non-dominated sorting).

    With one objective this is the order of the values, equal values sharing a front.
    """
    rank = [-1] * len(points)
    front = 0
    while -1 in rank:
        left = [i for i, r in enumerate(rank) if r == -1]
        for i in [i for i in left if not any(dominates(points[j], points[i], directions) for j in left)]:
            rank[i] = front
        front += 1
    return rank
