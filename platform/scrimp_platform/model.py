"""A trained model, loaded: what `scrimp sample` and `scrimp evaluate` draw from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.codecs.autoencoder import OpenCodec
    from scrimp_trainers.networks.denoiser import Denoiser


@dataclass(frozen=True)
class Model:
    """A trained model and the recipe that made it."""

    folder: Path
    """Its folder, which diffusers loads, too."""
    recipe: Recipe
    """The recipe by which it was trained, and whose sampler it uses."""
    network: "Denoiser" = field(repr=False)
    """The denoiser, on its device."""
    codec: "OpenCodec | None" = field(repr=False)
    """What decodes the latents that it draws; none if it draws pixels."""

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> "Model":
        """Read a model that a training wrote, onto the device named or the best there is.

        Raises
        ------
        UserError
            If the folder holds none, or a file of it is damaged.
        """
        require(folder)
        from scrimp_trainers.export import load_codec, load_model

        network, recipe = load_model(folder, device)
        codec = load_codec(folder, recipe, network.device)
        return cls(folder, recipe, network, codec)

    def sample(self, n: int, *, seed: int = 0, steps: int | None = None, batch_size: int = 256) -> np.ndarray:
        """Draw images; image i depends on the model, the seed and i alone.

        Parameters
        ----------
        n
            How many. A model of classes draws these in turn.
        seed
            Seed of the noise.
        steps
            Sampling steps; by default the recipe's.
        batch_size
            Images at once.

        Returns
        -------
        np.ndarray
            uint8 [n, C, H, W].

        Raises
        ------
        UserError
            If a number is not one that a model can sample with.
        """
        batches = self.batches(n, seed=seed, steps=steps, batch_size=batch_size)
        return np.concatenate([batch.cpu().numpy() for batch in batches])

    def batches(self, n: int, *, seed: int = 0, steps: int | None = None, batch_size: int = 256) -> "Iterator[Tensor]":
        """Draw the images that `sample` draws, uint8 [b, C, H, W] at a time, on the model's device."""
        for name, value in {"n": n, "batch_size": batch_size}.items():
            if value < 1:
                raise UserError(f"{name}: must be at least 1, not {value}")
        from scrimp_trainers import sampling

        recipe = self.recipe.replace({"sampler.steps": steps}) if steps is not None else self.recipe
        return sampling.generate(self.network, recipe, n, seed=seed, batch_size=batch_size, codec=self.codec)


def require(folder: Path) -> None:
    """Refuse a folder that holds no model, without importing torch.

    Raises
    ------
    UserError
        If it holds none.
    """
    if not any(folder.glob("*/config.json")):
        raise UserError(f"{folder}: not a model (no network's config.json); name the model folder of a repeat")
