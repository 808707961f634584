"""The order of measurements by a space's goals: its constraints first, then its objectives."""

import math
from collections.abc import Sequence

from scrimp_platform.search import stats
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow

Rank = float | tuple[float, ...]
"""By what a model ranks a trial; lower is better."""


def order(rows: Sequence[MetricsRow], space: Space) -> list[int]:
    """Return the positions of `rows` from best to worst.

    They are ordered by how much they break the constraints, then by the Pareto fronts of several objectives, then by
    the first objective.
    """
    violations = [total_excess(row, space) for row in rows]
    points = [{name: row.value(name) for name in space.objectives} for row in rows]
    fronts = [0] * len(points)
    if len(space.objectives) > 1:
        fronts = stats.fronts(points, space.objectives)
    first, direction = next(iter(space.objectives.items()))
    sign = 1 if direction == "minimize" else -1
    return sorted(range(len(rows)), key=lambda i: (violations[i], fronts[i], sign * points[i][first]))


def total_excess(row: MetricsRow, space: Space) -> float:
    """Return by how much a row breaks the constraints: the sum of the shares of their limits."""
    return sum(max(excess, 0.0) for excess in excesses(space, row).values())


def excesses(space: Space, row: MetricsRow) -> dict[str, float]:
    """Return by which share of its limit each constraint is broken; infinite where its score is not finite."""
    excesses = dict.fromkeys(space.constraints, math.inf)
    for name, bound in space.constraints.items():
        value = row.value(name)
        if math.isfinite(value):
            excesses[name] = bound.excess(value)
    return excesses
