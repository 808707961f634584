"""How the score depends on single fields, as the curve model has it: partial dependence (Friedman 2001, 8.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from scrimp_platform.search import curves
from scrimp_platform.search.curve_model import one_thread
from scrimp_platform.search.curves import Curves
from scrimp_platform.search.records import Trial
from scrimp_platform.search.stats import CONFIDENCE
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space

MAX_FIELDS = 4
"""Fields that are shown, over all objectives."""
STEPS = 49
"""Values of a field that is a number."""
MAX_RECIPES = 100
"""Recipes over which the score is averaged."""


@dataclass(frozen=True)
class Dependence:
    """What the model expects of the score at the last rung if only this field is set, with the ends of 95% intervals.

    Attributes
    ----------
    objective, path : str
        The score and the field.
    values : list
        Values of the field, in order.
    means, lows, highs : list of float
        The expected score at each, on the score's own scale, and how sure that is.
    tried : dict
        The values of the trials from which the model has learned, by their numbers.
    """

    objective: str
    path: str
    values: list[Any]
    means: list[float]
    lows: list[float]
    highs: list[float]
    tried: dict[int, Any]


def dependences(trials: Sequence[Trial], space: Space, fields: Sequence[str]) -> list[Dependence]:
    """Return how each objective depends on the first of these fields; nothing where there is too little to learn from.

    Each objective gets a model of its own, whoever has proposed the trials.
    """
    first_fields = fields[: max(1, MAX_FIELDS // len(space.objectives))]
    by_objective_and_field: list[Dependence] = []
    for name, direction in space.objectives.items():
        own = space.model_copy(update={"objectives": {name: direction}, "constraints": {}})
        learned = curves.learn(trials, own)
        if learned:
            by_objective_and_field += [_dependence(learned, name, path) for path in first_fields]
    return by_objective_and_field


def _dependence(learned: Curves, objective: str, path: str) -> Dependence:
    """Average over the recipes of the trials in which the field exists, with their other fields as they are.

    A field that a recipe lacks, and would have with another value of this one, is drawn from its range.
    """
    space = learned.space
    scored = [trial for trial in learned.trials if trial.number in learned.expected and path in trial.params]
    tried = {trial.number: trial.params[path] for trial in scored}
    recipes = scored[:: math.ceil(len(scored) / MAX_RECIPES)]
    shares = learned.encoding.shares([trial.params for trial in recipes])
    drawn = np.random.default_rng(0).random(shares.shape)
    shares = np.where(np.isnan(shares), drawn, shares)

    field = list(space.search).index(path)
    values = _values(space.search[path])
    means: list[float] = []
    errors: list[float] = []
    for share in learned.encoding.shares([{path: value} for value in values])[:, field]:
        shares[:, field] = share
        with one_thread():
            points = learned.points_at(shares)
            mean, _, covariance = learned.model.predict(points, learned.last, points)
        means.append(float(mean.mean()))
        errors.append(math.sqrt(max(float(covariance.mean()), 0.0)))

    middle = np.array(means)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.array(errors)
    low, mean, high = np.sort(
        curves.as_scores(learned, np.array([middle - half, middle, middle + half])), axis=0
    ).tolist()
    return Dependence(objective, path, values, mean, low, high, tried)


def _values(span: Range) -> list[Any]:
    """Return values from all over the range, in order: the options of a choice, else evenly spaced ones."""
    if span.choice:
        return list(span.choice)
    low, high = span.uniform or span.loguniform or span.int or (0, 1)
    spaced = np.geomspace if span.loguniform or span.log else np.linspace
    numbers = np.clip(spaced(low, high, STEPS), low, high).tolist()
    if span.int:
        return sorted({round(low + span.step * round((number - low) / span.step)) for number in numbers})
    return numbers
