"""What a recipe's techniques need before the first step: made once for a dataset, and shared by all repeats."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.files import write_atomic
from scrimp_trainers.ranks import rank_0_first
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
    class_weights: Tensor | None = None
    """[K], the weight of each class, 1 on average."""
    loss_weights: Tensor | None = None
    """The same, where they are factors on the losses."""
    chances: np.ndarray | None = None
    """[N or as many as are kept], how likely each image is to be drawn, in proportion."""
    files: tuple[Path, ...] = ()
    """In the dataset's cache, what to show of it: the coreset's list and picture."""


NOTHING = Prepared()
"""For a recipe without techniques that need anything."""


def prepare(
    recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, rank: int = 0, world: int = 1
) -> Prepared:
    """Make, or read from the dataset's cache, what the recipe's techniques need.

    In a process group rank 0 makes it, and the others read it.

    Raises
    ------
    UserError
        If the dataset does not allow a technique, or a weight file is missing.
    """
    with rank_0_first(rank, world):
        return _prepare(recipe, dataset, seed, device)


def leave(prepared: Prepared, dataset: Dataset, folder: Path) -> None:
    """Leave in a repeat's folder what was prepared for it: coreset.csv, coreset.png, class_weights.json."""
    for file in prepared.files:
        write_atomic(folder / f"coreset{file.suffix}", file.read_bytes())
    if prepared.class_weights is not None:
        weights = dict(zip(dataset.manifest.classes or [], prepared.class_weights.tolist(), strict=True))
        write_atomic(folder / "class_weights.json", json.dumps(weights, indent=2) + "\n")


def _prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Prepared:
    kept, files, codec, image_keys = None, (), None, None
    if recipe.coreset.on:
        kept, files = _coreset(recipe, dataset, seed, device)
    if recipe.codec.on:
        from scrimp_trainers.techniques.codec import open_codec

        codec = open_codec(recipe.codec, device, dataset.manifest.channels)
    if recipe.ambient.on:
        keys, _ = dataset.entries("train")
        image_keys = ambient.keys(dataset.manifest.content_hash, keys).to(device)
    if not recipe.reweighting.on:
        return Prepared(kept, codec, image_keys, files=files)
    from scrimp_trainers.techniques.reweighting import class_weights  # it trains as this module's callers do

    weights = class_weights(dataset, recipe.reweighting, seed, device, kept)
    if recipe.reweighting.enters == "loss":
        return Prepared(kept, codec, image_keys, weights, weights.to(device), files=files)
    _, labels = dataset.entries("train")
    chances = weights.cpu().numpy()[labels if kept is None or labels is None else labels[kept]]
    return Prepared(kept, codec, image_keys, weights, chances=chances, files=files)


def _coreset(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> tuple[np.ndarray, tuple[Path, ...]]:
    """Return the positions of the coreset's images, and the files of its list and its picture if they can be kept."""
    from scrimp_trainers.metrics import references  # their extractors take seconds to import
    from scrimp_trainers.techniques.coreset import score
    from scrimp_trainers.techniques.coreset_picture import picture

    scored = score(dataset, recipe.coreset, device, seed)
    drawn = scored.file.with_suffix(".png")
    if scored.file.exists() and not drawn.exists():  # the cache may be read-only
        references.write(drawn, lambda aside: picture(dataset, recipe.coreset, scored).save(aside, "PNG"))
    return np.flatnonzero(scored.kept), tuple(file for file in (scored.file, drawn) if file.exists())
