"""Batches of a dataset that does not fit into the device's memory, streamed from its shards.

An epoch is a seeded order of the shards, read as one sequence of images, which is cut into equal ranges: one for each
loader process of each rank. So any number of shards goes with any number of ranks and processes, and no image is
drawn twice an epoch. Each process shuffles its range on the way, before anything is decoded.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset.filters
import webdataset.tariterators
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.batch import Batch, draw_epoch, mirror
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import Shard
from scrimp_trainers.data.pixels import from_png
from scrimp_trainers.data.shards import verify_shard

SHUFFLE = 1000
"""Images that a process holds, still encoded, to draw the next one from."""


def stream(
    dataset: Dataset,
    size: int,
    seed: int,
    device: torch.device,
    flip: bool,
    rank: int,
    world: int,
    start: int,
    kept: np.ndarray | None,
    workers: int,
) -> Iterator[Batch]:
    """Draw batches of `size` images a rank without end; see `loading.batches`.

    The sequence depends on the number of ranks and of workers, and is resumed exactly where these are the same.
    """
    loader = DataLoader(
        _Consumer(dataset, size, seed, flip, rank, world, start, kept),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    for parts in loader:
        if isinstance(parts, UserError):
            raise parts
        images, labels, index, flipped = parts
        images, flipped = images.to(device, non_blocking=True), flipped.to(device, non_blocking=True)
        yield Batch(
            mirror(images, flipped) if flip else images,
            None if labels is None else labels.to(device, non_blocking=True),
            index.to(device, non_blocking=True),
            flipped,
        )


_Parts = tuple[Tensor, Tensor | None, Tensor, Tensor]


@dataclass(frozen=True)
class _Drawn:
    """One image of the sequence, still encoded."""

    sample: dict[str, Any]
    index: int
    flipped: bool


class _Consumer(IterableDataset[Any]):
    """What one loader process reads: its range of every epoch, in whole batches."""

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        seed: int,
        flip: bool,
        rank: int,
        world: int,
        start: int,
        kept: np.ndarray | None = None,
    ) -> None:
        self.dataset, self.size, self.seed, self.flip = dataset, size, seed, flip
        self.rank, self.world, self.start = rank, world, start
        self.shards = dataset.manifest.splits["train"].shards
        self.begins = [0, *itertools.accumulate(shard.count for shard in self.shards)]
        positions = np.arange(self.begins[-1]) if kept is None else kept
        edges = np.searchsorted(positions, self.begins)
        self.places = [
            positions[low:high] - begin
            for (low, high), begin in zip(itertools.pairwise(edges), self.begins, strict=False)
        ]
        """Of each shard, the places of the images to draw."""
        self.count = len(positions)
        self.verified: set[str] = set()
        """Shards that this process has compared with their hashes."""

    def __iter__(self) -> Iterator[_Parts | UserError]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # The loader takes a batch from each process in turn, beginning with process 0: the one of step `start`.
        turn = (worker + self.start) % workers
        skip = len(range(turn, self.start, workers)) * self.size
        drawn = self._sequence(self.rank * workers + turn, self.world * workers, skip)
        try:
            while True:
                yield self._batch(list(itertools.islice(drawn, self.size)))
        except UserError as error:  # raised here, it would reach the user as a traceback
            yield error

    def _sequence(self, consumer: int, consumers: int, skip: int) -> Iterator[_Drawn]:
        """Yield this consumer's images of all epochs, but for the first `skip`, which are not decoded."""
        count = self.count
        epoch = max(0, skip * consumers // count - 1)
        while images_read(count, consumer, consumers, epoch + 1) <= skip:
            epoch += 1
        skip -= images_read(count, consumer, consumers, epoch)
        for number in itertools.count(epoch):
            yield from itertools.islice(self._epoch(number, consumer, consumers), skip, None)
            skip = 0

    def _epoch(self, epoch: int, consumer: int, consumers: int) -> Iterator[_Drawn]:
        flips = draw_epoch(self.begins[-1], self.seed, epoch, self.flip).flips
        first, last = epoch_range(self.count, consumer, consumers, epoch)

        def in_order() -> Iterator[_Drawn]:
            passed = 0  # images of the epoch's sequence before this shard
            for shard in np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.shards)):
                places = self.places[shard]
                mine = places[max(first - passed, 0) : max(last - passed, 0)]
                for place, sample in self._read(self.shards[shard], mine):
                    index = self.begins[shard] + place
                    yield _Drawn(sample, index, bool(flips[index]))
                passed += len(places)

        chance = random.Random(f"{self.seed} {epoch} {consumer}")
        return iter(webdataset.filters.shuffle(SHUFFLE, initial=SHUFFLE, rng=chance)(in_order()))

    def _read(self, shard: Shard, places: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the samples at these places of a shard, which rise, each with its place."""
        if not len(places):
            return
        if shard.file not in self.verified:
            verify_shard(self.dataset.folder, shard)
            self.verified.add(shard.file)
        wanted = set(places.tolist())
        samples = webdataset.tariterators.tarfile_samples([{"url": str(self.dataset.folder / shard.file)}])
        for place, sample in enumerate(itertools.islice(samples, max(wanted) + 1)):
            if place in wanted:
                yield place, sample

    def _batch(self, drawn: list[_Drawn]) -> _Parts:
        manifest = self.dataset.manifest
        images = [
            from_png(one["png"], manifest.size, manifest.channels, f"{one['__url__']}: {one['__key__']}")
            for one in (each.sample for each in drawn)
        ]
        labelled = manifest.splits["train"].per_class is not None
        return (
            torch.from_numpy(np.stack(images)),
            torch.tensor([int(one.sample["cls"]) for one in drawn]) if labelled else None,
            torch.tensor([one.index for one in drawn]),
            torch.tensor([one.flipped for one in drawn]),
        )


def epoch_range(count: int, consumer: int, consumers: int, epoch: int) -> tuple[int, int]:
    """Range of an epoch's `count` images that a consumer reads: `count / consumers`, rounded up or down in turn."""
    base, rest = divmod(count, consumers)
    more = [(place - epoch * rest) % consumers < rest for place in range(consumer + 1)]
    first = consumer * base + sum(more[:-1])
    return first, first + base + more[-1]


def images_read(count: int, consumer: int, consumers: int, epochs: int) -> int:
    """Images that a consumer has read in its first `epochs` epochs: the sum of its extents."""
    base, rest = divmod(count, consumers)
    return epochs * base + (epochs * rest - consumer + consumers - 1) // consumers
