"""Features and statistics of a dataset's splits, computed once and kept in the dataset's `cache/` folder.

A file's name holds everything that its content depends on, and the version of its format. One process makes it and the
others wait, so that a dataset is decoded once where several trainings begin together. Where a file system has no locks
each makes its own copy and renames it: readers see a whole one or none.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from scrimp_trainers.common.files import atomic_file, locked
from scrimp_trainers.common.weights import digest_of
from scrimp_trainers.data.manifest import Manifest, SplitName
from scrimp_trainers.data.modalities.modality import renderer
from scrimp_trainers.metrics.features import FeatureExtractor

Tensors = dict[str, Tensor]

FORMAT = 1
"""Version of features and statistics. Raise it when they are computed or kept in another way: they are made again."""


def cache_file(folder: Path, manifest: Manifest, extractor: FeatureExtractor, split: SplitName, kind: str) -> Path:
    """Name the file for the features or statistics of a split."""
    count = manifest.splits[split].count
    weights = [extractor.name, extractor.weights[:16], extractor.layer]
    drawn = [renderer(manifest)] if renderer(manifest) else []
    parts = [manifest.content_hash[:16], *drawn, *weights, split, count, kind, f"v{FORMAT}"]
    return folder / "cache" / ("-".join(str(part) for part in parts) + ".safetensors")


@dataclass(frozen=True)
class CachedFile:
    """What a file of the cache holds."""

    path: Path
    extractor: str
    split: str
    kind: str
    """`features`, `statistics`, or `real-1000`: distances of real images, as those of 1,000 samples are measured."""


def cached_files(folder: Path, manifest: Manifest) -> list[CachedFile]:
    """List the files that `cache_file` has named for this dataset, in the order of their names."""
    name = re.compile(
        rf"{re.escape(manifest.content_hash[:16])}-(?:.+-)?(?P<extractor>[\w:]+)-[0-9a-f]{{0,16}}-[^-]+-"
        rf"(?P<split>train|holdout|reference)-\d+-(?P<kind>features|statistics|real-\d+)-v{FORMAT}\.safetensors"
    )
    there = []
    for path in sorted((folder / "cache").glob("*.safetensors")):
        match = name.fullmatch(path.name)
        if match:
            there.append(CachedFile(path, match["extractor"], match["split"], match["kind"]))
    return there


def cached(path: Path, make: Callable[[], Tensors]) -> Tensors:
    """Read tensors from a file; if it is missing or damaged, make them and write it."""
    tensors = read(path)
    if tensors is not None:
        return tensors

    with locked(path):
        tensors = read(path)  # another process may have made it in the meantime
        if tensors is None:
            tensors = {name: value.cpu().contiguous() for name, value in make().items()}
            # A dataset may lie on a read-only or full disk; then every process makes its own.
            with contextlib.suppress(OSError), atomic_file(path) as part:
                _save(tensors, part)
        return tensors


def read(path: Path) -> Tensors | None:
    """Return the tensors of a file; None if it is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            stated = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return tensors if stated == digest_of(tensors) else None


def _save(tensors: Tensors, path: Path) -> None:
    safetensors.torch.save_file(tensors, path, metadata={"digest": digest_of(tensors)})
