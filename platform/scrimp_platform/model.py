"""A trained model, loaded for `scrimp sample`, `scrimp evaluate` and the library."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.codecs.codec import Codec
    from scrimp_trainers.conditioning.conditioner import Conditioner
    from scrimp_trainers.data.modalities.modality import Items, Modality
    from scrimp_trainers.networks.denoiser import Denoiser


@dataclass(frozen=True)
class Model:
    """A trained model and the recipe that made it."""

    folder: Path
    """Its folder; diffusers can load it, too."""
    recipe: Recipe
    """The recipe that it was trained with; its sampler draws the images."""
    network: "Denoiser" = field(repr=False)
    """The denoiser, on its device."""
    codec: "Codec" = field(repr=False)
    """Decodes what the network generates."""
    conditioner: "Conditioner | None" = field(default=None, repr=False)
    """The captions that it samples; None for a model that takes none."""

    @classmethod
    def load(cls, folder: str | PathLike[str], device: str | None = None, captions: Sequence[str] = ()) -> "Model":
        """Load a trained model onto the given device; by default onto the best one available.

        A model that takes captions draws samples of `captions` in turn, by default of some that it was trained on.

        Raises
        ------
        UserError
            If the folder holds no model, or one of its files is damaged.
        """
        folder = expand_home(folder)
        require_model(folder)
        from scrimp_trainers.export import load_codec, load_conditioner, load_model

        network, recipe = load_model(folder, device)
        codec = load_codec(folder, recipe, network.device)
        conditioner = load_conditioner(folder, recipe, network.device, captions)
        return cls(folder, recipe, network, codec, conditioner)

    def sample(self, n: int, *, seed: int = 0, steps: int | None = None, batch_size: int = 256) -> np.ndarray:
        """Draw images; image i depends only on the model, the seed and i.

        Parameters
        ----------
        n
            Number of images. A class-conditional model cycles through its classes.
        seed
            Seed of the noise.
        steps
            Sampling steps; by default the recipe's.
        batch_size
            Images per batch.

        Returns
        -------
        np.ndarray
            uint8 [n, C, H, W].

        Raises
        ------
        UserError
            If `n`, `steps` or `batch_size` is out of range.
        """
        batches = self.batches(n, seed=seed, steps=steps, batch_size=batch_size)
        return np.concatenate([batch.cpu().numpy() for batch in batches])

    def batches(self, n: int, *, seed: int = 0, steps: int | None = None, batch_size: int = 256) -> "Iterator[Tensor]":
        """Yield the same images as `sample` in batches, uint8 [b, C, H, W], on the model's device."""
        from scrimp_trainers import sampling

        items = self.items(n, seed=seed, steps=steps, batch_size=batch_size)
        return sampling.rendered(items, self.modality, [])

    def items(self, n: int, *, seed: int = 0, steps: int | None = None, batch_size: int = 256) -> "Iterator[Items]":
        """Yield in batches what `sample` draws, before it is rendered: of drawings their points, with a mask."""
        for name, value in {"n": n, "batch_size": batch_size}.items():
            if value < 1:
                raise UserError(f"{name}: must be at least 1, not {value}")
        from scrimp_trainers import sampling

        recipe = self.recipe
        if steps is not None:
            recipe = recipe.replace({"sampler.steps": steps})
        return sampling.generate_items(
            self.network,
            recipe,
            n,
            seed=seed,
            batch_size=batch_size,
            codec=self.codec,
            conditioner=self.conditioner,
        )

    @property
    def modality(self) -> "Modality":
        """What the items are."""
        from scrimp_trainers import sampling

        return sampling.modality_for(self.network, self.recipe, self.codec)


def require_model(folder: Path) -> None:
    """Check, without importing torch, that a folder holds a model.

    Raises
    ------
    UserError
        If it does not.
    """
    if not any(folder.glob("*/config.json")):
        raise UserError(f"{folder}: not a model (no network's config.json); give the `model` folder of a repeat")
