"""DDPM's ancestral sampler (Ho et al. 2020, algorithm 2), on the whole chain or on evenly spaced steps of it."""

import math
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.diffusion.ddpm import DDPM
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.recipe.samplers import Ancestral


def sample(process: DDPM, settings: Ancestral, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:
    """Draw x_{T-1}, and then each x_before from its posterior given x_t and the estimate of the clean image."""
    grid = cast(list[int], process.grid(settings.steps))
    x = noise()
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        estimate = predict(x, torch.full(x.shape[:1], t, device=x.device))
        x = step(process, estimate, x, t, before, noise(), clip=clip)
    return x


def step(process: DDPM, estimate: Tensor, x: Tensor, t: int, before: int, noise: Tensor, *, clip: bool) -> Tensor:
    """Draw x_before from its posterior given x_t and the estimated clean image (Ho et al., eq. 7)."""
    abar = process.alpha_bar(t)
    abar_before = process.alpha_bar(before)
    alpha = abar / abar_before

    clean = process.clean(estimate, x, torch.full(x.shape[:1], t, device=x.device))
    if clip:
        clean = clean.clamp(-1, 1)
    mean = (math.sqrt(abar_before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - abar_before) * x) / (1 - abar)
    return mean + math.sqrt((1 - abar_before) / (1 - abar) * (1 - alpha)) * noise


def export(process: DDPM, settings: Ancestral, *, clip: bool) -> Exported:
    """Return diffusers' scheduler."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(**process.scheduler_settings(), clip_sample=clip)
    return Exported(scheduler, settings.steps, pipeline="DDPMPipeline")
