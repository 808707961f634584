"""A prepared dataset, opened for reading."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest, Shard, SplitName
from scrimp_trainers.data.pixels import from_png
from scrimp_trainers.data.shards import read_shard


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset."""

    folder: Path
    """Absolute path of its folder."""
    manifest: Manifest
    """The content of `dataset.json`."""

    def images(self, split: SplitName) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """Decode a whole split into memory.

        Returns
        -------
        tuple
            Images, uint8 [N, C, H, W]; labels, int64 [N], or None without classes; keys.

        Raises
        ------
        UserError
            If the dataset has no such split, or a shard is missing or damaged.
        """
        if split not in self.manifest.splits:
            raise UserError(f"{self.folder}: the dataset has no {split} split")
        content = self.manifest.splits[split]
        side = self.manifest.size
        images = np.empty((content.count, self.manifest.channels, side, side), dtype=np.uint8)

        # Each thread decodes a shard into its part of the array.
        starts = np.cumsum([0, *(shard.count for shard in content.shards)])
        parts = [images[start:] for start in starts]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            entries_of_shards = pool.map(self._decode_shard, parts, content.shards)
            entries = [entry for shard_entries in entries_of_shards for entry in shard_entries]

        keys = [key for key, _ in entries]
        labels = None
        if content.per_class is not None:
            labels = np.array([label for _, label in entries], dtype=np.int64)
        return images, labels, keys

    def entries(self, split: SplitName) -> tuple[list[str], np.ndarray | None]:
        """Return the keys of a split's images, and their labels, int64 [N], without decoding the images."""
        content = self.manifest.splits[split]
        samples = [sample for shard in content.shards for sample in read_shard(self.folder, shard)]
        labels = None
        if content.per_class is not None:
            labels = np.array([sample.label for sample in samples], dtype=np.int64)
        return [sample.key for sample in samples], labels

    def _decode_shard(self, images: np.ndarray, shard: Shard) -> list[tuple[str, int | None]]:
        """Decode a shard into the first rows of `images`, and return the key and the label of each image."""
        entries: list[tuple[str, int | None]] = []
        for position, sample in enumerate(read_shard(self.folder, shard)):
            where = f"{self.folder / shard.file}: {sample.key}"
            images[position] = from_png(sample.png, self.manifest.size, self.manifest.channels, where)
            entries.append((sample.key, sample.label))
        return entries


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared dataset.

    Raises
    ------
    UserError
        If the folder is not one.
    """
    return Dataset(Path(folder).resolve(), manifests.load_manifest(Path(folder)))
