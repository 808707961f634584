"""Who proposes a sweep's trials: an Optuna sampler, by the name that the space gives it in `proposals`.

Each is made anew for every proposal. What it proposes depends on the sweep's seed, the trial's number and the study's
history alone, so a resumed sweep proposes the same as an uninterrupted one.
"""

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from scrimp_platform.search.curve_sampler import CurveSampler
from scrimp_platform.search.quasi_random import QuasiRandomSampler
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
            return CurveSampler(space, seed, number, startup, own_seed)
        case "qmc":
            return QuasiRandomSampler(list(space.search), seed, number)
        case own:
            return parts.own(own)(space, seed, number)
