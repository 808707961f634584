"""Class weights by distributionally robust optimisation (Li et al. 2025).

The paper does not give its update rule. This is a reconstruction after DoReMi (Xie et al. 2023) with classes as
domains. First a reference is trained as usual. Then a proxy is trained on a loss that gives more weight to the classes
in which it is furthest behind the reference. Its class weights, averaged over all steps, are the result. Group DRO
(Sagawa et al. 2020) has no reference and follows the proxy's own loss.

Nor does the paper say whether its reference saw all the data or the coreset. Here the reference is trained on the whole
training split, so that one reference serves all coresets, and the proxy on the coreset. A reference that was trained
before takes its place.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scrimp_trainers.common import ranks
from scrimp_trainers.common.device import devices_held
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import locked, write_atomic
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.fit import check_class_weights
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.precompute import dro
from scrimp_trainers.recipe.recipe import reference_recipe
from scrimp_trainers.recipe.techniques import Reweighting

FORMAT = 2
"""Version of the class weights. Increase it when their computation changes, so that they are computed again."""


@dataclass(frozen=True)
class ClassWeights:
    """A weight for each class, and what it took to find them."""

    weights: Tensor
    """float32 [K] on the CPU, 1 on average."""
    reference_hours: float
    """Device-hours of the reference, whoever trained it; one that the recipe names costs nothing."""
    proxy_hours: float
    """Device-hours of the proxy."""
    trained: bool
    """Whether the proxy was trained now, and not found in the cache."""

    @property
    def device_hours(self) -> float:
        """Of reference and proxy."""
        return self.reference_hours + self.proxy_hours


def compute_class_weights(
    dataset: Dataset,
    settings: Reweighting,
    seed: int,
    device: torch.device,
    kept: np.ndarray | None = None,
    group: dist.ProcessGroup | None = None,
) -> ClassWeights:
    """Compute a weight for each class, or read the weights from the dataset's cache.

    Reference and proxy are trained once per dataset, recipe and coreset, by all ranks together; other processes that
    need the same weights wait. The methods `random` and `inverse` are derived from the weights of `dro`.

    Parameters
    ----------
    seed
        Shuffles the weights of `random`.
    kept
        Positions of the coreset in the training split; None for all images.
    group
        From `ranks.patient_group`, if several ranks call this.

    Raises
    ------
    UserError
        If `fit.check_class_weights` refuses, or the dataset's folder cannot be written.
    Diverged
        If the training of reference or proxy diverges.
    """
    check_class_weights(settings, dataset.manifest)
    record = _dro_weights(dataset, settings, device, kept, group)
    weights = torch.tensor(record.weights, dtype=torch.float64)

    if settings.method == "random":
        generator = torch.Generator().manual_seed(seed_of("reweighting", seed))
        weights = weights[torch.randperm(len(weights), generator=generator)]
    elif settings.method == "inverse":
        weights = 1 / weights

    weights = (weights / weights.mean()).float()
    return ClassWeights(weights, record.reference_hours, record.proxy_hours, record.trained)


def cached_reference(
    dataset: Dataset, settings: Reweighting, device: torch.device, group: dist.ProcessGroup | None
) -> Denoiser:
    """Train the reference on all ranks, or resume it or read it from the dataset's cache; return its network."""
    folder = reference_folder(dataset, settings)
    _make(folder.parent)
    with _locked(folder, group):
        return dro.train_reference(reference_recipe(settings), dataset, folder, device, group)


def reference_folder(dataset: Dataset, settings: Reweighting) -> Path:
    """Return the reference's folder in the dataset's cache."""
    return _folder(dataset, settings) / "reference"


@dataclass(frozen=True)
class _Record:
    weights: list[float]
    reference_hours: float
    proxy_hours: float
    trained: bool = False


def _dro_weights(
    dataset: Dataset,
    settings: Reweighting,
    device: torch.device,
    kept: np.ndarray | None,
    group: dist.ProcessGroup | None,
) -> _Record:
    """Return the weights of `dro` or `group_dro` from the cache, or compute them and add them to the cache."""
    family = settings.family
    classes = len(dataset.manifest.classes or [])

    # Everything that the weights depend on is in the names of folder and file.
    folder = _folder(dataset, settings)
    coreset = None if kept is None else hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    proxy_hash = _hash(settings.eta, settings.smoothing, coreset)
    file = folder / f"{family}-{proxy_hash}.json"
    cached = ranks.agreed(_read_weights(file, classes), group)
    if cached:
        return cached

    _make(folder)
    with _locked(file, group):
        cached = ranks.agreed(_read_weights(file, classes), group)
        if cached:  # another process has computed them in the meantime
            return cached

        recipe = reference_recipe(settings)
        reference = None
        reference_hours = 0.0
        if settings.reference is not None:
            reference = dro.open_reference(settings.reference, recipe, dataset, device)
        elif family == "dro":
            reference = cached_reference(dataset, settings, device, group)
            reference_hours = dro.reference_hours(folder / "reference")

        checkpoints = file.with_suffix("")
        result = dro.train_proxy(recipe, settings, dataset, checkpoints, device, kept, reference, group)
        images = dataset.manifest.splits["train"].count if kept is None else len(kept)
        record = {
            "weights": (result.total / result.total.mean()).tolist(),
            "classes": dataset.manifest.classes,
            "excess": result.last.tolist(),
            "path": result.path,
            "seconds": result.seconds,
            "device_hours": result.seconds * devices_held() / 3600,
            "reference_device_hours": reference_hours,
            "settings": settings.model_dump(mode="json", exclude={"method", "enters"}) | {"family": family},
            "images": images,
        }
        if ranks.rank_and_world()[0] == 0:
            write_atomic(file, json.dumps(record, indent=2) + "\n")
            shutil.rmtree(checkpoints, ignore_errors=True)
    return ranks.agreed(_Record(record["weights"], reference_hours, record["device_hours"], trained=True), group)


def _folder(dataset: Dataset, settings: Reweighting) -> Path:
    """Return the folder in the dataset's cache of a reference and of all proxies that are compared with it."""
    depends_on = [FORMAT, dataset.manifest.content_hash, reference_recipe(settings).to_yaml()]
    if settings.reference is not None:
        depends_on.append(_content(settings.reference))
    return dataset.folder / "cache" / f"reweighting-{_hash(*depends_on)}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: class weights are cached there, but the folder cannot be created ({error.strerror})"
        ) from None


@contextlib.contextmanager
def _locked(path: Path, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Let one process, or group of processes, at a time make this file; the others wait."""
    rank, _ = ranks.rank_and_world()
    with locked(path) if rank == 0 else contextlib.nullcontext():
        ranks.agreed(None, group)
        yield


def _read_weights(file: Path, classes: int) -> _Record | None:
    """Read one positive weight per class, and what they cost; None if the file is missing or damaged."""
    try:
        record = json.loads(file.read_text())
        weights = [float(weight) for weight in record["weights"]]
        hours = [float(record[name]) for name in ("reference_device_hours", "device_hours")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if len(weights) != classes:
        return None
    if not all(0 < weight < math.inf for weight in weights) or not all(0 <= own < math.inf for own in hours):
        return None
    return _Record(weights, hours[0], hours[1])


def _content(model: Path) -> str:
    """Return a hash of a model folder's recipe and weights."""
    digest = hashlib.sha256((model / "recipe.yaml").read_bytes())
    for file in sorted(model.glob("*/*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
