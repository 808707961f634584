"""WebDataset shards: tar files in which each item's file, such as `<key>.png`, follows its `<key>.cls` and `.txt`."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from scrimp_trainers.common.errors import DamagedData
from scrimp_trainers.data.manifest import Shard
from scrimp_trainers.data.modalities.modality import Modality

MOST_IMAGES = 1000
MOST_BYTES = 64 * 2**20
"""Largest number of images, or other items, in a shard, and of bytes of their values."""


@dataclass(frozen=True)
class Sample:
    """One item of a shard, still encoded."""

    key: str
    """A name without dots, unique in its split."""
    data: bytes
    """The item's file."""
    label: int | None
    """Its class; None if the dataset has no classes."""
    caption: str | None = None
    """Its caption; None if the dataset has none."""


def write_shards(samples: Iterable[Sample], folder: Path, prefix: str, modality: Modality) -> list[Shard]:
    """Write samples to `<prefix>-000000.tar` and so on. Equal samples give identical files."""
    items_per_shard = max(1, min(MOST_IMAGES, MOST_BYTES // modality.item_bytes))
    shards: list[Shard] = []
    remaining = iter(samples)
    while batch := list(islice(remaining, items_per_shard)):
        path = folder / f"{prefix}-{len(shards):06d}.tar"
        with path.open("w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in batch:
                    if sample.label is not None:
                        _add(tar, f"{sample.key}.cls", str(sample.label).encode())
                    if sample.caption is not None:
                        _add(tar, f"{sample.key}.txt", sample.caption.encode())
                    _add(tar, f"{sample.key}.{modality.suffix}", sample.data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append(Shard(file=path.name, count=len(batch), sha256=digest))
    return shards


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # owner, group and time default to zero
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def verify_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard with its hash.

    Raises
    ------
    DamagedData
        If the file is missing or its bytes are not those that the manifest names.
    """
    path = folder / shard.file
    if not path.is_file():
        raise _damaged(path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise _damaged(path)


def read_shard(folder: Path, shard: Shard) -> Iterator[Sample]:
    """Read the samples of one shard.

    Raises
    ------
    DamagedData
        If the file is missing or its bytes are not those that the manifest names.
    """
    path = folder / shard.file
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise _damaged(path)

    label: int | None = None
    caption: str | None = None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            content = data[member.offset_data : member.offset_data + member.size]
            if kind == "cls":
                label = int(content)
            elif kind == "txt":
                caption = content.decode()
            else:
                yield Sample(key, content, label, caption)
                label = caption = None


def _damaged(path: Path) -> DamagedData:
    return DamagedData(f"{path}: is missing or damaged; prepare the dataset again")
