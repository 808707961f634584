"""EDM's sampler: Heun's method on the probability flow, with fresh noise if S_churn > 0 (Karras et al. 2022)."""

import math
from itertools import pairwise

from torch import Tensor

from scrimp_trainers.diffusion.edm import EDMProcess
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.recipe.samplers import Heun

LOOP = """x = torch.randn(n, {shape}) * scheduler.sigmas[0]
sigmas = scheduler.sigmas.to(x.device)


def denoised(x, sigma):
    t = scheduler.precondition_noise(sigma)
    {output}
    return scheduler.precondition_outputs(x, output, sigma)


with torch.no_grad():
    for sigma, after in zip(sigmas, sigmas[1:]):
{churn}        slope = (x - denoised(x, sigma)) / sigma
        reached = x + (after - sigma) * slope
        if after > 0:
            slope_there = (reached - denoised(reached, after)) / after
            reached = x + (after - sigma) * (slope + slope_there) / 2
        x = reached
"""
"""The steps of `sample` as code."""
CHURN = """        if {low} <= sigma <= float("{high}"):
            churned = sigma * (1 + {gamma})
            x = x + torch.randn_like(x) * (churned**2 - sigma**2).sqrt() * {noise}
            sigma = churned
"""


def sample(process: EDMProcess, settings: Heun, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:  # noqa: ARG001
    """Integrate from the highest sigma to 0 (algorithm 2; without churn algorithm 1).

    The last step, to sigma 0, is Euler's: 2 N - 1 evaluations of the model. EDM clips nothing, whatever `clip` says.
    """
    grid = [*process.grid(settings.steps), 0.0]
    gamma = _gamma(settings)
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
    """Return diffusers' scheduler of EDM, of which the code takes levels and preconditioning.

    The steps are in the code: no scheduler of diffusers takes Heun's with EDM.
    """
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    own = process.settings
    scheduler = EDMEulerScheduler(
        sigma_min=own.sigma_min, sigma_max=own.sigma_max, sigma_data=own.sigma_data, rho=own.rho
    )
    gamma = _gamma(settings)
    churn = CHURN.format(gamma=gamma, low=settings.s_min, high=settings.s_max, noise=settings.s_noise) if gamma else ""
    loop = LOOP.replace("{churn}", churn)
    return Exported(scheduler, settings.steps, network_input="scheduler.precondition_inputs(x, sigma)", loop=loop)


def _gamma(settings: Heun) -> float:
    """Return by which share of itself the noise level is raised before a step."""
    return min(settings.s_churn / settings.steps, math.sqrt(2) - 1)
