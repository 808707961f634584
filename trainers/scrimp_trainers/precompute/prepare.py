"""Prepare what a recipe's techniques need before the first step: once per dataset, shared by all repeats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common import parts
from scrimp_trainers.common.files import atomic_file
from scrimp_trainers.common.ranks import rank_0_first
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient
from scrimp_trainers.training.inputs import Prepared


def prepare_techniques(
    recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, rank: int = 0, world: int = 1
) -> Prepared:
    """Compute what the recipe's techniques need, or read it from the dataset's cache.

    In a process group rank 0 computes it first, and then the others read it.

    Raises
    ------
    UserError
        If a technique cannot be used on the dataset, or a weight file is missing.
    """
    with rank_0_first(rank, world):
        return _prepare(recipe, dataset, seed, device)


def _prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Prepared:
    prepared = Prepared()

    if recipe.coreset.on:
        kept, files = _choose_coreset(recipe, dataset, seed, device)
        prepared = replace(prepared, kept=kept, files=files)

    codec = parts.module("codecs", recipe.codec.part).build(recipe.codec, dataset.modality.shape, device)
    prepared = replace(prepared, codec=codec)

    if recipe.ambient.on:
        keys, _ = dataset.entries("train")
        noise_keys = ambient.noise_keys(dataset.manifest.content_hash, keys).to(device)
        prepared = replace(prepared, noise_keys=noise_keys)

    if recipe.reweighting.on:
        from scrimp_trainers.precompute.reweighting import compute_class_weights

        weights = compute_class_weights(dataset, recipe.reweighting, seed, device, prepared.kept)
        prepared = replace(prepared, class_weights=weights)
        if recipe.reweighting.enters == "loss":
            prepared = replace(prepared, loss_weights=weights.to(device))
        else:
            prepared = replace(prepared, sampling_weights=_sampling_weights(dataset, weights, prepared.kept))
    return prepared


def _sampling_weights(dataset: Dataset, class_weights: Tensor, kept: np.ndarray | None) -> np.ndarray:
    """Return the weight of each image's class, for the kept images or for all."""
    _, labels = dataset.entries("train")
    if labels is not None and kept is not None:
        labels = labels[kept]
    return class_weights.cpu().numpy()[labels]


def _choose_coreset(
    recipe: Recipe, dataset: Dataset, seed: int, device: torch.device
) -> tuple[np.ndarray, tuple[Path, ...]]:
    """Return the positions of the coreset's images, and its files in the cache: list and picture, if they exist."""
    from scrimp_trainers.precompute.coreset import score_dataset
    from scrimp_trainers.precompute.coreset_picture import draw_picture

    scored = score_dataset(dataset, recipe.coreset, device, seed)
    picture = scored.file.with_suffix(".png")
    if scored.file.exists() and not picture.exists():  # the cache may be read-only
        with atomic_file(picture) as file:
            draw_picture(dataset, recipe.coreset, scored).save(file, "PNG")

    files = tuple(file for file in (scored.file, picture) if file.exists())
    return np.flatnonzero(scored.kept), files
