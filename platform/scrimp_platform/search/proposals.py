"""Who proposes a sweep's trials: an Optuna sampler, by the name that the space gives it in `proposals`.

Each is made anew for every proposal. What it proposes depends on the sweep's seed, the trial's number and the study's
history alone, so a resumed sweep proposes the same as an uninterrupted one.
"""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from scipy.stats.qmc import Sobol

from scrimp_spaces.space import Space
from scrimp_trainers.common import parts

MIN_STARTUP_TRIALS = 4
MAX_STARTUP_TRIALS = 10


def sampler(space: Space, seed: int, number: int) -> BaseSampler:
    """Return the sampler that proposes the trial of this number in a sweep of this seed."""
    own_seed = (seed * 100_003 + number) % 2**32
    startup = min(MAX_STARTUP_TRIALS, max(MIN_STARTUP_TRIALS, space.budget.trials // 3))
    match space.proposals:
        case "tpe":
            return TPESampler(seed=own_seed, n_startup_trials=startup, multivariate=True, group=True)
        case "gp":
            return GPSampler(seed=own_seed, n_startup_trials=startup)
        case "random":
            return RandomSampler(own_seed)
        case "curves":
            # Kept out of the other proposals' start: scipy.optimize takes a while to import.
            from scrimp_platform.search.curve_sampler import CurveSampler

            return CurveSampler(space, own_seed, QuasiRandomSampler(list(space.search), seed, number), startup)
        case "qmc":
            return QuasiRandomSampler(list(space.search), seed, number)
        case own:
            return parts.own(own)(space, seed, number)


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
