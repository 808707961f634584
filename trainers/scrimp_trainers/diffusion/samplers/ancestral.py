"""DDPM's ancestral sampler (Ho et al. 2020, algorithm 2), on the whole chain or on evenly spaced steps of it."""

import math
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.diffusion.ddpm import DDPM
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.recipe.samplers import Ancestral, Variance


def sample(process: DDPM, settings: Ancestral, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:
    """Draw x_{T-1}, and then each x_before from its posterior given x_t and the estimate of the clean image."""
    grid = cast(list[int], process.grid(settings.steps))
    x = noise()
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        estimate = predict(x, torch.full(x.shape[:1], t, device=x.device))
        x = step(process, estimate, x, t, before, noise(), variance=settings.variance, clip=clip)
    return x


def step(
    process: DDPM, estimate: Tensor, x: Tensor, t: int, before: int, noise: Tensor, *, variance: Variance, clip: bool
) -> Tensor:
    """Draw x_before given x_t and the estimated clean image (Ho et al., eq. 7, with either variance of section 3.2).

    The clean image itself, `before` = -1, is the mean: no noise is added.
    """
    abar = process.alpha_bar(t)
    abar_before = process.alpha_bar(before)
    alpha = abar / abar_before

    clean = process.clean(estimate, x, torch.full(x.shape[:1], t, device=x.device))
    if clip:
        clean = clean.clamp(-1, 1)
    mean = (math.sqrt(abar_before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - abar_before) * x) / (1 - abar)

    spread = 1 - alpha
    if variance == "fixed_small" or before < 0:
        spread *= (1 - abar_before) / (1 - abar)
    return mean + math.sqrt(spread) * noise


def export(process: DDPM, settings: Ancestral, *, clip: bool) -> Exported:
    """Return diffusers' scheduler.

    With the larger variance and fewer steps than the chain has, it would add noise to the images in the last step.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    chain = process.scheduler_settings()
    scheduler = DDPMScheduler(**chain, variance_type=settings.variance, clip_sample=clip)
    if settings.variance == "fixed_large" and settings.steps < process.settings.timesteps:
        return Exported(scheduler, settings.steps, result="x = step.pred_original_sample\n")
    return Exported(scheduler, settings.steps, pipeline="DDPMPipeline")
