"""What training and sampling need of a diffusion process; the modules `edm` and `ddpm` are the two there are."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scrimp_trainers.recipe.sections import Sampler

Predict = Callable[[Tensor, Tensor], Tensor]
"""What a sampler asks of a model: images [B, C, H, W] and their noise levels [B] to what `Process.denoise` returns."""


class Process(Protocol):
    """The functions that a process's module holds; `settings` is the recipe's `diffusion`, a batch is [B, C, H, W]."""

    def levels(self, settings: Any, count: int, generator: torch.Generator, /) -> Tensor:
        """Draw the noise levels [count] of a training batch, on the generator's device."""
        ...

    def sigmas(self, settings: Any, levels: Tensor, /) -> Tensor:
        """Tell the noise's deviation [B] at these levels, for a signal of scale 1."""
        ...

    def add_noise(self, settings: Any, images: Tensor, noise: Tensor, levels: Tensor, /) -> Tensor:
        """Put standard normal noise on clean images, each at its level [B]."""
        ...

    def denoise(self, settings: Any, network: nn.Module, noisy: Tensor, levels: Tensor, /, **inputs: Any) -> Tensor:
        """Ask the network what it makes of noisy images; `inputs` go to the network as they are."""
        ...

    def losses(self, settings: Any, estimate: Tensor, images: Tensor, noise: Tensor, levels: Tensor, /) -> Tensor:
        """Compare what `denoise` returned with the truth: [B], the mean over each image's elements.

        A network that knows nothing has losses of about 1.
        """
        ...

    def sample(
        self, settings: Any, sampler: Sampler, predict: Predict, noise: Callable[[], Tensor], /, *, clip: bool
    ) -> Tensor:
        """Draw images; every call of `noise` gives fresh standard normal noise of their shape.

        `clip` allows the sampler to keep its estimates in [-1, 1]: true of pixels, false of latents.
        """
        ...


def over_images(values: Tensor) -> Tensor:
    """View one value an image [B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]
