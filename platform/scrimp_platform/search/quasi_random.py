"""A Sobol sequence over a searched space."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from scipy.stats.qmc import Sobol


class QuasiRandomSampler(BaseSampler):
    """Proposes the points of a scrambled Sobol sequence: evenly spread, and blind to results.

    Optuna's own QMCSampler draws choices and conditional fields at random, and keeps its position in the study, which
    may have to be rebuilt. Here every field has a dimension, and a trial's number is its position.
    """

    def __init__(self, paths: list[str], seed: int, number: int) -> None:
        points = Sobol(len(paths), scramble=True, rng=seed).random_base2(number.bit_length())
        self._shares = dict(zip(paths, points[number].tolist(), strict=True))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: each field is drawn by itself, out of its own dimension."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, likewise."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the field's value at the trial's point."""
        return quantile(param_distribution, self._shares[param_name])


def quantile(distribution: BaseDistribution, share: float) -> Any:
    """Return the value below which this share, in [0, 1), of a distribution lies."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        # Each number owns the interval of its neighbourhood.
        half = distribution.step / 2
        value = _between(distribution.low - half, distribution.high + half, share, distribution.log)
        steps = round((value - distribution.low) / distribution.step)
        return min(distribution.low + steps * distribution.step, distribution.high)
    if isinstance(distribution, FloatDistribution):
        return _between(distribution.low, distribution.high, share, distribution.log)
    raise TypeError(f"no quantile of {distribution}")


def _between(low: float, high: float, share: float, log: bool) -> float:
    return low * (high / low) ** share if log else low + share * (high - low)
