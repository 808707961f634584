"""EDM: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022), from its formulas.

Images y are in [-1, 1] with standard deviation `sigma_data`; a noisy image is x = y + sigma n, and sigma its level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.recipe import diffusion


@dataclass(frozen=True)
class EDMProcess:
    """The preconditioned denoiser D(x; sigma), whose estimate is the clean image."""

    settings: diffusion.EDM
    sums: bool = True

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw sigma [count] for training: ln(sigma) is normal (table 1)."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (normal * self.settings.p_std + self.settings.p_mean).exp_()

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and sigma."""
        return torch.ones_like(sigma), sigma

    def add_noise(self, images: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return x = y + sigma n."""
        return torch.addcmul(images, noise, over_images(sigma, images))

    def denoise(self, network: nn.Module, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Return D(x; sigma), the estimate of the clean images (eq. 7, coefficients of table 1).

        The network's input and its training target have unit variance at every sigma.
        """
        skip, out, scale = self.preconditioning(over_images(sigma, noisy))
        raw = network(noisy * scale, sigma.log() / 4, conditions)
        return torch.addcmul(noisy * skip, raw.to(noisy.dtype), out)

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c_skip, c_out and c_in (table 1)."""
        data = self.settings.sigma_data
        variance = sigma.square() + data**2
        return data**2 / variance, sigma * data * variance.rsqrt(), variance.rsqrt()

    def clean(self, estimate: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Return the estimate: it is the clean image."""
        return estimate

    def losses(self, estimate: Tensor, images: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) |D - y|^2, mean over an image's elements (eq. 2, lambda of table 1)."""
        return self.weight(sigma) * (estimate - images).square().flatten(1).mean(1)

    def weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma), which makes the loss about 1 at every sigma for a network that knows nothing."""
        data = self.settings.sigma_data
        return (sigma.square() + data**2) / (sigma * data).square()

    def grid(self, steps: int) -> list[float]:
        """Return t_0 > ... > t_{N-1} (eq. 5)."""
        settings = self.settings
        high = settings.sigma_max ** (1 / settings.rho)
        low = settings.sigma_min ** (1 / settings.rho)
        shares = [i / max(steps - 1, 1) for i in range(steps)]
        return [(high + share * (low - high)) ** settings.rho for share in shares]


def build(settings: diffusion.EDM) -> EDMProcess:
    """Return the process with these settings."""
    return EDMProcess(settings)
