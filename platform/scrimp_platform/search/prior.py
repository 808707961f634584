"""What earlier sweeps say of the recipes of a space, before the sweep has scores of its own.

Scores of another dataset, extractor or budget mean nothing here, but their order may: each earlier sweep is taken as a
list of recipes from best to worst. A Gaussian process over the fields that it shares with the space learns the normal
quantiles of their places, and its mean is what the sweep expects of any recipe: about -1 for good ones, 0 where the
sweep knows nothing. How far that is to be trusted, the curve model learns from the new sweep's scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from scrimp_platform.search import curve_model
from scrimp_platform.search.curve_model import Observations
from scrimp_platform.search.encoding import Encoding
from scrimp_spaces.space import Space

MAX_RECIPES = 300
"""Of all earlier sweeps together, from which their expectations are learned; the time of a proposal grows with them."""
MIN_RECIPES_EACH = 20


@dataclass(frozen=True)
class EarlierSweep:
    """What is taken from a sweep: its name, fields, and recipes from best to worst, by their values of these fields."""

    name: str
    fields: tuple[str, ...]
    recipes: tuple[Mapping[str, Any], ...]


class Prior:
    """What earlier sweeps expect of the recipes of a space."""

    def __init__(self, space: Space, sweeps: Sequence[EarlierSweep] = ()) -> None:
        most = max(MIN_RECIPES_EACH, MAX_RECIPES // max(len(sweeps), 1))
        self._places = [_Places(space, sweep, most) for sweep in sweeps]

    def expectations(self, shares: np.ndarray) -> np.ndarray:
        """Return the place [N, E] that each sweep expects of the recipes at these shares [N, fields] of the space.

        It is a normal quantile, lower for better recipes.
        """
        if not self._places:
            return np.empty((len(shares), 0))
        return np.stack([places.expected(shares) for places in self._places], axis=1)


class _Places:
    """The places of one sweep's recipes, learned from at most so many of them, from all over the order."""

    def __init__(self, space: Space, sweep: EarlierSweep, most: int) -> None:
        shared = space.model_copy(update={"search": {path: space.search[path] for path in sweep.fields}})
        paths = list(space.search)
        self._columns = [paths.index(path) for path in sweep.fields]
        self._encoding = Encoding(shared)

        recipes = sweep.recipes[:: math.ceil(len(sweep.recipes) / most)]
        count = len(recipes)
        points = self._encoding.points(self._encoding.shares(recipes))
        quantiles = ndtri((np.arange(count) + 0.5) / count)
        one_rung = np.zeros(count, int)
        every = np.arange(count)
        scores = Observations(points, self._encoding.columns, np.zeros(1), every, every, one_rung, quantiles)
        self._model = curve_model.fitted(scores)

    def expected(self, shares: np.ndarray) -> np.ndarray:
        points = self._encoding.points(shares[:, self._columns])
        return self._model.means(points, 0)
