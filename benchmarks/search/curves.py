"""What a repeat shows while it is trained: its scores at the rungs, what it costs, and whether it diverges."""

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scrimp_spaces.space import Space

OBJECTIVE = "fd_classifier"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """One training: `scores` by kimg, nan from where it has diverged; `fails_at` is where its process ends early."""

    hours_per_kimg: float
    scores: Mapping[float, float]
    fails_at: float = math.inf


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
