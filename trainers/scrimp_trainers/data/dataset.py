"""A prepared dataset, opened for reading."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest, Shard, SplitName
from scrimp_trainers.data.modalities.modality import Items, Modality, modality_of
from scrimp_trainers.data.shards import read_shard

BLOCK = 64
"""Items that a thread decodes and puts together at once."""


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset."""

    folder: Path
    """Absolute path of its folder."""
    manifest: Manifest
    """The content of `dataset.json`."""

    @cached_property
    def modality(self) -> Modality:
        """What the items are."""
        return modality_of(self.manifest)

    def images(self, split: SplitName) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """Decode a whole split into memory, as pictures.

        Returns
        -------
        tuple
            Images, uint8 [N, C, H, W]; labels, int64 [N], or None without classes; keys.

        Raises
        ------
        UserError
            If the dataset has no such split, or a shard is missing or damaged.
        """
        items, labels, keys = self.items(split)
        return self.modality.render(items).numpy(), labels, keys

    def blocks(self, split: SplitName) -> Iterator[tuple[np.ndarray, list[int | None]]]:
        """Yield a split's images a few at a time, so that it need not fit into memory.

        Yields
        ------
        tuple
            Pictures, uint8 [b, C, H, W], and the label of each; None without classes.
        """
        for shard in self.manifest.splits[split].shards:
            for block in self._decode(shard, BLOCK):
                yield self.modality.render(block.items).numpy(), [label for _, label in block.entries]

    def items(self, split: SplitName) -> tuple[Items, np.ndarray | None, list[str]]:
        """Decode a whole split into memory: as `images`, but the items themselves."""
        if split not in self.manifest.splits:
            raise UserError(f"{self.folder}: the dataset has no {split} split")
        content = self.manifest.splits[split]

        # Each thread decodes a shard into its part of the whole.
        one = next(self._decode(content.shards[0], 1))
        items = one.items.empty(content.count)
        starts = itertools.accumulate((shard.count for shard in content.shards), initial=0)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            entries_of_shards = pool.map(partial(self._decode_into, items), starts, content.shards)
            entries = [entry for shard_entries in entries_of_shards for entry in shard_entries]

        keys = [key for key, _ in entries]
        labels = None
        if content.per_class is not None:
            labels = np.array([label for _, label in entries], dtype=np.int64)
        return items, labels, keys

    def entries(self, split: SplitName) -> tuple[list[str], np.ndarray | None]:
        """Return the keys of a split's images, and their labels, int64 [N], without decoding the images."""
        content = self.manifest.splits[split]
        samples = [sample for shard in content.shards for sample in read_shard(self.folder, shard)]
        labels = None
        if content.per_class is not None:
            labels = np.array([sample.label for sample in samples], dtype=np.int64)
        return [sample.key for sample in samples], labels

    def captions(self, split: SplitName) -> list[str]:
        """Return the caption of each of a split's images.

        Raises
        ------
        UserError
            If they have none, or a shard is missing or damaged.
        """
        shards = self.manifest.splits[split].shards
        captions = [sample.caption for shard in shards for sample in read_shard(self.folder, shard)]
        known = [caption for caption in captions if caption is not None]
        if len(known) < len(captions):
            raise UserError(f"{self.folder}: the {split} images of dataset {self.manifest.name} have no captions")
        return known

    def _decode_into(self, items: Items, start: int, shard: Shard) -> list[tuple[str, int | None]]:
        """Decode a shard into `items` from position `start` on, and return the key and the label of each."""
        entries: list[tuple[str, int | None]] = []
        for block in self._decode(shard, BLOCK):
            items.write(start + len(entries), block.items)
            entries += block.entries
        return entries

    def _decode(self, shard: Shard, size: int) -> Iterator["_Block"]:
        """Yield the items of a shard, `size` at a time."""
        samples = read_shard(self.folder, shard)
        while block := list(itertools.islice(samples, size)):
            decoded = [
                self.modality.decode(sample.data, f"{self.folder / shard.file}: {sample.key}") for sample in block
            ]
            yield _Block(self.modality.collate(decoded), [(sample.key, sample.label) for sample in block])


@dataclass(frozen=True)
class _Block:
    """Some items of a shard, with the key and the label of each."""

    items: Items
    entries: list[tuple[str, int | None]]


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared dataset.

    Raises
    ------
    UserError
        If the folder is not one.
    """
    return Dataset(Path(folder).resolve(), manifests.load_manifest(Path(folder)))
