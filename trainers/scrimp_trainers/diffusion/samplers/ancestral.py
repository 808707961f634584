"""DDPM's ancestral sampler (Ho et al. 2020, algorithm 2), on the whole chain or on evenly spaced steps of it."""

import math
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.diffusion.ddpm import DDPMProcess
from scrimp_trainers.diffusion.iddpm import IDDPMProcess
from scrimp_trainers.diffusion.process import Noise, Predict
from scrimp_trainers.diffusion.samplers.exported import Exported, chain_caveat
from scrimp_trainers.recipe.samplers import Ancestral, Variance


def sample(process: DDPMProcess, settings: Ancestral, predict: Predict, noise: Noise, *, clip: bool) -> Tensor:
    """Draw x_{T-1}, and then each x_before from its posterior given x_t and the estimate of the clean image."""
    grid = cast(list[int], process.grid(settings.steps))
    x = noise()
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        estimate = predict(x, torch.full(x.shape[:1], t, device=x.device))
        x = step(process, estimate, x, t, before, noise(), variance=settings.variance, clip=clip)
    return x


def step(
    process: DDPMProcess,
    estimate: Tensor,
    x: Tensor,
    t: int,
    before: int,
    noise: Tensor,
    *,
    variance: Variance,
    clip: bool,
) -> Tensor:
    """Draw x_before given x_t and the estimated clean image (Ho et al., eq. 7, with either variance of section 3.2).

    Learned variances lie between the two (Nichol and Dhariwal 2021).

    The clean image itself, `before` = -1, is the mean: no noise is added.
    """
    abar = process.alpha_bar(t)
    abar_before = process.alpha_bar(before)
    alpha = abar / abar_before

    clean = process.clean(estimate, x, torch.full(x.shape[:1], t, device=x.device))
    if clip:
        clean = clean.clamp(-1, 1)
    mean = (math.sqrt(abar_before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - abar_before) * x) / (1 - abar)

    largest = 1 - alpha
    smallest = largest * ((1 - abar_before) / (1 - abar))
    if variance == "learned" and before >= 0:
        return mean + cast(IDDPMProcess, process).std(estimate, smallest, largest) * noise
    spread = largest if variance == "fixed_large" and before >= 0 else smallest
    return mean + math.sqrt(spread) * noise


def export(process: DDPMProcess, settings: Ancestral, *, clip: bool) -> Exported:
    """Return diffusers' scheduler.

    With more than the smaller variance and fewer steps than the chain has, it would add noise in the last step.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    chain = process.scheduler_settings()
    learned = settings.variance == "learned"
    variance = "learned_range" if learned else settings.variance
    scheduler = DDPMScheduler(**chain, variance_type=variance, clip_sample=clip)
    caveat = chain_caveat(process.settings.timesteps, settings.steps)
    if settings.variance != "fixed_small" and settings.steps < process.settings.timesteps:
        result = "x = step.pred_original_sample\n"
        return Exported(scheduler, settings.steps, caveat, result=result, takes_variances=learned)
    return Exported(scheduler, settings.steps, caveat, pipeline="DDPMPipeline", takes_variances=learned)
