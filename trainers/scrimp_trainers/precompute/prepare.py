"""Make what a recipe's techniques need before the first step: once for a dataset, shared by all repeats."""

from pathlib import Path

import numpy as np
import torch

from scrimp_trainers.common.files import atomic_file
from scrimp_trainers.common.ranks import rank_0_first
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient
from scrimp_trainers.training.inputs import Prepared


def prepare_techniques(
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


def _prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Prepared:
    kept, files, codec, image_keys = None, (), None, None
    if recipe.coreset.on:
        kept, files = _coreset(recipe, dataset, seed, device)
    if recipe.codec.on:
        from scrimp_trainers.codecs.autoencoder import open_codec

        codec = open_codec(recipe.codec, device, dataset.manifest.channels)
    if recipe.ambient.on:
        keys, _ = dataset.entries("train")
        image_keys = ambient.noise_keys(dataset.manifest.content_hash, keys).to(device)
    if not recipe.reweighting.on:
        return Prepared(kept, codec, image_keys, files=files)
    from scrimp_trainers.precompute.reweighting import compute_class_weights  # it trains as this module's callers do

    weights = compute_class_weights(dataset, recipe.reweighting, seed, device, kept)
    if recipe.reweighting.enters == "loss":
        return Prepared(kept, codec, image_keys, weights, weights.to(device), files=files)
    _, labels = dataset.entries("train")
    chances = weights.cpu().numpy()[labels if kept is None or labels is None else labels[kept]]
    return Prepared(kept, codec, image_keys, weights, chances=chances, files=files)


def _coreset(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> tuple[np.ndarray, tuple[Path, ...]]:
    """Return the positions of the coreset's images, and the files of its list and its picture if they can be kept."""
    from scrimp_trainers.precompute.coreset import score_dataset
    from scrimp_trainers.precompute.coreset_picture import draw_picture

    scored = score_dataset(dataset, recipe.coreset, device, seed)
    drawn = scored.file.with_suffix(".png")
    if scored.file.exists() and not drawn.exists():  # the cache may be read-only
        with atomic_file(drawn) as part:
            draw_picture(dataset, recipe.coreset, scored).save(part, "PNG")
    return np.flatnonzero(scored.kept), tuple(file for file in (scored.file, drawn) if file.exists())
