"""What the rest needs of a denoising network: a module that takes noisy items, noise levels and conditions."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The names that diffusers gives the files of a network."""


class Denoiser(nn.Module):
    """A denoising network. Its file in this folder has `build` and `load`, which return one.

    One that is no network of diffusers sets `config`, from which `save` and `from_folder` keep and restore it.
    """

    config: Mapping[str, Any]
    """Its constructor's arguments, as JSON has them."""
    shape: torch.Size
    """Shape [C, H, W] of an image."""
    classes: int
    """Number of classes that the network can be conditioned on, 0 for none."""
    lengths: Tensor | None
    """int64 [size + 1], how many items of each length it was trained on, a buffer; samples have lengths drawn from
    them. None for items of one size."""
    text: tuple[int, int] | None = None
    """Tokens of a caption, and numbers of a token, that it takes; None if it takes no captions."""
    coordinates: bool = False
    """Whether it takes coordinates: which part of the whole image it sees."""
    tokens: int = 0
    """Tokens of an image, of which a pass may be shown a part (`Conditions.kept`); 0 if it is always shown all."""
    convolutional: ClassVar[bool] = False
    """Whether most of what it computes are convolutions, so that their layout in memory matters."""
    variances: bool = False
    """Whether it returns as many channels again: the variances of a reverse step."""
    folder: ClassVar[str] = "network"
    """Where it lies in the folder of an exported model."""
    base: str = ""
    """The model that it only adds to, a folder or hub id; its own folder does not hold that. Empty if it is whole."""
    library_class: ClassVar[str] = ""
    """The class of diffusers that reads it; empty if none does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lengths", None)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B]."""
        raise NotImplementedError

    def kept_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of it: all of its tensors, but for those that training leaves as they are."""
        return self.state_dict()

    def load_kept(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Load what `kept_state` returned, read from a file; raises as `weights.load_weights` does."""
        weights.load_weights(self, tensors, file)

    def example(self, count: int) -> Conditions:
        """Return conditions of the shape that it takes for `count` images, on the CPU, to measure what it costs."""
        if self.text:
            return Conditions(text=torch.zeros(count, *self.text))
        return Conditions(labels=torch.zeros(count, dtype=torch.long)) if self.classes else NOTHING

    @property
    def takes_only_images_and_levels(self) -> bool:
        """Whether diffusers' own pipelines, which give their network no more than that, can sample with it."""
        return not (self.classes or self.coordinates)

    def tell_lengths(self, counts: Sequence[int] | None) -> None:
        """Keep how many training items there are of each length; without effect on a network for items of one size."""
        if self.lengths is not None and counts is not None:
            self.lengths.copy_(torch.tensor(counts))

    def save(self, folder: Path) -> None:
        """Write the network: in diffusers' own form, if it has a class there."""
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps(dict(self.config), indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read a network that `save` wrote into the folder of an exported model.

        Raises
        ------
        UserError
            If the config or the weights are damaged, missing or misshapen.
        """
        return _filled(folder / cls.folder, lambda config: cls(**config), cls.__name__)

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks diffusers' class for its output, given those of its images and labels."""
        raise NotImplementedError

    @property
    def code(self) -> str:
        """Code in torch alone that reads this network from an exported model, where diffusers has no class for it."""
        return ""


def load_library_network(library_class: Any, folder: Path) -> Any:
    """Read a network of diffusers that `save` wrote. Its own loading would leave missing tensors at random values.

    Raises
    ------
    UserError
        If the folder's config or weights are damaged, missing or misshapen.
    """
    return _filled(folder, library_class.from_config, library_class.__name__)


def make_library_network(library_class: Any, folder: Path) -> Any:
    """Make a network of diffusers from its config alone.

    Raises
    ------
    UserError
        If the folder's config is damaged or missing.
    """
    return _made(folder, library_class.from_config, library_class.__name__)


def _filled(folder: Path, make: Callable[[dict[str, Any]], Any], name: str) -> Any:
    """Make a network from its config, and fill it with its weights, of which none may be missing."""
    network = _made(folder, make, name)
    file = folder / WEIGHTS
    weights.load_weights(network, weights.read_weights(file), file)
    return network


def _made(folder: Path, make: Callable[[dict[str, Any]], Any], name: str) -> Any:
    try:
        return make(json.loads((folder / CONFIG).read_text()))
    except Exception as error:  # each wrong value fails in a different way
        raise UserError(f"{folder / CONFIG}: not the config of a {name}: {weights.one_line(error)}") from error
