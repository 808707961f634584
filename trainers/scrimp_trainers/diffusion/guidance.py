"""Classifier-free guidance: "Classifier-Free Diffusion Guidance" (Ho and Salimans 2022), and MDT's schedule of it."""

import math

import torch
from torch import Tensor

from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.recipe.diffusion import Diffusion
from scrimp_trainers.recipe.samplers import Sampler


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, channels: int) -> Tensor:
    """Return unconditional + scale (conditional - unconditional) in the first `channels`, in others the conditional.

    Parameters
    ----------
    conditional, unconditional
        What `Process.denoise` makes of the same noisy images [B, C, ...] with and without their condition.
    scale
        One number for all images, or one each [B].
    """
    if isinstance(scale, Tensor):
        scale = over_images(scale, conditional).to(conditional.dtype)
    estimate = torch.lerp(unconditional, conditional, scale)
    if channels >= estimate.shape[1]:
        return estimate
    return torch.cat([estimate[:, :channels], conditional[:, channels:]], 1)


def scale_at(sampler: Sampler, process: Diffusion, levels: Tensor) -> float | Tensor:
    """Return the guidance scale at noise levels [B].

    With a power p it follows MDT's power-cosine (Gao et al. 2023), which begins at 1 where there is only noise: at step
    t of a chain of T it is 1 + (guidance - 1) (1 - cos(pi (1 - t / T)^p)) / 2.
    """
    if sampler.guidance_power is None or process.most_steps is None:
        return sampler.guidance
    share = (1 - torch.cos(math.pi * (1 - levels / process.most_steps) ** sampler.guidance_power)) / 2
    return 1 + (sampler.guidance - 1) * share
