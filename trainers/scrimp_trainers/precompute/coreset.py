"""Pruning (Li et al. 2025): the images are scored in the features of a surrogate, and only the best are trained on.

The coreset is a list of keys with scores, `cache/coreset-<hash>.csv` in the dataset's folder; no image is copied. That
the most likely images of each class are kept is a reconstruction: instance selection, which the paper extends, does so.
"""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common.files import locked, write_atomic
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.metrics import references
from scrimp_trainers.metrics.extractors import open_extractor, weights_hash
from scrimp_trainers.metrics.names import check
from scrimp_trainers.precompute.coreset_scores import choose_kept, score_features
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Coreset

ReportProgress = Callable[[float, float], None]
"""Takes how many images are done and how many there are."""

FORMAT = 1
"""Version of the list. Raise it when images are scored or chosen in another way: lists are made again."""
HEADER = ["key", "class", "score", "kept"]


@dataclass(frozen=True)
class ScoredImages:
    """The training images of a dataset with their scores, in the split's order."""

    file: Path
    """The list, unless the dataset's folder cannot be written."""
    keys: list[str]
    """Names of the images."""
    classes: dict[str, np.ndarray]
    """Positions of the images of each class that has any; without classes, of "all images"."""
    scores: np.ndarray
    """float64 [N]."""
    kept: np.ndarray
    """bool [N], which images are in the coreset."""


def score_dataset(
    dataset: Dataset, settings: Coreset, device: torch.device, seed: int, report: ReportProgress | None = None
) -> ScoredImages:
    """Score a dataset's training images and choose the coreset, or read both from the dataset's cache.

    Several processes may ask for the same list: one makes it, the others wait.

    Parameters
    ----------
    device
        Where features are extracted.
    seed
        Seed of the score `random`; the others do not depend on it.

    Raises
    ------
    UserError
        If the surrogate's weights cannot be had, or the images do not allow the score.
    """
    scoring = None
    if settings.score != "random":
        scoring = Scoring(extractor=settings.features, weights=settings.weights)
        check(scoring, dataset.manifest)
    file = _file(dataset, settings, scoring, seed)
    keys, labels = dataset.entries("train")
    classes = _classes(dataset, labels)
    with locked(file):
        found = _read(file, keys)
        if found is None:
            features = _features(dataset, scoring, device, report) if scoring else np.empty((len(keys), 0))
            values = score_features(features, labels, settings, seed)
            kept = np.zeros(len(keys), dtype=bool)
            kept[choose_kept(values, labels, settings)] = True
            found = values, kept
            _write(file, keys, classes, *found)
    return ScoredImages(file, keys, classes, *found)


def _file(dataset: Dataset, settings: Coreset, scoring: Scoring | None, seed: int) -> Path:
    """Name the list by everything that it depends on."""
    known = settings.model_dump(exclude={"weights"} if scoring else {"weights", "features", "covariance"})
    source = weights_hash(scoring, dataset.manifest) if scoring else seed
    identity = json.dumps([FORMAT, dataset.manifest.content_hash, known, source], sort_keys=True)
    return dataset.folder / "cache" / f"coreset-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.csv"


def _classes(dataset: Dataset, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    names = dataset.manifest.classes
    if labels is None or names is None:
        return {"all images": np.arange(dataset.manifest.splits["train"].count)}
    return {names[label]: np.flatnonzero(labels == label) for label in np.unique(labels)}


def _features(dataset: Dataset, scoring: Scoring, device: torch.device, report: ReportProgress | None) -> np.ndarray:
    """Surrogate features [N, d] of the training images, from the cache that scoring shares if they are there."""
    extractor = open_extractor(scoring, dataset.folder, dataset.manifest, device)

    def make() -> dict[str, Tensor]:
        images = torch.from_numpy(dataset.images("train")[0])
        parts, done = [], 0
        for batch in images.split(scoring.batch_size):
            parts.append(extractor.features(batch)[0].cpu())
            done += len(batch)
            if report:
                report(done, len(images))
        return {"features": torch.cat(parts)}

    path = references.cache_file(dataset.folder, dataset.manifest, extractor, "train", "features")
    with locked(path):  # lists that differ in what is kept need the same features
        return references.cached(path, make)["features"].numpy()


def _write(file: Path, keys: list[str], classes: dict[str, np.ndarray], values: np.ndarray, kept: np.ndarray) -> None:
    names = {position: name for name, members in classes.items() for position in members.tolist()}
    rows = zip(keys, map(names.get, range(len(keys))), values.tolist(), kept.astype(int).tolist(), strict=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    # A dataset may lie on a read-only or full disk; then every process makes its own list.
    with contextlib.suppress(OSError):
        write_atomic(file, text.getvalue())


def _read(file: Path, keys: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Read scores and choice; none if the file is missing or is not a list of these images."""
    try:
        with file.open(newline="") as lines:
            header, *rows = csv.reader(lines)
        read, _, values, kept = zip(*rows, strict=True)
        if header != HEADER or list(read) != keys or not set(kept) <= {"0", "1"}:
            return None
        return np.array(values, dtype=np.float64), np.array(kept) == "1"
    except (OSError, ValueError):
        return None
