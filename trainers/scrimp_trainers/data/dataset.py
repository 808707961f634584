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
    """Its folder, absolute."""
    manifest: Manifest
    """What `dataset.json` says."""

    def images(self, split: SplitName) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """Decode a whole split into memory, in its order.

        Returns
        -------
        tuple
            Images, uint8 [N, C, H, W]; labels, int64 [N], or None; keys.

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
        starts = np.cumsum([0, *(shard.count for shard in content.shards)])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(self._fill, (images[start:] for start in starts), content.shards)
            read = [entry for part in parts for entry in part]
        keys = [key for key, _ in read]
        if content.per_class is None:
            return images, None, keys
        return images, np.array([label for _, label in read], dtype=np.int64), keys

    def entries(self, split: SplitName) -> tuple[list[str], np.ndarray | None]:
        """Return the keys of a split's images, and their labels, int64 [N], without decoding anything."""
        samples = [one for shard in self.manifest.splits[split].shards for one in read_shard(self.folder, shard)]
        labelled = self.manifest.splits[split].per_class is not None
        labels = np.array([one.label for one in samples], dtype=np.int64) if labelled else None
        return [one.key for one in samples], labels

    def _fill(self, images: np.ndarray, shard: Shard) -> list[tuple[str, int | None]]:
        read = []
        for place, sample in enumerate(read_shard(self.folder, shard)):
            where = f"{self.folder / shard.file}: {sample.key}"
            images[place] = from_png(sample.png, self.manifest.size, self.manifest.channels, where)
            read.append((sample.key, sample.label))
        return read


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared dataset.

    Raises
    ------
    UserError
        If the folder is not one.
    """
    return Dataset(Path(folder).resolve(), manifests.load_manifest(Path(folder)))
