"""Pruning (Li et al. 2025): score images by the features of a surrogate network, and train on the best only.

The coreset is a list of keys with scores, `cache/coreset-<hash>.csv` in the dataset's folder; no image is copied.
Keeping the most likely images of each class is a reconstruction after instance selection, which the paper extends.
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
from scrimp_trainers.metrics.features import open_extractor, weights_hash
from scrimp_trainers.metrics.names import check_scoring
from scrimp_trainers.precompute.coreset_scores import choose_kept, score_features
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Coreset

ReportProgress = Callable[[float, float], None]
"""Called with the number of images processed and their total."""

FORMAT = 2
"""Version of the list. Increase it when scoring or choosing changes, so that lists are made again."""
HEADER = ["key", "class", "score", "kept"]


@dataclass(frozen=True)
class ScoredImages:
    """The training images of a dataset with their scores, in the order of the split."""

    file: Path
    """The list. It does not exist if the dataset's folder is read-only."""
    keys: list[str]
    """Keys of the images."""
    classes: dict[str, np.ndarray]
    """Positions of the images of each class, by its name; without classes, one entry "all images"."""
    scores: np.ndarray
    """float64 [N]."""
    kept: np.ndarray
    """bool [N], whether each image is in the coreset."""


def score_dataset(
    dataset: Dataset, settings: Coreset, device: torch.device, seed: int, report: ReportProgress | None = None
) -> ScoredImages:
    """Score a dataset's training images and choose the coreset, or read both from the dataset's cache.

    If several processes need the same list, one makes it and the others wait.

    Parameters
    ----------
    device
        Where features are extracted.
    seed
        Seed of the score `random`; other scores do not depend on it.

    Raises
    ------
    UserError
        If the surrogate's weights cannot be loaded, or the score is undefined for these images.
    """
    scoring = None
    if settings.score != "random":
        scoring = Scoring(extractor=settings.features, weights=settings.weights)
        check_scoring(scoring, dataset.manifest)

    file = _list_file(dataset, settings, scoring, seed)
    keys, labels = dataset.entries("train")
    classes = _members_of_classes(dataset, labels)
    with locked(file):
        cached = _read_list(file, keys)
        if cached is not None:
            scores, kept = cached
        else:
            features = _features(dataset, scoring, device, report) if scoring else np.empty((len(keys), 0))
            scores = score_features(features, labels, settings, seed, dataset.manifest.classes)
            kept = np.zeros(len(keys), dtype=bool)
            kept[choose_kept(scores, labels, settings)] = True
            _write_list(file, keys, classes, scores, kept)
    return ScoredImages(file, keys, classes, scores, kept)


def _list_file(dataset: Dataset, settings: Coreset, scoring: Scoring | None, seed: int) -> Path:
    """Return the path of the list; its name is a hash of everything that the list depends on."""
    if scoring:
        relevant_settings = settings.model_dump(exclude={"weights"}) | {"per_class": settings.by_class}
        source = weights_hash(scoring, dataset.manifest)
    else:
        relevant_settings = settings.model_dump(exclude={"weights", "features", "covariance"})
        source = seed
    identity = json.dumps([FORMAT, dataset.manifest.content_hash, relevant_settings, source], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return dataset.folder / "cache" / f"coreset-{digest[:16]}.csv"


def _members_of_classes(dataset: Dataset, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the positions of each class's images, by the name of the class."""
    names = dataset.manifest.classes
    if labels is None or names is None:
        return {"all images": np.arange(dataset.manifest.splits["train"].count)}
    return {names[label]: np.flatnonzero(labels == label) for label in np.unique(labels)}


def _features(dataset: Dataset, scoring: Scoring, device: torch.device, report: ReportProgress | None) -> np.ndarray:
    """Return the surrogate's features [N, d] of the training images, through the cache that scoring uses too."""
    extractor = open_extractor(scoring, dataset.folder, dataset.manifest, device)

    def extract() -> dict[str, Tensor]:
        pixels, _, _ = dataset.images("train")
        images = torch.from_numpy(pixels)
        parts: list[Tensor] = []
        done = 0
        for batch in images.split(scoring.batch_size):
            parts.append(extractor.features(batch)[0].cpu())
            done += len(batch)
            if report:
                report(done, len(images))
        return {"features": torch.cat(parts)}

    path = references.cache_file(dataset.folder, dataset.manifest, extractor, "train", "features")
    return references.cached(path, extract)["features"].numpy()


def _write_list(
    file: Path, keys: list[str], classes: dict[str, np.ndarray], scores: np.ndarray, kept: np.ndarray
) -> None:
    """Write the list as CSV, if the disk allows it."""
    class_names = {position: name for name, members in classes.items() for position in members.tolist()}
    class_column = map(class_names.get, range(len(keys)))
    rows = zip(keys, class_column, scores.tolist(), kept.astype(int).tolist(), strict=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])

    # If the dataset is on a read-only or full disk, every process makes its own list.
    with contextlib.suppress(OSError):
        write_atomic(file, text.getvalue())


def _read_list(file: Path, keys: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the scores and which images are kept; None if the file is missing or not a list of these images."""
    try:
        with file.open(newline="") as lines:
            header, *rows = csv.reader(lines)
        listed_keys, _, scores, kept = zip(*rows, strict=True)
        if header != HEADER or list(listed_keys) != keys or not set(kept) <= {"0", "1"}:
            return None
        return np.array(scores, dtype=np.float64), np.array(kept) == "1"
    except (OSError, ValueError):
        return None
