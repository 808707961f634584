"""DDPM: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), from its formulas.

A noisy image is x_t = sqrt(abar_t) y + sqrt(1 - abar_t) n, with t from 0 to T - 1 and abar_{-1} = 1.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.recipe import diffusion

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
"""What diffusers calls the schedules of betas."""


@dataclass(frozen=True)
class DDPMProcess:
    """A chain of T steps. The estimate is what the network predicts: the noise or the velocity."""

    settings: diffusion.Chain
    sums: bool = False

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw t [count] for training, uniformly."""
        return torch.randint(self.settings.timesteps, (count,), generator=generator, device=generator.device)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar_t) and sqrt(1 - abar_t)."""
        abar = self.alpha_bars(t.device)[t]
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (Ho et al., eq. 4)."""
        alpha, sigma = self._mix(t, images)
        return images * alpha + noise * sigma

    def denoise(self, network: nn.Module, noisy: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Return what the network predicts: the noise or the velocity, as the settings say."""
        return network(noisy, t, conditions).to(noisy.dtype)

    def clean(self, estimate: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the clean images, out of the noise or the velocity (Salimans and Ho 2022, appendix D)."""
        alpha, sigma = self._mix(t, noisy)
        if self.settings.prediction == "v":
            return noisy * alpha - estimate * sigma
        return (noisy - estimate * sigma) / alpha

    def noise(self, estimate: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the noise in noisy images."""
        if self.settings.prediction == "v":
            alpha, sigma = self._mix(t, noisy)
            return estimate * alpha + noisy * sigma
        return estimate

    def losses(self, estimate: Tensor, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return |estimate - target|^2, mean over an image's elements (L_simple, Ho et al., eq. 14)."""
        target = noise
        if self.settings.prediction == "v":
            alpha, sigma = self._mix(t, images)
            target = noise * alpha - images * sigma  # Salimans and Ho 2022, appendix D
        return (estimate - target).square().flatten(1).mean(1)

    def weight(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio, and 1 more where the velocity is predicted."""
        alpha, sigma = self.scales(t)
        ratio = (alpha / sigma).square()
        return ratio + 1 if self.settings.prediction == "v" else ratio

    def grid(self, steps: int) -> list[float]:
        """Return t from T - 1 down, evenly spaced so that the next would be -1 (the clean image)."""
        return [math.ceil(self.settings.timesteps * (steps - i) / steps) - 1 for i in range(steps)]

    def alpha_bars(self, device: torch.device) -> Tensor:
        """Return abar [T]."""
        settings = self.settings
        return _alpha_bars(settings.betas, settings.beta_start, settings.beta_end, settings.timesteps, device)

    def alpha_bar(self, t: int) -> float:
        """Return abar_t, which is 1 at t = -1."""
        return 1.0 if t < 0 else float(self.alpha_bars(torch.device("cpu"))[t])

    def scheduler_settings(self) -> dict[str, Any]:
        """Return the chain as diffusers' schedulers are given it."""
        settings = self.settings
        return {
            "num_train_timesteps": settings.timesteps,
            "beta_start": settings.beta_start,
            "beta_end": settings.beta_end,
            "beta_schedule": SCHEDULES[settings.betas],
            "prediction_type": "epsilon" if settings.prediction == "epsilon" else "v_prediction",
            "timestep_spacing": "trailing",
        }

    def _mix(self, t: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.scales(t)
        return over_images(alpha, images), over_images(sigma, images)


def build(settings: diffusion.DDPM) -> DDPMProcess:
    """Return the process with these settings."""
    return DDPMProcess(settings)


@cache
def _alpha_bars(kind: str, start: float, end: float, timesteps: int, device: torch.device) -> Tensor:
    return exact_alpha_bars(kind, start, end, timesteps).float().to(device)


def exact_alpha_bars(kind: str, start: float, end: float, timesteps: int) -> Tensor:
    """Return abar, float64 [T], for the schedule of betas and its first and last value.

    Betas are linear (Ho et al., section 4), or their square root is (Rombach et al. 2022), or abar is a squared cosine
    (Nichol and Dhariwal 2021, eq. 17).
    """
    if kind == "linear":
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64).square()
    else:
        share = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        cosine = torch.cos((share + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)
