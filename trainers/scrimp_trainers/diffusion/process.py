"""What training and sampling need of a diffusion process: a noisy image is x = alpha y + sigma n at every noise level.

A process is a file in this folder whose `build` returns one; those there are: `edm`, `ddpm`, `iddpm`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from scrimp_trainers.conditioning.conditions import Conditions

Predict = Callable[[Tensor, Tensor], Tensor]
"""What a sampler asks of a model: images [B, ...] and their noise levels [B] to what `Process.denoise` returns."""
Noise = Callable[[], Tensor]
"""Gives fresh standard normal noise of the images' shape at every call."""


class Process(Protocol):
    """A diffusion process. A batch x is [B, ...] of any rank; its noise levels are [B]."""

    @property
    def sums(self) -> bool:
        """Whether training sums an image's loss over its elements, or takes the mean.

        To Adam it is nearly the same: only eps and L2 weight decay, which is added to the gradient, know the
        difference.
        """
        ...

    def levels(self, count: int, generator: torch.Generator, /) -> Tensor:
        """Draw the noise levels [count] of a training batch, on the generator's device."""
        ...

    def scales(self, levels: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma [B] of x = alpha y + sigma n."""
        ...

    def add_noise(self, x: Tensor, noise: Tensor, levels: Tensor, /) -> Tensor:
        """Return alpha x + sigma noise."""
        ...

    def denoise(self, network: nn.Module, noisy: Tensor, levels: Tensor, conditions: Conditions, /) -> Tensor:
        """Ask the network what it makes of noisy images: the process's estimate."""
        ...

    def clean(self, estimate: Tensor, noisy: Tensor, levels: Tensor, /) -> Tensor:
        """Return the clean images that an estimate for noisy ones amounts to."""
        ...

    def losses(self, estimate: Tensor, x: Tensor, noise: Tensor, levels: Tensor, /) -> Tensor:
        """Compare an estimate with the truth: [B], the mean over each image's elements.

        A network that knows nothing has losses of about 1.
        """
        ...

    def weight(self, levels: Tensor, /) -> Tensor:
        """Return the factor [B] of the squared error of the clean image in `losses`."""
        ...

    def grid(self, steps: int, /) -> list[float]:
        """Return the noise levels of a sampler's steps, from the highest down, without that of the clean image."""
        ...


def sigmas(process: Process, levels: Tensor) -> Tensor:
    """Return the noise's standard deviation [B] for a signal of scale 1: sigma / alpha."""
    alpha, sigma = process.scales(levels)
    return sigma / alpha


def over_images(values: Tensor, images: Tensor) -> Tensor:
    """View one value an image [B] as [B, 1, ...], of the images' rank."""
    return values.view(-1, *[1] * (images.ndim - 1))
