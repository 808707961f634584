"""Statistics of paired outcomes: the same seeds, the same surfaces, two methods."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its bootstrap interval, and the p of a two-sided paired t-test."""

    mean: float
    low: float
    high: float
    p: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare two samples of the same seeds; below 0 means that ours are lower."""
    differences = np.array(ours) - np.array(theirs)
    if len(differences) < 2:
        return Difference(statistics.fmean(differences), math.nan, math.nan, math.nan)
    draws = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    means = differences[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    error = float(stats.sem(differences))
    p = 2 * float(stats.t.sf(abs(differences.mean()) / error, len(differences) - 1)) if error else 1.0
    return Difference(float(differences.mean()), float(low), float(high), p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values: of any true hypotheses one falls below 5% in at most 5% of cases."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected = [0.0] * len(ps)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[i]))
        corrected[i] = largest
    return corrected


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share."""
    interval = stats.binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
