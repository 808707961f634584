"""What a repeat shows while it is trained: its scores at the rungs, what it costs, and whether it diverges."""

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from scrimp_spaces.space import Space

OBJECTIVE = "fd_classifier"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """One training: `scores` by kimg, nan from where it has diverged; `fails_at` is where its process ends early.

    `others` are what else is measured at the rungs: by name, then by kimg.
    """

    hours_per_kimg: float
    scores: Mapping[float, float]
    fails_at: float = math.inf
    others: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    hours_per_score: Mapping[float, float] = field(default_factory=dict)
    """GPU-hours of scoring by kimg; where it states none, scoring costs nothing."""


class Surface(Protocol):
    """A searched space of which the truth is known."""

    name: str
    space: Space
    horizon: float
    """GPU-hours for which methods are compared."""
    best: float
    """The lowest true score of the space."""

    def truth(self, values: Values) -> float:
        """Return the mean score at the last rung over all seeds."""
        ...

    def train(self, values: Values, seed: int) -> Curve:
        """Return what a repeat with this seed shows."""
        ...


@runtime_checkable
class Constrained(Surface, Protocol):
    """A surface whose space has constraints; `best` is that of the recipes that keep them."""

    def violation(self, values: Values) -> float:
        """Return by which share of the limits a recipe truly breaks the constraints in all; 0 if it keeps them."""
        ...


@runtime_checkable
class SeveralObjectives(Surface, Protocol):
    """A surface whose space has several objectives."""

    def volume(self, front: Sequence[Values]) -> float:
        """Return the hypervolume of the true values of these recipes, as a share of that of the true Pareto front."""
        ...


def excess(space: Space, numbers: Mapping[str, float]) -> float:
    """Return by which share of the limits these numbers break the constraints in all; 0 if they keep them."""
    return sum(max(0.0, bound.excess(numbers[name])) for name, bound in space.constraints.items())


def regret(surface: Surface, values: Values | None) -> float:
    """Return by what share a recipe is truly worse than the best of the space; without a recipe, nan."""
    return surface.truth(values) / surface.best - 1 if values is not None else math.nan


def draws(surface: str, values: Values, seed: int) -> random.Random:
    """Return the chance of one repeat, which depends on the surface, the recipe and the seed alone."""
    recipe = zlib.crc32(repr(sorted(values.items())).encode())
    return random.Random(f"{surface}/{recipe}/{seed}")


def decay(kimg: float, end: float, first: float, excess: float, exponent: float) -> float:
    """Return the score at `kimg` relative to that at the end: a power law, 1 + `excess` at the first rung."""
    fallen = (kimg / end) ** -exponent - 1
    return 1 + excess * fallen / ((first / end) ** -exponent - 1)


def noisy(scores: Sequence[float], noise: float, lasting: float, chance: random.Random) -> list[float]:
    """Return scores as one seed has them; their means are the scores.

    Of the logarithm's variance, `noise` squared, the share `lasting` is one draw for the whole curve and the rest one
    for each rung.
    """
    whole = chance.gauss(0, noise * math.sqrt(lasting))
    own = noise * math.sqrt(1 - lasting)
    return [score * math.exp(whole + chance.gauss(0, own) - noise**2 / 2) for score in scores]
