"""Class weights by distributionally robust optimisation (Li et al. 2025).

The paper does not give its update rule. This is a reconstruction after DoReMi (Xie et al. 2023) with classes as
domains. First a reference is trained as usual. Then a proxy is trained on a loss that gives more weight to the classes
in which it is furthest behind the reference. Its class weights, averaged over all steps, are the result. Group DRO
(Sagawa et al. 2020) has no reference and follows the proxy's own loss.

Nor does the paper say whether its reference saw all the data or the coreset. Here the reference is trained on the whole
training split, so that one reference serves all coresets, and the proxy on the coreset. A reference that was trained
before takes its place.
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
from scrimp_trainers.precompute import dro
from scrimp_trainers.recipe.recipe import reference_recipe
from scrimp_trainers.recipe.techniques import Reweighting

FORMAT = 1
"""Version of the class weights. Increase it when their computation changes, so that they are computed again."""


def compute_class_weights(
    dataset: Dataset, settings: Reweighting, seed: int, device: torch.device, kept: np.ndarray | None = None
) -> Tensor:
    """Compute a weight for each class, or read the weights from the dataset's cache.

    Reference and proxy are trained once per dataset, recipe and coreset, by this process alone; other processes that
    need the same weights wait. The methods `random` and `inverse` are derived from the weights of `dro`.

    Parameters
    ----------
    seed
        Shuffles the weights of `random`.
    kept
        Positions of the coreset in the training split; None for all images.

    Returns
    -------
    Tensor
        float32 [K] on the CPU, 1 on average.

    Raises
    ------
    UserError
        If `fit.check_class_weights` refuses, or the dataset's folder cannot be written.
    Diverged
        If the training of reference or proxy diverges.
    """
    check_class_weights(settings, dataset.manifest)
    weights = torch.tensor(_dro_weights(dataset, settings, device, kept), dtype=torch.float64)

    if settings.method == "random":
        generator = torch.Generator().manual_seed(seed_of("reweighting", seed))
        weights = weights[torch.randperm(len(weights), generator=generator)]
    elif settings.method == "inverse":
        weights = 1 / weights

    return (weights / weights.mean()).float()


def _dro_weights(dataset: Dataset, settings: Reweighting, device: torch.device, kept: np.ndarray | None) -> list[float]:
    """Return the weights of `dro` or `group_dro` from the cache, or compute them and add them to the cache."""
    recipe = reference_recipe(settings)
    family = "group-dro" if settings.method == "group_dro" else "dro"
    classes = len(dataset.manifest.classes or [])

    # Everything that the weights depend on is in the names of folder and file.
    reference_parts = [FORMAT, dataset.manifest.content_hash, recipe.to_yaml()]
    if settings.reference is not None:
        reference_parts.append(_content(settings.reference))
    reference_hash = _hash(*reference_parts)
    folder = dataset.folder / "cache" / f"reweighting-{reference_hash}"
    coreset = None if kept is None else hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    proxy_hash = _hash(settings.eta, settings.smoothing, coreset)
    file = folder / f"{family}-{proxy_hash}.json"
    cached = _read_weights(file, classes)
    if cached:
        return cached

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: class weights are cached there, but the folder cannot be created ({error.strerror})"
        ) from None
    with locked(file):
        cached = _read_weights(file, classes)
        if cached:  # another process has computed them in the meantime
            return cached

        reference = None
        if settings.reference is not None:
            reference = dro.open_reference(settings.reference, recipe, dataset, device)
        elif family == "dro":
            with locked(folder / "reference"):
                reference = dro.train_reference(recipe, dataset, folder / "reference", device)

        checkpoints = file.with_suffix("")
        result = dro.train_proxy(recipe, settings, dataset, checkpoints, device, kept, reference)
        images = dataset.manifest.splits["train"].count if kept is None else len(kept)
        record = {
            "weights": (result.total / result.total.mean()).tolist(),
            "classes": dataset.manifest.classes,
            "excess": result.last.tolist(),
            "path": result.path,
            "seconds": result.seconds,
            "settings": settings.model_dump(mode="json", exclude={"method", "enters"}) | {"family": family},
            "images": images,
        }
        write_atomic(file, json.dumps(record, indent=2) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
    return record["weights"]


def _read_weights(file: Path, classes: int) -> list[float] | None:
    """Read one positive weight per class; None if the file is missing or damaged."""
    try:
        weights = [float(weight) for weight in json.loads(file.read_text())["weights"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if len(weights) != classes:
        return None
    if not all(0 < weight < math.inf for weight in weights):
        return None
    return weights


def _content(model: Path) -> str:
    """Return a hash of a model folder's recipe and weights."""
    digest = hashlib.sha256((model / "recipe.yaml").read_bytes())
    for file in sorted(model.glob("*/*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
