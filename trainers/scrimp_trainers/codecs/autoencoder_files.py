"""The files of a frozen autoencoder, and what they say before any of it is loaded.

This file imports no torch, so that mistakes answer at once.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.hub import find_part
from scrimp_trainers.recipe.techniques import Autoencoder

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PART = "vae"
"""Its folder in that of a whole model."""


@dataclass(frozen=True)
class Kind:
    """What tells a kind of autoencoder from the others."""

    class_name: str
    """Its class in diffusers."""
    module: str
    """The file in diffusers' `models/autoencoders/` that has the class."""
    blocks: str
    """Which list of a config has an entry for each level."""
    levels: int
    """How many levels there are where a config leaves that out."""
    channels: int
    """Channels of a latent where a config leaves them out."""
    draws: bool
    """Whether latents are drawn, from a posterior, or fixed."""
    is_scaled: bool
    """Whether the network sees latents that are scaled as the config says, or as they are."""


KINDS = {
    "kl": Kind("AutoencoderKL", "autoencoder_kl", "block_out_channels", 1, 4, draws=True, is_scaled=True),
    "tiny": Kind("AutoencoderTiny", "autoencoder_tiny", "num_encoder_blocks", 4, 4, draws=False, is_scaled=True),
    "vq": Kind("VQModel", "vq_model", "block_out_channels", 1, 3, draws=False, is_scaled=False),
}
"""By `codec.kind`. What a config leaves out is diffusers' default."""


@dataclass(frozen=True)
class AutoencoderFiles:
    """One of diffusers' autoencoders, on disk."""

    folder: Path
    """Holds its config and its weights."""
    where: str
    """How a message names it: the field of the recipe and its value."""
    channels: int
    """Channels of a latent."""
    factor: int
    """Pixels to a latent cell, along each side."""
    draws: bool
    """Whether latents are drawn, from a posterior, or fixed."""
    shift: float
    """Taken off latents before they are scaled."""

    @property
    def moments(self) -> int:
        """Numbers that are kept of a latent cell: each channel's mean and log-variance, or its value."""
        return 2 * self.channels if self.draws else self.channels

    def side(self, size: int) -> int:
        """Return the side of the latents of images of `size` pixels.

        Raises
        ------
        UserError
            If the images do not divide into cells.
        """
        if size % self.factor:
            raise UserError(
                f"{self.where}: a latent cell is {self.factor} pixels wide, of which {size} is no multiple; "
                "prepare the dataset with another --size"
            )
        return size // self.factor

    def identity(self) -> str:
        """Return the SHA-256 of config and weights."""
        digest = hashlib.sha256((self.folder / CONFIG).read_bytes())
        with (self.folder / WEIGHTS).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def copy(self, folder: Path) -> None:
        """Copy it into the folder of a model."""
        part = folder / PART
        part.mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self.folder / name, part / name)


def find(settings: Autoencoder, role: Literal["encoder", "decoder"]) -> AutoencoderFiles:
    """Find the autoencoder that encodes, or the one that decodes; one of the hub's is downloaded if need be.

    Raises
    ------
    UserError
        If there is none, or it is of another kind.
    """
    name, where = getattr(settings, role), f"codec.{role} {getattr(settings, role)}"
    return _read(find_part(name, PART, (CONFIG, WEIGHTS), where), settings, where)


def latent_shape(settings: Autoencoder, size: int) -> tuple[int, int] | None:
    """Return channels and side of the latents of images of `size` pixels, or None if only the hub knows.

    Raises
    ------
    UserError
        If the images do not divide into latent cells, the encoder is of another kind, or there is no such folder.
    """
    folder = Path(settings.encoder)
    if folder.is_absolute():
        find(settings, "encoder")  # it is no name of the hub's
    folder = folder / PART if (folder / PART).is_dir() else folder
    if not (folder / CONFIG).is_file():
        return None
    autoencoder = _read(folder, settings, f"codec.encoder {settings.encoder}")
    return autoencoder.channels, autoencoder.side(size)


def _read(folder: Path, settings: Autoencoder, where: str) -> AutoencoderFiles:
    kind = KINDS[settings.kind]
    try:
        config: dict[str, Any] = dict(json.loads((folder / CONFIG).read_text()))
        given = config.get("_class_name")
        levels = len(config[kind.blocks]) if kind.blocks in config else kind.levels
        channels = int(config.get("vq_embed_dim") or config.get("latent_channels", kind.channels))
        shift = float(config.get("shift_factor") or 0)
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{where}: its {CONFIG} is damaged; fetch it again") from None

    if given != kind.class_name:
        raise UserError(f"{where}: holds the class {given}, but codec.kind {settings.kind!r} needs {kind.class_name}")
    if levels < 1 or channels < 1:
        raise UserError(f"{where}: its {CONFIG} is damaged; fetch it again")
    return AutoencoderFiles(folder, where, channels, 2 ** (levels - 1), kind.draws, shift)
