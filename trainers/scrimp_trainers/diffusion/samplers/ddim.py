"""DDIM: "Denoising Diffusion Implicit Models" (Song et al. 2021), on evenly spaced steps of DDPM's chain."""

import math
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.diffusion.ddpm import DDPMProcess
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported, chain_caveat
from scrimp_trainers.recipe.samplers import DDIM


def sample(process: DDPMProcess, settings: DDIM, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:
    """Draw x_{T-1}, and go to each x_before: without noise at eta = 0."""
    grid = cast(list[int], process.grid(settings.steps))
    x = noise()
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        estimate = predict(x, torch.full(x.shape[:1], t, device=x.device))
        fresh = noise() if settings.eta > 0 else None
        x = step(process, estimate, x, t, before, settings.eta, fresh, clip=clip)
    return x


def step(
    process: DDPMProcess,
    estimate: Tensor,
    x: Tensor,
    t: int,
    before: int,
    eta: float,
    noise: Tensor | None,
    *,
    clip: bool,
) -> Tensor:
    """Go from x_t to x_before (eq. 12 and 16); `noise` is needed only if eta > 0."""
    abar = process.alpha_bar(t)
    abar_before = process.alpha_bar(before)
    std = eta * math.sqrt((1 - abar_before) / (1 - abar) * (1 - abar / abar_before))

    times = torch.full(x.shape[:1], t, device=x.device)
    clean = process.clean(estimate, x, times)
    direction = process.noise(estimate, x, times)
    if clip:
        clean = clean.clamp(-1, 1)
    x = math.sqrt(abar_before) * clean + math.sqrt(1 - abar_before - std**2) * direction
    return x if noise is None else x + std * noise


def export(process: DDPMProcess, settings: DDIM, *, clip: bool) -> Exported:
    """Return diffusers' scheduler. Its pipeline does not know of eta."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(**process.scheduler_settings(), clip_sample=clip)
    caveat = chain_caveat(process.settings.timesteps, settings.steps)
    if settings.eta:
        return Exported(scheduler, settings.steps, caveat, arguments=f", eta={settings.eta}")
    return Exported(scheduler, settings.steps, caveat, pipeline="DDIMPipeline")
