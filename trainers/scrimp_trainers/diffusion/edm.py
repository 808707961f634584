"""EDM: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022), from its formulas.

Images y are in [-1, 1] with standard deviation `sigma_data`; a noisy image is x = y + sigma n.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scrimp_trainers.diffusion.process import Predict, over_images
from scrimp_trainers.recipe.sections import EDM, Sampler


def levels(settings: EDM, count: int, generator: torch.Generator) -> Tensor:
    """Draw sigma [count] for training: ln(sigma) is normal (table 1)."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return (normal * settings.p_std + settings.p_mean).exp_()


def sigmas(settings: EDM, sigma: Tensor) -> Tensor:  # noqa: ARG001
    """Return the noise's deviation for a signal of scale 1: the level itself."""
    return sigma


def add_noise(settings: EDM, images: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG001
    """Return x = y + sigma n."""
    return torch.addcmul(images, noise, over_images(sigma))


def denoise(settings: EDM, network: nn.Module, noisy: Tensor, sigma: Tensor, **inputs: Any) -> Tensor:
    """Return D(x; sigma), the estimate of the clean images (eq. 7, coefficients of table 1).

    The network's input and its training target have unit variance at every sigma.
    """
    skip, out, scale = preconditioning(settings, over_images(sigma))
    raw = network(noisy * scale, sigma.log() / 4, **inputs)
    return torch.addcmul(noisy * skip, raw.to(noisy.dtype), out)


def preconditioning(settings: EDM, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return c_skip, c_out and c_in (table 1)."""
    data = settings.sigma_data
    variance = sigma.square() + data**2
    return data**2 / variance, sigma * data * variance.rsqrt(), variance.rsqrt()


def losses(
    settings: EDM,
    estimate: Tensor,
    images: Tensor,
    noise: Tensor,  # noqa: ARG001
    sigma: Tensor,
) -> Tensor:
    """Return lambda(sigma) |D - y|^2, mean over an image's elements (eq. 2, lambda of table 1)."""
    return weight(settings, sigma) * (estimate - images).square().flatten(1).mean(1)


def weight(settings: EDM, sigma: Tensor) -> Tensor:
    """Return lambda(sigma), which makes the loss about 1 at every sigma for a network that knows nothing (table 1)."""
    return (sigma.square() + settings.sigma_data**2) / (sigma * settings.sigma_data).square()


def time_grid(settings: EDM, steps: int) -> list[float]:
    """Return the sampler's noise levels t_0 > ... > t_{N-1}, and t_N = 0 (eq. 5)."""
    high, low = settings.sigma_max ** (1 / settings.rho), settings.sigma_min ** (1 / settings.rho)
    share = [i / max(steps - 1, 1) for i in range(steps)]
    return [(high + s * (low - high)) ** settings.rho for s in share] + [0.0]


def sample(
    settings: EDM,
    sampler: Sampler,
    predict: Predict,
    noise: Callable[[], Tensor],
    *,
    clip: bool,  # noqa: ARG001
) -> Tensor:
    """Integrate the probability flow with Heun's method, with fresh noise at each step if S_churn > 0 (algorithm 2).

    The last step, to sigma 0, is Euler's: 2 N - 1 evaluations of the model. EDM clips nothing, whatever `clip` says.
    """
    grid = time_grid(settings, sampler.steps)
    gamma = min(sampler.s_churn / sampler.steps, math.sqrt(2) - 1)
    x = noise() * grid[0]
    for t, after in pairwise(grid):
        if gamma > 0 and sampler.s_min <= t <= sampler.s_max:
            churned = t * (1 + gamma)
            x = x + noise() * (math.sqrt(churned**2 - t**2) * sampler.s_noise)
            t = churned
        slope = (x - predict(x, x.new_full(x.shape[:1], t))) / t
        reached = x + (after - t) * slope
        if after > 0:
            slope_there = (reached - predict(reached, x.new_full(x.shape[:1], after))) / after
            reached = x + (after - t) * (slope + slope_there) / 2
        x = reached
    return x
