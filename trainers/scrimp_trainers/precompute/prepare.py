"""Prepare what a recipe's techniques need before the first step: once per dataset, shared by all repeats."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common import parts
from scrimp_trainers.common.files import atomic_file
from scrimp_trainers.common.ranks import agreed, patient_group, rank_0_first, rank_and_world
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe.needs import Kind
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient
from scrimp_trainers.training.inputs import Prepared


def prepare_techniques(
    recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, rank: int = 0, world: int = 1
) -> Prepared:
    """Compute what the recipe's techniques need, or read it from the dataset's cache.

    In a process group rank 0 computes it first, and then the others read it; but all ranks train the reference and the
    proxy of class weights together.

    Raises
    ------
    UserError
        If a technique cannot be used on the dataset, or a weight file is missing.
    """
    group = patient_group()
    with rank_0_first(rank, world):
        prepared = _prepare(recipe, dataset, seed, device)
    if not recipe.reweighting.on:
        return prepared

    from scrimp_trainers.precompute.reweighting import compute_class_weights

    found = compute_class_weights(dataset, recipe.reweighting, seed, device, prepared.kept, group)
    prepared = replace(prepared, class_weights=found.weights, device_hours=found.device_hours)
    if recipe.reweighting.enters == "loss":
        return replace(prepared, loss_weights=found.weights.to(device))
    return replace(prepared, sampling_weights=_sampling_weights(dataset, found.weights, prepared.kept))


@dataclass(frozen=True)
class Trained:
    """What a recipe's reference or proxy has cost."""

    device_hours: float
    """Of all attempts, whoever made them."""
    now: bool
    """Whether it was trained now, and not found in the dataset's cache."""


def train_needed(kind: Kind, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Trained:
    """Train the reference or the proxy that a repeat needs, or find it in the dataset's cache.

    In a process group every rank calls this, and all train together.

    Raises
    ------
    UserError
        If the recipe cannot be used on the dataset.
    Diverged
        If the training diverges.
    """
    from scrimp_trainers.precompute import dro, reweighting

    settings = recipe.reweighting
    rank, world = rank_and_world()
    group = patient_group()
    if kind == "reference":
        folder = reweighting.reference_folder(dataset, settings)
        missing = agreed(not (folder / "model").exists(), group)
        reweighting.cached_reference(dataset, settings, device, group)
        return Trained(dro.reference_hours(folder), missing)

    kept = None
    with rank_0_first(rank, world):
        if recipe.coreset.on:
            kept, _ = _choose_coreset(recipe, dataset, seed, device)
    found = reweighting.compute_class_weights(dataset, settings, seed, device, kept, group)
    return Trained(found.proxy_hours, found.trained)


def _prepare(recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Prepared:
    prepared = Prepared()

    if recipe.coreset.on:
        kept, files = _choose_coreset(recipe, dataset, seed, device)
        prepared = replace(prepared, kept=kept, files=files)

    codec = parts.module("codecs", recipe.codec.part).build(recipe.codec, dataset.modality.shape, device)
    prepared = replace(prepared, codec=codec)

    if recipe.conditioning.text:
        from scrimp_trainers.conditioning.text import open_texts

        files = text_files.of_setting(recipe.conditioning.text)
        prepared = replace(prepared, conditioner=open_texts(dataset, files, device))

    if recipe.ambient.on:
        keys, _ = dataset.entries("train")
        noise_keys = ambient.noise_keys(dataset.manifest.content_hash, keys).to(device)
        prepared = replace(prepared, noise_keys=noise_keys)
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
