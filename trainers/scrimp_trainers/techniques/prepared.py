"""What a recipe's techniques need before the first step: made once for a dataset, and shared by all repeats."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe import Recipe
from scrimp_trainers.techniques import ambient

if TYPE_CHECKING:
    from scrimp_trainers.techniques.codec import OpenCodec


@dataclass(frozen=True)
class Prepared:
    """What the techniques need; none where a technique is off."""

    kept: np.ndarray | None = None
    """Positions of the coreset's images in the training split."""
    codec: "OpenCodec | None" = None
    """The autoencoder between pixels and latents."""
    image_keys: Tensor | None = None
    """int64 [N], a number for each training image from which its fixed noise is drawn."""
    loss_weights: Tensor | None = None
    """[K], a factor on the losses of each class, 1 on average."""
    chances: np.ndarray | None = None
    """[N or as many as are kept], how likely each image is to be drawn, in proportion."""


NOTHING = Prepared()
"""For a recipe without techniques that need anything."""


def prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, world: int) -> Prepared:
    """Make, or read from the dataset's cache, what the recipe's techniques need.

    In a process group rank 0 makes it, and the others read it.

    Raises
    ------
    UserError
        If the dataset does not allow a technique, or a weight file is missing.
    """
    if world == 1:
        return _prepare(recipe, dataset, seed, device)
    # Training a reference can take longer than a process group waits by default.
    patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    if dist.get_rank() > 0:
        dist.barrier(patient)
    made = _prepare(recipe, dataset, seed, device)
    if dist.get_rank() == 0:
        dist.barrier(patient)
    return made


def _prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Prepared:
    kept, codec, image_keys, loss_weights, chances = None, None, None, None, None
    if recipe.coreset.on:
        from scrimp_trainers.techniques.coreset import open_coreset  # its extractors take seconds to import

        kept = open_coreset(dataset, recipe.coreset, device, seed)
    if recipe.codec.on:
        from scrimp_trainers.techniques.codec import open_codec

        codec = open_codec(recipe.codec, device, dataset.manifest.channels)
    if recipe.ambient.on:
        keys, _ = dataset.entries("train")
        image_keys = ambient.keys(dataset.manifest.content_hash, keys).to(device)
    if recipe.reweighting.on:
        from scrimp_trainers.techniques.reweighting import class_weights  # it trains as this module's callers do

        weights = class_weights(dataset, recipe.reweighting, seed, device, kept)
        if recipe.reweighting.enters == "loss":
            loss_weights = weights.to(device)
        else:
            _, labels = dataset.entries("train")
            chances = weights.cpu().numpy()[labels if kept is None or labels is None else labels[kept]]
    return Prepared(kept, codec, image_keys, loss_weights, chances)
