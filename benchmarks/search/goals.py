"""Synthetic surfaces with more than one number: what may be memorised, and how large the network may be.

`parameters` follow from the recipe, and grow with what a kimg costs. `memorized_fraction` is only known once it is
measured: it grows over a training, differs between seeds, and is the higher, the better a recipe scores, so that the
best recipes memorise too much.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna._hypervolume import compute_hypervolume

from benchmarks.search.curves import OBJECTIVE, Curve, Values, draws, excess, noisy
from benchmarks.search.surfaces import (
    LASTING,
    NEIGHBOURS,
    RUNGS,
    Array,
    Synthetic,
    encode,
    neighbours,
    plane,
    synthetic_space,
)
from scrimp_spaces.constraints import Bound
from scrimp_spaces.space import Space

MEMORISED = "memorized_fraction"
PARAMETERS = "parameters"

SMALLEST, LARGEST = 1e6, 16e6
"""Parameters of the networks whose kimg is the cheapest and the dearest."""
USUAL_SHARE = 0.05
"""What a middling recipe memorises."""
SPREAD = 0.8
"""Deviation of the logarithm of what recipes memorise."""
AGAINST = 0.6
"""Correlation of that with how good a recipe scores."""
NOISE = 0.1
"""Deviation of the logarithm between seeds."""
GROWTH = 0.5
"""Of what is memorised over a training: it is as kimg to this power."""

SMALL = 0.7
"""Share of random recipes that keep the limit of parameters."""
FEASIBLE = 0.4
"""Share of random recipes that keep both limits."""

WIDTHS = np.geomspace(0.3, 0.003, 40)
"""Of the search for the true Pareto front: how far recipes are looked at from those on it, one round after another."""
KEPT = 200
"""Recipes of the front that a round starts from."""


class Memorising(Synthetic):
    """A synthetic surface whose recipes have parameters, and memorise a share of the training set."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__(seed, noise)
        self._own_chance = np.random.default_rng([18, seed])
        self._own_part = plane(self._own_chance)
        own = self._own_part(self._sound)
        self._own_mean, self._own_deviation = float(np.mean(own)), float(np.std(own))

    def truths(self, values: Values) -> dict[str, float]:
        """Return every number of a recipe at the last rung, over all seeds."""
        return {name: float(numbers[0]) for name, numbers in self._numbers(encode(values)[None]).items()}

    def train(self, values: Values, seed: int) -> Curve:
        """Return what a repeat with this seed shows."""
        truths = self.truths(values)
        chance = draws(f"{self.name}/{self.seed}/{MEMORISED}", values, seed)
        means = [truths[MEMORISED] * (kimg / RUNGS[-1]) ** GROWTH for kimg in RUNGS]
        memorised = dict(zip(RUNGS, noisy(means, NOISE, LASTING, chance), strict=True))
        others = {PARAMETERS: dict.fromkeys(RUNGS, truths[PARAMETERS]), MEMORISED: memorised}
        return dataclasses.replace(super().train(values, seed), others=others)

    def _numbers(self, recipes: Array) -> dict[str, Array]:
        return {
            OBJECTIVE: self._truths(recipes),
            PARAMETERS: SMALLEST * (LARGEST / SMALLEST) ** self._size(recipes),
            MEMORISED: self._memorised(recipes),
        }

    def _memorised(self, recipes: Array) -> Array:
        mean, deviation = self._usual["badness"]
        good = np.clip((mean - self._badness(recipes)) / deviation, -3, 3)
        own = (self._own_part(recipes) - self._own_mean) / self._own_deviation
        return USUAL_SHARE * np.exp(SPREAD * (AGAINST * good + np.sqrt(1 - AGAINST**2) * own))


class ConstrainedSynthetic(Memorising):
    """One with a limit of each; `best` is the lowest true score of the recipes that keep both."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__(seed, noise)
        self.name = f"{self.name}-constrained"
        numbers = self._numbers(self._sound)
        most_parameters = float(np.quantile(numbers[PARAMETERS], SMALL))
        small = numbers[PARAMETERS] <= most_parameters
        most_memorised = float(np.quantile(numbers[MEMORISED][small], FEASIBLE / np.mean(small)))
        limits = {PARAMETERS: Bound(max=most_parameters), MEMORISED: Bound(max=most_memorised)}
        self.space = self.space.model_copy(update={"constraints": limits})

        feasible = self._sound[self._keeps(self._sound)]
        self.best_recipe = self._descend(feasible, self._own_chance, self._is_allowed)
        self.best = self.truth(self.values_of_best())

    def violation(self, values: Values) -> float:
        """Return by which share of the limits a recipe truly breaks the constraints in all; 0 if it keeps them."""
        return excess(self.space, self.truths(values))

    def _keeps(self, recipes: Array) -> Any:
        numbers = self._numbers(recipes)
        kept = [numbers[name] <= (bound.max or 0.0) for name, bound in self.space.constraints.items()]
        return np.logical_and.reduce(kept)

    def _is_allowed(self, recipes: Array) -> Any:
        return self._is_sound(recipes) & self._keeps(recipes)


class TwoObjectives(Memorising):
    """One whose score and memorised share are both to be low."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__(seed, noise)
        self.name = f"{self.name}-two-objectives"
        self.space = two_objectives()
        self.reference = np.median(self._points(self._sound), axis=0)
        """The values of a middling recipe: what is worse in either is worth nothing."""
        self.best_front = self._search_front(self._own_chance)
        """The recipes of the true Pareto front, one a row, by rising score."""
        self._best_volume = hypervolume(self._points(self.best_front), self.reference)

    def volume(self, front: Sequence[Values]) -> float:
        """Return the hypervolume of the true values of these recipes, as a share of that of the true Pareto front.

        It is that of the logarithms, in which a percent is as much at the low end as at the high one.
        """
        if not front:
            return 0.0
        points = self._points(np.array([encode(values) for values in front]))
        return hypervolume(points, self.reference) / self._best_volume

    def _points(self, recipes: Array) -> Array:
        """Return the logarithms of the two objectives [N, 2]."""
        numbers = self._numbers(recipes)
        return np.log(np.stack([numbers[name] for name in self.space.objectives], axis=1))

    def _search_front(self, chance: np.random.Generator) -> Array:
        """Search for the Pareto front: from the best of 10,000 random recipes, nearer and nearer around what it has."""
        front = self._undominated(np.concatenate([self._sound, self.best_recipe[None]]))
        for width in WIDTHS:
            centres = front[chance.permutation(len(front))[:KEPT]]
            near = neighbours(np.repeat(centres, NEIGHBOURS, axis=0), width, chance)
            front = self._undominated(np.concatenate([front, near[self._is_sound(near)]]))
        return front

    def _undominated(self, recipes: Array) -> Array:
        """Return the recipes that no other dominates, by rising score."""
        points = self._points(recipes)
        order = np.lexsort((points[:, 1], points[:, 0]))
        second = points[order, 1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return recipes[order[second < before]]


def hypervolume(points: Array, reference: Array) -> float:
    """Return the area that points [N, 2], of which lower is better, dominate up to a reference point [2]."""
    inside = points[(points < reference).all(axis=1)]
    return float(compute_hypervolume(inside, reference))


@functools.cache
def two_objectives() -> Space:
    """Return the space of synthetic surfaces with two objectives; who proposes is the default of such spaces."""
    plain = synthetic_space()
    fields = plain.model_dump(exclude_unset=True, exclude={"proposals", "objectives"})
    return Space.of(**fields, objectives={OBJECTIVE: "minimize", MEMORISED: "minimize"})
