"""Recipes of a space as points in which distance means difference, for a model that learns from their scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scrimp_spaces.space import Range, Space


class Encoding:
    """Maps the searched values of a recipe to a point, and shares in [0, 1) to such values.

    A number is one coordinate, its place in the range. A choice that is no number is a one-hot vector of length
    1/sqrt(2), so that two options are at distance 1. A field with a condition lies on a quarter circle around the
    origin, and is the origin where its condition does not hold: its absence is equally far from all of its values
    (the arc kernel of Swersky et al. 2014, "Raiders of the lost architecture").

    Attributes
    ----------
    paths : list of str
        The searched fields.
    columns : ndarray
        int [D]: for each coordinate of a point, the position of its field in `paths`.
    """

    def __init__(self, space: Space) -> None:
        self._search = space.search
        self.paths = list(space.search)
        widths = [_width(span) for span in self._search.values()]
        self.columns = np.repeat(np.arange(len(widths)), widths)

    def point(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the point [D] of a recipe's searched values."""
        parts = []
        for path, span in self._search.items():
            part = np.zeros(_width(span))
            if path in values:
                part = _coordinates(span, values[path])
            parts.append(part)
        return np.concatenate(parts)

    def points(self, recipes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the points [N, D] of several recipes."""
        return np.array([self.point(values) for values in recipes]).reshape(len(recipes), len(self.columns))

    def values(self, shares: Sequence[float]) -> dict[str, Any]:
        """Return the values at a share of each field's range, where the fields' conditions hold."""
        values: dict[str, Any] = {}
        for (path, span), share in zip(self._search.items(), shares, strict=True):
            if all(values.get(other) in allowed for other, allowed in span.when.items()):
                values[path] = _value(span, share)
        return values

    def shares(self, values: Mapping[str, Any], missing: np.ndarray) -> np.ndarray:
        """Return shares [fields] that `values` turns into these values; absent fields get that of `missing`."""
        shares = missing.copy()
        for i, (path, span) in enumerate(self._search.items()):
            if path in values:
                shares[i] = _share(span, values[path])
        return shares


def _is_number(option: Any) -> bool:
    return isinstance(option, int | float) and not isinstance(option, bool)


def _is_ordered(span: Range) -> bool:
    return span.choice is None or all(map(_is_number, span.choice))


def _width(span: Range) -> int:
    if not _is_ordered(span):
        return len(span.choice or ())
    return 2 if span.when else 1


def _coordinates(span: Range, value: Any) -> np.ndarray:
    if not _is_ordered(span):
        options = span.choice or []
        return np.eye(len(options))[options.index(value)] / math.sqrt(2)

    place = _place(span, value)
    if not span.when:
        return np.array([place])
    return np.array([math.sin(place * math.pi / 2), math.cos(place * math.pi / 2)])


def _place(span: Range, value: Any) -> float:
    """Return where in the range a number lies, from 0 to 1; numbers to choose from are equally far apart."""
    if span.choice is not None:
        options = sorted(span.choice)
        return options.index(value) / (len(options) - 1)
    low, high = span.uniform or span.loguniform or span.int or (0.0, 1.0)
    if span.loguniform or span.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value(span: Range, share: float) -> Any:
    """Return the value below which this share of the range lies."""
    if span.choice is not None:
        return span.choice[int(share * len(span.choice))]
    if span.int:
        # Each number owns the interval of its neighbourhood.
        low, high = span.int
        half = span.step / 2
        steps = round((_between(low - half, high + half, share, span.log) - low) / span.step)
        return min(max(low, low + steps * span.step), high)
    low, high = span.uniform or span.loguniform or (0.0, 1.0)
    return _between(low, high, share, bool(span.loguniform))


def _share(span: Range, value: Any) -> float:
    """Return a share that `_value` turns into this value."""
    if span.choice is not None:
        return (span.choice.index(value) + 0.5) / len(span.choice)
    low, high = span.uniform or span.loguniform or (0.0, 1.0)
    log = bool(span.loguniform)
    if span.int:
        half = span.step / 2
        low, high, log = span.int[0] - half, span.int[1] + half, span.log
    share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
    return min(max(share, 0.0), math.nextafter(1.0, 0.0))


def _between(low: float, high: float, share: float, log: bool) -> float:
    return low * (high / low) ** share if log else low + share * (high - low)
