"""Synthetic recipe spaces from a seed: mixed, conditional fields, crossing curves, noisy seeds, costs, divergence.

The score at the end is exp of a sum over fields: quadratics with a ripple around an optimum that depends on the family,
products of pairs, an offset for each choice. The sum is scaled so that the best of 150 random recipes is 4.5% from the
best of the space, at the median. How steeply a curve falls, what a kimg costs and where training diverges are further
sums of this kind: recipes that start fast tend to end high, so curves cross.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.curves import OBJECTIVE, Curve, Values, decay, draws, noisy
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space

Array = NDArray[np.float64]

PART = "network."
FAMILIES = ("a", "b", "c", "d", "e")
TRAINED = {"when": {f"{PART}family": ["a", "b", "c", "d"]}}
"""Family e is a preset: all that it leaves open are choices, so its recipes are few and come up more than once."""
SEARCH: Mapping[str, Mapping[str, Any]] = {
    "family": {"choice": list(FAMILIES)},
    "activation": {"choice": ["a", "b", "c", "d"]},
    "schedule": {"choice": ["a", "b", "c"]},
    "augment": {"choice": ["a", "b"]},
    "rate": {"loguniform": [1e-4, 1e-1]} | TRAINED,
    "width": {"int": [16, 256], "step": 8, "log": True} | TRAINED,
    "depth": {"int": [1, 6]} | TRAINED,
    "decay": {"loguniform": [1e-6, 1e-2]} | TRAINED,
    "warmup": {"uniform": [0.0, 0.5], "when": TRAINED["when"] | {f"{PART}schedule": ["b"]}},
    "dropout": {"uniform": [0.0, 0.5], "when": {f"{PART}family": ["a", "b"]}},
    "patch": {"choice": [1, 2, 4, 8], "when": {f"{PART}family": ["b", "c"]}},
    "momentum": {"uniform": [0.5, 0.99], "when": {f"{PART}family": ["d"]}},
}
FIELDS = tuple(SEARCH)
CHOICES = {name: tuple(span["choice"]) for name, span in SEARCH.items() if "choice" in span}
NUMBERS = tuple(name for name in FIELDS if name not in CHOICES)

RUNGS = (250.0, 1000.0, 4000.0)
TRIALS = 150
HORIZON = 640.0
HOURS = 10.0
"""GPU-hours of a whole training: the middle of the fourfold spread."""
SPREAD = 4.0
BEST_OF_TRIALS = 0.045
"""Regret of the best of 150 random recipes."""
LASTING = 0.7
"""Share of the seed's variance that lasts over a curve."""
DIVERGING = 0.08
"""Share of random recipes that diverge."""
EARLIEST = 20.0
"""Kimg after which training diverges at the earliest; as many diverge in each order of magnitude."""
EDGE = 0.15
"""Width of the band before divergence in which scores rise."""
PAIRS = 5
STARTS, STEPS, NEIGHBOURS = 8, 60, 24
"""Of the search for the best recipe: starts in each family, steps of a start, recipes looked at in a step."""


@functools.cache
def synthetic_space() -> Space:
    """Return the space that all synthetic surfaces share."""
    return Space.of(
        recipe="tiny-edm",
        parts=[str(Path(__file__).with_name("bench_parts.py"))],
        override={"network": {"kind": "bench_parts:Synthetic"}},
        search={f"{PART}{name}": dict(span) for name, span in SEARCH.items()},
        objectives={OBJECTIVE: "minimize"},
        scoring={"extractor": "classifier", "samples": 1000},
        budget={"trials": TRIALS, "rungs_kimg": RUNGS, "reduction": 3, "leaders": 5, "repeats": 5},
    )


@dataclass(frozen=True)
class Sum:
    """A function of a recipe: a sum over its fields and over pairs of them."""

    offsets: Mapping[str, Array]
    optima: Array
    """By family and number."""
    weights: Array
    slopes: Array
    absent: Array
    """How far from its optimum a number is where a recipe does not have it."""
    ripple: float
    pairs: tuple[tuple[int, int, float], ...] = ()

    def __call__(self, recipes: Array) -> Array:
        """Return the values at these recipes, one a row."""
        total = np.zeros(len(recipes))
        for name, offsets in self.offsets.items():
            column = recipes[:, FIELDS.index(name)]
            present = ~np.isnan(column)
            total[present] += offsets[column[present].astype(int)]

        family = recipes[:, 0].astype(int)
        numbers = recipes[:, [FIELDS.index(name) for name in NUMBERS]]
        away = numbers - self.optima[family]
        away = np.where(np.isnan(away), self.absent, away)
        total += (self.weights * (away**2 + self.ripple * np.sin(4 * np.pi * away) ** 2)).sum(axis=1)
        total += (self.slopes * np.nan_to_num(numbers)).sum(axis=1)
        for one, other, weight in self.pairs:
            total += weight * away[:, one] * away[:, other]
        return total


class Synthetic:
    """The surface of one seed, with this noise of its seeds (the deviation of a score's logarithm)."""

    def __init__(self, seed: int, noise: float) -> None:
        self.name = f"synthetic-{round(100 * noise)}"
        self.seed = seed
        self.noise = noise
        self.space = synthetic_space()
        self.horizon = HORIZON
        chance = np.random.default_rng([17, seed])

        self._quality = _bowl(chance)
        self._speed = plane(chance)
        self._cost = plane(chance, {"width": 1.0, "depth": 0.7, "family": 0.4, "patch": 0.3})
        self._stability = plane(chance, {"rate": 1.0, "momentum": 0.5, "depth": 0.3, "decay": -0.2})
        self._exponent = chance.uniform(0.3, 0.8)
        self._fall = chance.uniform(0.4, 1.0)
        self._crossing = chance.uniform(0.4, 1.0)
        self.best = self._lowest_truth = 10 ** chance.uniform(0, 2)

        random = sample(chance, 10_000)
        stability = self._stability(random)
        self._threshold = float(np.quantile(stability, 1 - DIVERGING))
        self._edge = EDGE * float(np.ptp(stability))
        self._rise = 3 * float(np.std(self._quality(random)))
        self._sound = sound = random[stability <= self._threshold]

        self.best_recipe = self._descend(sound, chance, self._is_sound)
        self._lowest = float(self._badness(self.best_recipe[None])[0])
        badness = self._badness(sound)
        middle = math.log(2) / TRIALS / (1 - DIVERGING)  # the median of the least of so many
        self._scale = math.log1p(BEST_OF_TRIALS) / float(np.quantile(badness - self._lowest, middle))
        self._usual = {
            name: (float(np.mean(values)), float(np.std(values)))
            for name, values in (("badness", badness), ("speed", self._speed(sound)))
        }
        self._cheap, self._dear = np.quantile(self._cost(random), [0.02, 0.98]).tolist()

    def truth(self, values: Values) -> float:
        """Return the mean score at the last rung over all seeds."""
        return float(self._truths(encode(values)[None])[0])

    def values_of_best(self) -> dict[str, Any]:
        """Return the best recipe."""
        return decode(self.best_recipe)

    def train(self, values: Values, seed: int) -> Curve:
        """Return what a repeat with this seed shows."""
        recipe = encode(values)[None]
        chance = draws(f"{self.name}/{self.seed}", values, seed)
        hours = self._hours_per_kimg(recipe)
        scores = dict(zip(RUNGS, noisy(self.expected(values), self.noise, LASTING, chance), strict=True))

        margin = float(self._stability(recipe)[0]) - self._threshold
        if margin + chance.gauss(0, self._edge / 8) <= 0:
            return Curve(hours, scores)
        diverges_at = EARLIEST * (RUNGS[-1] / EARLIEST) ** chance.random()
        if chance.random() < 0.5:
            return Curve(hours, scores, diverges_at)
        return Curve(hours, {kimg: score if kimg < diverges_at else math.nan for kimg, score in scores.items()})

    def expected(self, values: Values) -> list[float]:
        """Return the mean scores at the rungs."""
        recipe = encode(values)[None]
        excess = self._excess_of(recipe)
        truth = self.truth(values)
        return [truth * decay(kimg, RUNGS[-1], RUNGS[0], excess, self._exponent) for kimg in RUNGS]

    def _truths(self, recipes: Array) -> Array:
        return self._lowest_truth * np.exp(self._scale * (self._badness(recipes) - self._lowest))

    def _badness(self, recipes: Array) -> Array:
        """Return the logarithm of the truth, unscaled: what the recipe is worth, and the rise before divergence."""
        into_edge = np.maximum(0, (self._stability(recipes) - self._threshold) / self._edge + 1)
        return self._quality(recipes) + self._rise * into_edge**2

    def _excess_of(self, recipe: Array) -> float:
        """Return by what share the score at the first rung is above the last: the less, the faster the start.

        Its spread goes with that of the truths, so on every surface curves cross about as often; good recipes tend to
        be slow.
        """
        slow = self._crossing * self._standard("speed", self._speed(recipe))
        good = -0.25 * self._standard("badness", self._badness(recipe))
        spread = self._scale * self._usual["badness"][1]
        return max(0.05, math.expm1(self._fall + spread * (slow + good)))

    def _standard(self, name: str, value: Array) -> float:
        mean, deviation = self._usual[name]
        return min(3.0, max(-3.0, (float(value[0]) - mean) / deviation))

    def _hours_per_kimg(self, recipe: Array) -> float:
        return HOURS / RUNGS[-1] * SPREAD ** (float(self._size(recipe)[0]) - 0.5)

    def _size(self, recipes: Array) -> Array:
        """Return where recipes lie between the cheapest and the dearest, from 0 to 1."""
        return np.clip((self._cost(recipes) - self._cheap) / (self._dear - self._cheap), 0.0, 1.0)

    def _is_sound(self, recipes: Array) -> NDArray[np.bool_]:
        """Tell which recipes do not diverge."""
        return self._stability(recipes) <= self._threshold

    def _descend(
        self, random: Array, chance: np.random.Generator, allowed: Callable[[Array], NDArray[np.bool_]]
    ) -> Array:
        """Return the best recipe that is allowed: local searches from the best random ones of each family."""
        badness = self._badness(random)
        starts = []
        for family in range(len(FAMILIES)):
            members = np.flatnonzero(random[:, 0] == family)
            starts.append(members[np.argsort(badness[members])[:STARTS]])
        recipes = random[np.concatenate(starts)]

        for width in np.geomspace(0.3, 0.003, STEPS):
            near = neighbours(np.repeat(recipes, NEIGHBOURS, axis=0), width, chance)
            near_badness = np.where(allowed(near), self._badness(near), np.inf)
            places = near_badness.reshape(len(recipes), NEIGHBOURS).argmin(axis=1)
            chosen = np.arange(len(recipes)) * NEIGHBOURS + places
            better = near_badness[chosen] < self._badness(recipes)
            recipes = np.where(better[:, None], near[chosen], recipes)
        return recipes[np.argmin(self._badness(recipes))]


def _bowl(chance: np.random.Generator) -> Sum:
    """Draw a function with one main valley in each family."""
    weights = np.exp(chance.normal(0, 1.2, len(NUMBERS)))
    optima = chance.uniform(0.15, 0.85, len(NUMBERS)) + chance.normal(0, 0.12, (len(FAMILIES), len(NUMBERS)))
    offsets = {name: chance.exponential(0.12, len(options)) for name, options in CHOICES.items()}
    pairs = []
    for _ in range(PAIRS):
        one, other = chance.choice(len(NUMBERS), 2, replace=False)
        strength = chance.uniform(-1, 1) * math.sqrt(weights[one] * weights[other])
        pairs.append((int(one), int(other), float(strength)))
    absent = chance.uniform(0.25, 0.45, len(NUMBERS))
    return Sum(offsets, np.clip(optima, 0.1, 0.9), weights, np.zeros(len(NUMBERS)), absent, 0.02, tuple(pairs))


def plane(chance: np.random.Generator, given: Mapping[str, float] | None = None) -> Sum:
    """Draw a function that rises or falls along each field; by default along any, else along those given."""
    everywhere = dict(zip(FIELDS, chance.normal(0, 1, len(FIELDS)), strict=True))
    strengths = everywhere if given is None else {name: given.get(name, 0.0) for name in FIELDS}
    offsets = {name: strengths[name] * chance.uniform(0, 1, len(options)) for name, options in CHOICES.items()}
    slopes = np.array([strengths[name] for name in NUMBERS])
    none = np.zeros(len(NUMBERS))
    return Sum(offsets, np.zeros((len(FAMILIES), len(NUMBERS))), none, slopes, none, 0.0)


def sample(chance: np.random.Generator, count: int) -> Array:
    """Draw recipes, one a row: numbers as shares of their range, choices as positions, nan where there is no field."""
    recipes = chance.uniform(0, 1, (count, len(FIELDS)))
    for name, options in CHOICES.items():
        recipes[:, FIELDS.index(name)] = chance.integers(0, len(options), count)
    return _valid(recipes)


def neighbours(recipes: Array, width: float, chance: np.random.Generator) -> Array:
    """Return a recipe near each: half of its numbers moved, a choice changed now and then."""
    moved = recipes.copy()
    count = len(recipes)
    for column, name in enumerate(FIELDS):
        absent = np.isnan(moved[:, column])
        if name in CHOICES:
            redrawn = absent | (chance.random(count) < 0.1)
            moved[redrawn, column] = chance.integers(0, len(CHOICES[name]), count)[redrawn]
            continue
        step = np.where(chance.random(count) < 0.5, chance.normal(0, width, count), 0)
        fresh = chance.uniform(0, 1, count)
        moved[:, column] = np.where(absent, fresh, np.clip(moved[:, column] + step, 0, 1))
    return _valid(moved)


def _valid(recipes: Array) -> Array:
    """Round whole numbers, and leave out the fields whose conditions do not hold."""
    for column, name in enumerate(FIELDS):
        if "int" in SEARCH[name]:
            whole = _whole_shares(name)
            recipes[:, column] = whole[np.abs(recipes[:, column, None] - whole).argmin(axis=1)]
        for other, allowed in SEARCH[name].get("when", {}).items():
            other_name = other.removeprefix(PART)
            positions = [CHOICES[other_name].index(value) for value in allowed]
            lacks = ~np.isin(recipes[:, FIELDS.index(other_name)], positions)
            recipes[lacks, column] = np.nan
    return recipes


@functools.cache
def _whole_shares(name: str) -> Array:
    span = synthetic_space().search[f"{PART}{name}"]
    low, high = span.int or (0, 1)
    return np.array([_share_of(span, value) for value in range(low, high + 1, span.step)])


def encode(values: Values) -> Array:
    """Return a recipe's searched values as a row."""
    row = np.full(len(FIELDS), np.nan)
    for path, value in values.items():
        name = path.removeprefix(PART)
        if name in CHOICES:
            row[FIELDS.index(name)] = CHOICES[name].index(value)
        else:
            row[FIELDS.index(name)] = _share_of(synthetic_space().search[path], value)
    return row


def decode(row: Array) -> dict[str, Any]:
    """Return the searched values of a row."""
    values: dict[str, Any] = {}
    for name, share in zip(FIELDS, row.tolist(), strict=True):
        if math.isnan(share):
            continue
        path = f"{PART}{name}"
        values[path] = CHOICES[name][int(share)] if name in CHOICES else _at(synthetic_space().search[path], share)
    return values


def _share_of(span: Range, value: float) -> float:
    low, high = span.uniform or span.loguniform or span.int or (0, 1)
    if span.loguniform or span.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _at(span: Range, share: float) -> float:
    low, high = span.uniform or span.loguniform or span.int or (0, 1)
    value = low * (high / low) ** share if span.loguniform or span.log else low + share * (high - low)
    if span.int:
        return min(high, max(low, round(value / span.step) * span.step))
    return min(high, max(low, value))
