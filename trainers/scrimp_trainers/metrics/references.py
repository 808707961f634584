"""Features and statistics of a dataset's splits, computed once and kept in the dataset's `cache/` folder.

A file's name holds everything that its content depends on. Several processes may make the same file at once: each
writes its own copy aside and renames it, so readers see a whole one or none.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from scrimp_trainers.data.manifest import Manifest, SplitName
from scrimp_trainers.metrics.extractors import FeatureExtractor

Tensors = dict[str, Tensor]


def cache_file(folder: Path, manifest: Manifest, extractor: FeatureExtractor, split: SplitName, kind: str) -> Path:
    """Name the file for the features or statistics of a split."""
    count = manifest.splits[split].count
    parts = [manifest.content_hash[:16], extractor.name, extractor.weights[:16], extractor.layer, split, count, kind]
    return folder / "cache" / ("-".join(str(part) for part in parts) + ".safetensors")


def cached(path: Path, make: Callable[[], Tensors]) -> Tensors:
    """Read tensors from a file; if it is missing or damaged, make them and write it."""
    found = _read(path)
    if found is None:
        found = {name: value.cpu().contiguous() for name, value in make().items()}
        # A dataset may lie on a read-only or full disk; then every process makes its own.
        with contextlib.suppress(OSError):
            _write(path, found)
    return found


def _read(path: Path) -> Tensors | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            stated = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return tensors if stated == _digest(tensors) else None


def _write(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, aside, metadata={"digest": _digest(tensors)})
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _digest(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
