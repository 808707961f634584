"""EDM's sampler: Heun's method on the probability flow, with fresh noise if S_churn > 0 (Karras et al. 2022)."""

import math
from itertools import pairwise

from torch import Tensor

from scrimp_trainers.diffusion.edm import EDMProcess
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.recipe.samplers import Heun


def sample(process: EDMProcess, settings: Heun, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:  # noqa: ARG001
    """Integrate from the highest sigma to 0 (algorithm 2; without churn algorithm 1).

    The last step, to sigma 0, is Euler's: 2 N - 1 evaluations of the model. EDM clips nothing, whatever `clip` says.
    """
    grid = [*process.grid(settings.steps), 0.0]
    gamma = min(settings.s_churn / settings.steps, math.sqrt(2) - 1)
    x = noise() * grid[0]

    for t, after in pairwise(grid):
        # Add noise, and go up to a higher sigma.
        if gamma > 0 and settings.s_min <= t <= settings.s_max:
            churned = t * (1 + gamma)
            x = x + noise() * (math.sqrt(churned**2 - t**2) * settings.s_noise)
            t = churned

        # Take Euler's step, and correct it by the slope at its end.
        slope = (x - predict(x, x.new_full(x.shape[:1], t))) / t
        reached = x + (after - t) * slope
        if after > 0:
            slope_there = (reached - predict(reached, x.new_full(x.shape[:1], after))) / after
            reached = x + (after - t) * (slope + slope_there) / 2
        x = reached
    return x


def export(process: EDMProcess, settings: Heun, *, clip: bool) -> Exported:  # noqa: ARG001
    """Return diffusers' Euler scheduler, with as many evaluations: it has none that takes Heun's steps with EDM."""
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    own = process.settings
    scheduler = EDMEulerScheduler(
        sigma_min=own.sigma_min, sigma_max=own.sigma_max, sigma_data=own.sigma_data, rho=own.rho
    )
    return Exported(scheduler, settings.evaluations, "Euler steps (Scrimp samples with Heun's)")
