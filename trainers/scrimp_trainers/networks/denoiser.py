"""What every denoising network is to the rest: a module that is told a noise level and conditions."""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
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

    @property
    def takes_only_images_and_levels(self) -> bool:
        """Whether diffusers' own pipelines, which give their network no more than that, can sample with it."""
        return not (self.classes or self.coordinates)

    def save(self, folder: Path) -> None:
        """Write the network in diffusers' own form."""
        raise NotImplementedError

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks diffusers' class for its output, given those of its images and labels."""
        raise NotImplementedError


def load_library_network(library_class: Any, folder: Path) -> Any:
    """Read a network of diffusers that `save` wrote. Its own loading would leave missing tensors at random values.

    Raises
    ------
    UserError
        If the folder's config or weights are damaged, missing or misshapen.
    """
    config = folder / "config.json"
    file = folder / "diffusion_pytorch_model.safetensors"
    try:
        network = library_class.from_config(json.loads(config.read_text()))
    except Exception as error:  # each wrong value fails in a different way
        reason = weights.reason(error)
        raise UserError(f"{config}: not the config of a {library_class.__name__}: {reason}") from error
    weights.fill(network, weights.read(file), file)
    return network
