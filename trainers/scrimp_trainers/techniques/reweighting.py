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

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.diffusion.process import seed_of
from scrimp_trainers.errors import UserError
from scrimp_trainers.metrics import references
from scrimp_trainers.techniques.reference import check, recipe_of
from scrimp_trainers.techniques.settings import Reweighting

FORMAT = 1
"""Version of the class weights. Raise it when they are found in another way: they are made again."""


def class_weights(
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
        If `reference.check` refuses, or the dataset's folder cannot be written.
    Diverged
        If reference or proxy does.
    """
    check(settings, dataset.manifest)
    weights = torch.tensor(_shared(dataset, settings, device, kept), dtype=torch.float64)
    if settings.method == "random":
        generator = torch.Generator().manual_seed(seed_of("reweighting", seed))
        weights = weights[torch.randperm(len(weights), generator=generator)]
    elif settings.method == "inverse":
        weights = 1 / weights
    return (weights / weights.mean()).float()


def step(alpha: Tensor, excess: Tensor, eta: float, smoothing: float) -> Tensor:
    """Move class weights [K] by exponentiated gradient ascent: the larger a class's excess [K], the more it gains.

    alpha_c exp(eta e_c), normalised, then mixed with the uniform distribution: none falls below smoothing / K.
    """
    moved = torch.softmax(alpha.log() + eta * excess, dim=0)
    return (1 - smoothing) * moved + smoothing / len(alpha)


def excess(losses: Tensor, reference: Tensor, labels: Tensor, last: Tensor) -> Tensor:
    """Average over each class by how much its images' losses [b] exceed the reference's [b], none below 0: [K].

    A class without an image in the batch keeps its `last`. With zeros for a reference these are group DRO's losses.
    """
    members = _members(labels, len(last))
    means = (losses.double() - reference.double()).clamp(min=0) @ members / members.sum(0).clamp(min=1)
    return torch.where(members.any(0), means, last)


def relative(excess: Tensor) -> Tensor:
    """Divide excess losses [K] by their mean. As they are, about 1e-3 in diffusion, they would move nothing."""
    return excess / excess.mean().clamp(min=torch.finfo(excess.dtype).tiny)


def shares(alpha: Tensor, labels: Tensor, *, grouped: bool) -> Tensor:
    """Return the factor on each image's loss [b] in the proxy's.

    DoReMi's is sum_i alpha_{y_i} l_i / sum_i alpha_{y_i}. Group DRO's (`grouped`) is sum_c alpha_c L_c, where L_c is
    the mean over the batch's images of class c.
    """
    if grouped:
        return (alpha / _members(labels, len(alpha)).sum(0).clamp(min=1))[labels]
    return alpha[labels] / alpha[labels].sum()


def _members(labels: Tensor, classes: int) -> Tensor:
    """Return which image [b] is of which class: float64 [b, K], 0 or 1."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).double()


def _shared(dataset: Dataset, settings: Reweighting, device: torch.device, kept: np.ndarray | None) -> list[float]:
    """Return the weights of `dro` or `group_dro`, and make them first if nobody has."""
    recipe, family = recipe_of(settings), "group-dro" if settings.method == "group_dro" else "dro"
    classes = len(dataset.manifest.classes or [])
    made_of = _hash(FORMAT, dataset.manifest.content_hash, recipe.to_yaml())
    folder = dataset.folder / "cache" / f"reweighting-{made_of}"
    coreset = None if kept is None else hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    file = folder / f"{family}-{_hash(settings.eta, settings.smoothing, coreset)}.json"
    if known := _read(file, classes):
        return known
    from scrimp_trainers.techniques import proxy  # it needs the training loop, which needs this module

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: class weights are kept there, but it cannot be made ({error.strerror})") from None
    with references.locked(file):
        if known := _read(file, classes):  # another process has made them meanwhile
            return known
        reference = None
        if family == "dro":
            with references.locked(folder / "reference"):
                reference = proxy.train_reference(recipe, dataset, folder / "reference", device)
        found = proxy.train_proxy(recipe, settings, dataset, file.with_suffix(""), device, kept, reference)
        facts = {
            "weights": (found.total / found.total.mean()).tolist(),
            "classes": dataset.manifest.classes,
            "excess": found.last.tolist(),
            "path": found.path,
            "seconds": found.seconds,
            "settings": settings.model_dump(mode="json", exclude={"method", "enters"}) | {"family": family},
            "images": dataset.manifest.splits["train"].count if kept is None else len(kept),
        }
        references.write(file, lambda aside: aside.write_text(json.dumps(facts, indent=2) + "\n"))
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
