"""Make items of the modality `strokes` of drawings as recorded: ChiroDiff's preprocessing (Das et al. 2023)."""

from collections.abc import Sequence

import numpy as np

SPACING = 0.05
"""Distance of two points of a stroke, where the point of the drawing that is farthest from its first is at 1."""
RADIUS = 10.0
"""Distance of that point from the first one in the item."""
MOST_POINTS = 299
MOST_STROKES = 25
"""Longer drawings are left out, as in ChiroDiff's code."""

Drawing = Sequence[np.ndarray]
"""The strokes, each [n, 2]: x, and y which grows downwards."""


class UnusableDrawingError(ValueError):
    """A drawing of which no item can be made; the message is the reason."""


def to_item(drawing: Drawing, most_points: int = MOST_POINTS) -> np.ndarray:
    """Return float32 [n, 3]: the points after the first one, which is the origin.

    Strokes of one point are left out. The first point moves to the origin. Each stroke is resampled to points of equal
    distance along it: one for each `SPACING` of its length, at least two. Then the drawing is scaled so that its
    farthest point has the distance `RADIUS`.

    Raises
    ------
    UnusableDrawingError
        If there is no line, the strokes are too many, or the points.
    """
    strokes = [np.asarray(stroke, dtype=np.float64) for stroke in drawing if len(stroke) > 1]
    if not strokes:
        raise UnusableDrawingError("has no line")
    if not all(np.isfinite(stroke).all() for stroke in strokes):
        raise UnusableDrawingError("has a point that is not finite")
    if len(strokes) > MOST_STROKES:
        raise UnusableDrawingError(f"has more than {MOST_STROKES} strokes")

    first = strokes[0][0]
    radius = max(np.linalg.norm(stroke - first, axis=1).max() for stroke in strokes)
    if radius == 0:
        raise UnusableDrawingError("has no line")

    resampled = []
    for stroke in strokes:
        scaled = (stroke - first) / radius
        length = np.linalg.norm(np.diff(scaled, axis=0), axis=1).sum()
        points = along(scaled, max(2, int(length / SPACING)))
        ends = np.zeros((len(points), 1))
        ends[-1] = 1
        resampled.append(np.hstack([points, ends]))

    points = np.concatenate(resampled)
    if len(points) > most_points:
        raise UnusableDrawingError(f"has more than {most_points} points")
    points[:, :2] *= RADIUS / np.linalg.norm(points[:, :2], axis=1).max()
    return points[1:].astype(np.float32)


def along(line: np.ndarray, count: int) -> np.ndarray:
    """Return `count` points [count, 2] of equal distance along a line [n, 2], its ends among them."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    position = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, position[-1], count)
    return np.stack([np.interp(wanted, position, line[:, axis]) for axis in (0, 1)], axis=1)


def strokes_of(points: np.ndarray) -> list[np.ndarray]:
    """Split steps [n, 3 or more] of dx, dy and whether the pen goes up after it into strokes of positions [m, 2]."""
    positions = np.cumsum(points[:, :2].astype(np.float64), axis=0)
    return [stroke for stroke in np.split(positions, np.flatnonzero(points[:, 2] > 0) + 1) if len(stroke)]
