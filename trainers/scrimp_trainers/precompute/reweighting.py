"""Class weights by distributionally robust optimisation (Li et al. 2025).

The paper's update is not known. This is a reconstruction after DoReMi (Xie et al. 2023) with classes as domains: a
reference is trained as usual; then a proxy, whose loss follows the classes in which it is furthest behind the
reference; the average of its class weights over all steps is what other trainings take. Group DRO (Sagawa et al. 2020)
has no reference and follows the proxy's own loss.

Whether the paper's reference saw all the data or the coreset is not known either. Here it sees the whole training
split, so that one reference serves all coresets, and the proxy sees the coreset.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import locked, write_atomic
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.fit import check_class_weights
from scrimp_trainers.recipe.recipe import reference_recipe
from scrimp_trainers.recipe.techniques import Reweighting

FORMAT = 1
"""Version of the class weights. Raise it when they are found in another way: they are made again."""


def compute_class_weights(
    dataset: Dataset, settings: Reweighting, seed: int, device: torch.device, kept: np.ndarray | None = None
) -> Tensor:
    """Find a weight for each class, or read it from the dataset's cache.

    Reference and proxy are trained once for a dataset, a recipe and a coreset, by this process alone; another one that
    asks for the same waits. `random` and `inverse` are made of the weights that `dro` gives.

    Parameters
    ----------
    seed
        Shuffles the weights of `random`.
    kept
        Positions of the coreset in the training split, none for all.

    Returns
    -------
    Tensor
        float32 [K] on the CPU, 1 on average.

    Raises
    ------
    UserError
        If `fit.check_class_weights` refuses, or the dataset's folder cannot be written.
    Diverged
        If reference or proxy does.
    """
    check_class_weights(settings, dataset.manifest)
    weights = torch.tensor(_shared(dataset, settings, device, kept), dtype=torch.float64)
    if settings.method == "random":
        generator = torch.Generator().manual_seed(seed_of("reweighting", seed))
        weights = weights[torch.randperm(len(weights), generator=generator)]
    elif settings.method == "inverse":
        weights = 1 / weights
    return (weights / weights.mean()).float()


def _shared(dataset: Dataset, settings: Reweighting, device: torch.device, kept: np.ndarray | None) -> list[float]:
    """Return the weights of `dro` or `group_dro`, and make them first if nobody has."""
    recipe = reference_recipe(settings)
    family = "group-dro" if settings.method == "group_dro" else "dro"
    classes = len(dataset.manifest.classes or [])
    made_of = _hash(FORMAT, dataset.manifest.content_hash, recipe.to_yaml())
    folder = dataset.folder / "cache" / f"reweighting-{made_of}"
    coreset = None if kept is None else hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    file = folder / f"{family}-{_hash(settings.eta, settings.smoothing, coreset)}.json"
    if known := _read(file, classes):
        return known
    from scrimp_trainers.precompute import dro  # it needs the training loop, which needs this module

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: class weights are kept there, but it cannot be made ({error.strerror})") from None
    with locked(file):
        if known := _read(file, classes):  # another process has made them meanwhile
            return known
        reference = None
        if family == "dro":
            with locked(folder / "reference"):
                reference = dro.train_reference(recipe, dataset, folder / "reference", device)
        found = dro.train_proxy(recipe, settings, dataset, file.with_suffix(""), device, kept, reference)
        facts = {
            "weights": (found.total / found.total.mean()).tolist(),
            "classes": dataset.manifest.classes,
            "excess": found.last.tolist(),
            "path": found.path,
            "seconds": found.seconds,
            "settings": settings.model_dump(mode="json", exclude={"method", "enters"}) | {"family": family},
            "images": dataset.manifest.splits["train"].count if kept is None else len(kept),
        }
        write_atomic(file, json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)  # the proxy's checkpoint
    return facts["weights"]


def _read(file: Path, classes: int) -> list[float] | None:
    """Read one positive weight a class; none if there is no such file."""
    try:
        weights = [float(weight) for weight in json.loads(file.read_text())["weights"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = len(weights) == classes and all(0 < weight < math.inf for weight in weights)
    return weights if sound else None


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
