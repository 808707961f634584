"""What every denoising network is to the rest: a module that is told a noise level and conditions."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from scrimp_trainers.conditioning.conditions import NOTHING, Conditions


class Denoiser(nn.Module):
    """A denoising network. Its file in this folder has `build` and `load`, which return one."""

    shape: torch.Size
    """Shape [C, H, W] of an image."""
    classes: int
    """Number of classes that the network can be told, 0 for none."""
    coordinates: bool = False
    """Whether it is told which part of the whole image it sees."""
    folder: ClassVar[str]
    """Where it lies in the folder of an exported model."""
    library_class: ClassVar[str]
    """The class of diffusers that reads it."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B]."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the network in diffusers' own form."""
        raise NotImplementedError

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks diffusers' class for its output, given those of its images and labels."""
        raise NotImplementedError
