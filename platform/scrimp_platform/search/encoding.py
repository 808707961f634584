"""Recipes of a space as points whose distance measures how different they are, for the curve model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space


class Encoding:
    """Maps recipes to points.

    A recipe is given by its searched values, or by a share in [0, 1) for each searched field: the part of the range
    that lies below its value. A number is one coordinate, its place in the range. A choice that is no number is a
    one-hot vector of length 1/sqrt(2), so that two options are at distance 1. A number with a condition lies on a
    quarter circle around the origin, and is the origin where its condition does not hold: its absence is equally far
    from all of its values (the arc kernel of Swersky et al. 2014, "Raiders of the lost architecture").

    Attributes
    ----------
    columns : ndarray
        int [D]: for each coordinate of a point, the number of its field in the space.
    """

    def __init__(self, space: Space) -> None:
        self._fields = {path: _Field(span) for path, span in space.search.items()}
        widths = [field.width for field in self._fields.values()]
        self.columns = np.repeat(np.arange(len(widths)), widths)

    def values(self, shares: Sequence[float]) -> dict[str, Any]:
        """Return the values at these shares [fields], of the fields whose conditions hold."""
        values: dict[str, Any] = {}
        for (path, field), share in zip(self._fields.items(), shares, strict=True):
            if all(values.get(other) in allowed for other, allowed in field.span.when.items()):
                values[path] = field.values(np.array([share]))[0]
        return values

    def shares(self, recipes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return shares [N, fields] at which these values lie, nan for the fields that a recipe does not have."""
        shares = np.full((len(recipes), len(self._fields)), np.nan)
        for i, values in enumerate(recipes):
            for j, (path, field) in enumerate(self._fields.items()):
                if path in values:
                    shares[i, j] = field.share(values[path])
        return shares

    def points(self, shares: np.ndarray) -> np.ndarray:
        """Return the points [N, D] at these shares [N, fields]; a field whose share is nan does not exist."""
        parts: list[np.ndarray] = []
        values: dict[str, np.ndarray] = {}
        for j, (path, field) in enumerate(self._fields.items()):
            exists = ~np.isnan(shares[:, j])
            for other, allowed in field.span.when.items():
                exists &= np.array([value in allowed for value in values[other]], dtype=bool)
            safe = np.where(exists, shares[:, j], 0.5)
            if self._is_condition(path):
                values[path] = np.array([None] * len(shares), dtype=object)
                values[path][exists] = np.array(field.values(safe[exists]), dtype=object)
            parts.append(field.coordinates(safe) * exists[:, None])
        return np.concatenate(parts, axis=1)

    def _is_condition(self, path: str) -> bool:
        return any(path in field.span.when for field in self._fields.values())


class _Field:
    """One searched field: its values, shares and coordinates."""

    def __init__(self, span: Range) -> None:
        self.span = span
        self._options = list(span.choice or ())
        self._is_ordered = all(
            isinstance(option, int | float) and not isinstance(option, bool) for option in self._options
        )
        self.width = 1
        if not self._is_ordered:
            self.width = len(self._options)
        elif span.when:
            self.width = 2
        low, high = span.uniform or span.loguniform or span.int or (0, 1)
        self._log = bool(span.loguniform) or span.log
        # Each whole number owns the interval of its neighbourhood.
        half = span.step / 2 if span.int else 0
        self._low = low - half
        self._high = high + half

    def values(self, shares: np.ndarray) -> list[Any]:
        """Return the values at these shares [N]."""
        if self._options:
            return [self._options[i] for i in self._positions(shares)]
        numbers = self._numbers(shares)
        return [int(number) for number in numbers] if self.span.int else numbers.tolist()

    def share(self, value: Any) -> float:
        """Return a share at which this value lies."""
        if self._options:
            return (self._options.index(value) + 0.5) / len(self._options)
        share = (value - self._low) / (self._high - self._low)
        if self._log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        return min(max(share, 0.0), math.nextafter(1.0, 0.0))

    def coordinates(self, shares: np.ndarray) -> np.ndarray:
        """Return the coordinates [N, width] of the values at these shares [N]."""
        if not self._is_ordered:
            return np.eye(self.width)[self._positions(shares)] / math.sqrt(2)

        places = shares
        if self._options:  # numbers to choose from are equally far apart
            ranks = np.argsort(np.argsort(self._options))
            places = ranks[self._positions(shares)] / (len(self._options) - 1)
        elif self.span.int:
            places = self._places(self._numbers(shares))
        if not self.span.when:
            return places[:, None]
        return np.stack([np.sin(places * math.pi / 2), np.cos(places * math.pi / 2)], axis=1)

    def _positions(self, shares: np.ndarray) -> np.ndarray:
        return (shares * len(self._options)).astype(int)

    def _numbers(self, shares: np.ndarray) -> np.ndarray:
        numbers = self._low + shares * (self._high - self._low)
        if self._log:
            numbers = self._low * (self._high / self._low) ** shares
        if not self.span.int:
            return numbers
        low, high = self.span.int
        return np.clip(low + np.round((numbers - low) / self.span.step) * self.span.step, low, high)

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        if self._log:
            return np.log(numbers / self._low) / math.log(self._high / self._low)
        return (numbers - self._low) / (self._high - self._low)
