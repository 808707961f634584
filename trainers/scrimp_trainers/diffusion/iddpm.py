"""Improved DDPM: "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal 2021), from its formulas.

The network returns twice the channels of x: what DDPM's does, and v, which places the logarithm of a reverse step's
variance between those of beta-tilde (v = -1) and beta (v = 1).
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from scrimp_trainers.diffusion import ddpm
from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.recipe import diffusion

HALF_BIN = 1 / 255
"""Half the distance of two grey levels, of images scaled to [-1, 1]."""
OUTERMOST = 0.999
"""Beyond this, a bin is the first or the last one, which reaches to infinity."""
TINY = 1e-12
"""Smallest probability of a bin."""


@dataclass(frozen=True)
class IDDPMProcess(ddpm.DDPMProcess):
    """DDPM with learned variances. The estimate [B, 2 C, ...] is what the network predicts, and v."""

    settings: diffusion.IDDPM

    def clean(self, estimate: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the clean images [B, C, ...]."""
        return super().clean(estimate.chunk(2, 1)[0], noisy, t)

    def noise(self, estimate: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the noise [B, C, ...] in noisy images."""
        return super().noise(estimate.chunk(2, 1)[0], noisy, t)

    def std(self, estimate: Tensor, smallest: float, largest: float) -> Tensor:
        """Return the standard deviation [B, C, ...] of a reverse step, between the roots of two variances (eq. 15)."""
        share = (estimate.chunk(2, 1)[1] + 1) / 2
        return torch.exp((share * math.log(largest) + (1 - share) * math.log(smallest)) / 2)

    def losses(self, estimate: Tensor, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the hybrid loss: L_simple + lambda L_vlb, of which the second moves v alone (eq. 16).

        L_vlb is the bound's term at t times the number of steps, whose mean over t is the whole bound.
        """
        predicted, v = estimate.chunk(2, 1)
        simple = super().losses(predicted, images, noise, t)
        bound = self.bound(predicted.detach(), v, images, noise, t)
        return simple + self.settings.vlb_weight * self.settings.timesteps * bound

    def bound(self, predicted: Tensor, v: Tensor, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the variational bound's term at t, in bits, mean over an image's elements (Ho et al., eq. 5).

        For t > 0 it is the divergence of the model's reverse step from the posterior for the true image. At t = 0 it is
        minus the logarithm of the probability of the image's grey levels, as Ho et al. define it, of latents, too.
        """
        smallest, width, of_clean = (over_images(table[t], images) for table in self._tables(t.device))
        above = (v + 1) / 2 * width  # of the logarithm of the variance, above that of beta-tilde
        log_variance = smallest + above
        error = images - super().clean(predicted, self.add_noise(images, noise, t), t)

        distance = (of_clean * error).square() / log_variance.exp()
        divergence = (above + torch.expm1(-above) + distance) / 2
        terms = torch.where(over_images(t, images) == 0, -_log_bin(images, error, log_variance), divergence)
        return terms.flatten(1).mean(1) / math.log(2)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        return _tables(settings.betas, settings.beta_start, settings.beta_end, settings.timesteps, device)


def build(settings: diffusion.IDDPM) -> IDDPMProcess:
    """Return the process with these settings."""
    return IDDPMProcess(settings)


def _log_bin(images: Tensor, error: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-probability of each element's grey level, under a Gaussian that is off by `error`."""
    std = (log_variance / 2).exp()
    below = torch.special.ndtr((error - HALF_BIN) / std)
    up_to = torch.special.ndtr((error + HALF_BIN) / std)
    above = torch.special.ndtr((HALF_BIN - error) / std)
    inner = torch.where(images > OUTERMOST, above, up_to - below)
    return torch.where(images < -OUTERMOST, up_to, inner).clamp(min=TINY).log()


@cache
def _tables(kind: str, start: float, end: float, timesteps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return [T] each: ln(beta-tilde), how far ln(beta) is above it, the clean image's factor in the posterior's mean.

    Beta-tilde is 0 at t = 0; its logarithm is taken from t = 1.
    """
    abar = ddpm.exact_alpha_bars(kind, start, end, timesteps)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    betas = 1 - abar / before
    tilde = betas * (1 - before) / (1 - abar)
    tilde[0] = tilde[1]
    of_clean = before.sqrt() * betas / (1 - abar)
    smallest, width, factor = (table.float().to(device) for table in (tilde.log(), (betas / tilde).log(), of_clean))
    return smallest, width, factor
