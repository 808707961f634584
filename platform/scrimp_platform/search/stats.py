"""Statistics of repeats: means with 95% intervals, Pareto fronts.

There are few values, so the standard library and scipy's Student distribution are enough.
"""

import bisect
import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimize", "maximize"]
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Summary:
    """A sample's mean with its Student interval, which is nan for a single value."""

    n: int
    mean: float
    std: float
    low: float
    high: float

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are the same; unlike those of dataclasses, two that are nan are."""
        return isinstance(other, Summary) and self._comparable == other._comparable

    @property
    def _comparable(self) -> list[float | None]:
        return [None if math.isnan(number) else number for number in dataclasses.astuple(self)]


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
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
    half = student_quantile((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def dominates(one: Mapping[str, float], other: Mapping[str, float], directions: Mapping[str, Direction]) -> bool:
    """Whether `one` is worse than `other` in no objective, and better in some."""
    better = False
    for name, direction in directions.items():
        low = one[name]
        high = other[name]
        if direction == "maximize":
            low = other[name]
            high = one[name]
        if low > high:
            return False
        better |= low < high
    return better


def fronts(points: Sequence[Mapping[str, float]], directions: Mapping[str, Direction]) -> list[int]:
    """Return the number of each point's Pareto front, 0 for the non-dominated.

    With one objective this is the order of the values, and equal values share a front. With several, each point joins
    the first front in which no point dominates it (Zhang et al. 2015, "An efficient approach to nondominated
    sorting"): in lexicographic order a point comes after all that dominate it, and if no point of a front does, none
    of a later front does either.
    """
    signs = {name: 1 if direction == "minimize" else -1 for name, direction in directions.items()}
    keys = [tuple(sign * point[name] for name, sign in signs.items()) for point in points]
    if len(signs) == 1:
        places = {key: place for place, key in enumerate(sorted(set(keys)))}
        return [places[key] for key in keys]

    def open_to(point: Mapping[str, float], front: Sequence[Mapping[str, float]]) -> bool:
        return not any(dominates(other, point, directions) for other in reversed(front))

    members: list[list[Mapping[str, float]]] = []
    numbers = [0] * len(points)
    for i in sorted(range(len(points)), key=keys.__getitem__):
        number = bisect.bisect_left(members, True, key=functools.partial(open_to, points[i]))
        if number == len(members):
            members.append([])
        members[number].append(points[i])
        numbers[i] = number
    return numbers
