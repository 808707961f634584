"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): of second order, with one evaluation a step, for every process."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scrimp_trainers.diffusion.process import Noise, Predict, Process
from scrimp_trainers.diffusion.samplers.exported import Exported, chain_caveat
from scrimp_trainers.recipe.samplers import DPMSolver


def sample(process: Process, settings: DPMSolver, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:  # noqa: ARG001
    """Go from the highest noise level to the clean image. Nothing is clipped, whatever `clip` says.

    With lambda = ln(alpha / sigma), a step of length h takes x to (sigma' / sigma) x + alpha' (1 - e^-h) D, where D
    extrapolates the last two estimates of the clean image. The first and the last step are of first order.
    """
    levels = process.grid(settings.steps)
    scales = [*(_scales(process, level) for level in levels), (1.0, 0.0)]
    x = noise() * scales[0][1]
    before = None
    length_before = math.nan

    for level, ((alpha, sigma), (alpha_next, sigma_next)) in zip(levels, pairwise(scales), strict=True):
        times = _times(x, level)
        clean = process.clean(predict(x, times), x, times)
        if sigma_next == 0:
            x = alpha_next * clean
            continue

        length = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        extrapolated = clean
        if before is not None:
            extrapolated = clean + (clean - before) * (length / length_before / 2)
        x = x * (sigma_next / sigma) - extrapolated * (alpha_next * math.expm1(-length))
        before = clean
        length_before = length
    return x


def export(process: Any, settings: DPMSolver, *, clip: bool) -> Exported:  # noqa: ARG001
    """Return the scheduler of diffusers that makes the same steps: it has one for EDM's levels and one for a chain."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    own = process.settings
    if "a chain of steps" in own.offers:
        scheduler = DPMSolverMultistepScheduler(**process.scheduler_settings())
        return Exported(scheduler, settings.steps, chain_caveat(own.timesteps, settings.steps))
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=own.sigma_min, sigma_max=own.sigma_max, sigma_data=own.sigma_data, rho=own.rho
    )
    return Exported(scheduler, settings.steps)


def _scales(process: Process, level: float) -> tuple[float, float]:
    alpha, sigma = process.scales(torch.tensor([level]))
    return float(alpha), float(sigma)


def _times(x: Tensor, level: float) -> Tensor:
    """Return the level of every image: a whole number where levels are steps of a chain."""
    dtype = torch.long if isinstance(level, int) else x.dtype
    return torch.full(x.shape[:1], level, dtype=dtype, device=x.device)
