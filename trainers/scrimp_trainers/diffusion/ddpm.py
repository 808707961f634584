"""DDPM: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020) and DDIM (Song et al. 2021), from their formulas.

A noisy image is x_t = sqrt(abar_t) y + sqrt(1 - abar_t) n, with t from 0 to T - 1 and abar_{-1} = 1.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from scrimp_trainers.diffusion.process import Predict
from scrimp_trainers.recipe.sections import DDPM, Sampler


def alpha_bars(settings: DDPM, device: torch.device) -> Tensor:
    """Return abar [T]: linear betas (Ho et al., section 4) or the squared cosine (Nichol and Dhariwal, eq. 17)."""
    return _alpha_bars(settings.betas, settings.beta_start, settings.beta_end, settings.timesteps, device)


@cache
def _alpha_bars(kind: str, start: float, end: float, timesteps: int, device: torch.device) -> Tensor:
    if kind == "linear":
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
    else:
        share = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        cosine = torch.cos((share + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0).float().to(device)


def levels(settings: DDPM, count: int, generator: torch.Generator) -> Tensor:
    """Draw t [count] for training, uniformly."""
    return torch.randint(settings.timesteps, (count,), generator=generator, device=generator.device)


def sigmas(settings: DDPM, t: Tensor) -> Tensor:
    """Return the noise's deviation for a signal of scale 1: sigma of x_t / sqrt(abar_t) = y + sigma n."""
    abar = alpha_bars(settings, t.device)[t]
    return ((1 - abar) / abar).sqrt()


def add_noise(settings: DDPM, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t (Ho et al., eq. 4)."""
    signal, deviation = _mix(settings, t)
    return images * signal + noise * deviation


def denoise(settings: DDPM, network: nn.Module, noisy: Tensor, t: Tensor, **inputs: Any) -> Tensor:  # noqa: ARG001
    """Return what the network predicts: the noise or the velocity, as the settings say."""
    return network(noisy, t, **inputs).to(noisy.dtype)


def losses(settings: DDPM, estimate: Tensor, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return |prediction - target|^2, mean over an image's elements (L_simple, Ho et al., eq. 14)."""
    target = noise
    if settings.prediction == "v":
        signal, deviation = _mix(settings, t)
        target = noise * signal - images * deviation  # Salimans and Ho 2022, appendix D
    return (estimate - target).square().flatten(1).mean(1)


def clean_and_noise(settings: DDPM, prediction: Tensor, x: Tensor, t: Tensor, clip: bool) -> tuple[Tensor, Tensor]:
    """Turn a prediction into the clean images and the noise; `clip` keeps the clean images in [-1, 1], as pixels are.

    Latents have no such bounds: clipping those of unit variance would shrink them to a deviation of 0.6 to 0.7.
    """
    signal, deviation = _mix(settings, t)
    if settings.prediction == "v":
        clean = x * signal - prediction * deviation
        noise = prediction * signal + x * deviation
    else:
        clean = (x - prediction * deviation) / signal
        noise = prediction
    if clip:
        clean = clean.clamp(-1, 1)
    return clean, noise


def time_grid(settings: DDPM, steps: int) -> list[int]:
    """Return t from T - 1 down, evenly spaced so that the next would be -1 (the clean image)."""
    return [math.ceil(settings.timesteps * (steps - i) / steps) - 1 for i in range(steps)]


def ancestral_step(
    settings: DDPM, prediction: Tensor, x: Tensor, t: int, before: int, noise: Tensor, *, clip: bool
) -> Tensor:
    """Draw x_before from its posterior given x_t and the predicted clean image (Ho et al., eq. 7)."""
    abar, abar_before = _abar(settings, t), _abar(settings, before)
    alpha = abar / abar_before
    clean, _ = clean_and_noise(settings, prediction, x, _times(x, t), clip)
    mean = (math.sqrt(abar_before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - abar_before) * x) / (1 - abar)
    return mean + math.sqrt((1 - abar_before) / (1 - abar) * (1 - alpha)) * noise


def ddim_step(
    settings: DDPM, prediction: Tensor, x: Tensor, t: int, before: int, eta: float, noise: Tensor | None, *, clip: bool
) -> Tensor:
    """Go from x_t to x_before (Song et al., eq. 12 and 16); `noise` is needed only if eta > 0."""
    abar, abar_before = _abar(settings, t), _abar(settings, before)
    deviation = eta * math.sqrt((1 - abar_before) / (1 - abar) * (1 - abar / abar_before))
    clean, direction = clean_and_noise(settings, prediction, x, _times(x, t), clip)
    x = math.sqrt(abar_before) * clean + math.sqrt(1 - abar_before - deviation**2) * direction
    return x if noise is None else x + deviation * noise


def sample(settings: DDPM, sampler: Sampler, predict: Predict, noise: Callable[[], Tensor], *, clip: bool) -> Tensor:
    """Draw images by ancestral sampling or DDIM, on the whole chain or on evenly spaced steps of it.

    `clip` says that they are pixels, whose estimates are kept in [-1, 1] at every step.
    """
    grid = time_grid(settings, sampler.steps)
    x = noise()
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        prediction = predict(x, _times(x, t))
        if sampler.kind == "ancestral":
            x = ancestral_step(settings, prediction, x, t, before, noise(), clip=clip)
        else:
            fresh = noise() if sampler.eta > 0 else None
            x = ddim_step(settings, prediction, x, t, before, sampler.eta, fresh, clip=clip)
    return x


def _mix(settings: DDPM, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shares of image and noise in x_t, [B, 1, 1, 1] each."""
    abar = alpha_bars(settings, t.device)[t][:, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()


def _abar(settings: DDPM, t: int) -> float:
    return 1.0 if t < 0 else float(alpha_bars(settings, torch.device("cpu"))[t])


def _times(x: Tensor, t: int) -> Tensor:
    return torch.full(x.shape[:1], t, device=x.device)
