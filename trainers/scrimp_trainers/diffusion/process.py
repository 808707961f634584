"""What training and sampling need of a diffusion process; the modules `edm` and `ddpm` are the two there are."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scrimp_trainers.sections import DDPM, EDM, Sampler

Predict = Callable[[Tensor, Tensor], Tensor]
"""What a sampler asks of a model: images [B, C, H, W] and their noise levels [B] to what `Process.denoise` returns."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, one an image, with what they belong to."""

    values: Tensor
    """[B], mean over an image's elements; about 1 for a network that knows nothing."""
    levels: Tensor
    """[B], noise levels: sigma in EDM, t in DDPM."""
    labels: Tensor | None
    """[B], classes as the dataset has them; none without labels."""


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

    def losses(
        self, settings: Any, estimate: Tensor, images: Tensor, noise: Tensor, levels: Tensor, labels: Tensor | None, /
    ) -> Losses:
        """Compare what `denoise` returned with the truth."""
        ...

    def sample(
        self, settings: Any, sampler: Sampler, predict: Predict, noise: Callable[[], Tensor], /, *, clip: bool
    ) -> Tensor:
        """Draw images; every call of `noise` gives fresh standard normal noise of their shape.

        `clip` allows the sampler to keep its estimates in [-1, 1]: true of pixels, false of latents.
        """
        ...


def process_of(settings: EDM | DDPM) -> Process:
    """Return the module for these settings."""
    from scrimp_trainers.diffusion import ddpm, edm  # they import this module's types

    return edm if isinstance(settings, EDM) else ddpm


def seed_of(*parts: int | str) -> int:
    """Mix numbers and words into one seed of 63 bits, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1
