"""Batches of a dataset that does not fit into the device's memory, streamed from its shards.

An epoch is a seeded order of the shards, read as one sequence of images. The sequence is split into equal ranges, one
for each loader process of each rank, called its consumer. So any number of shards works with any number of ranks and
processes, and no image is drawn twice in an epoch. Each process shuffles its range before anything is decoded. Items of
several lengths are then moved so that those of a batch have about the same length; that of the file stands for it.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import webdataset.filters
import webdataset.tariterators
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.batch import WINDOW, Batch, draw_epoch, window_order
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import Shard
from scrimp_trainers.data.modalities.modality import lengths_of, mirrored
from scrimp_trainers.data.shards import verify_shard

SHUFFLE = 1000
"""Size of a process's shuffle buffer, in encoded images."""


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
    """Draw batches of `size` images per rank without end; see `loading.batches`.

    The sequence depends on the numbers of ranks and workers. It is resumed exactly only if they are the same.
    """
    loader = DataLoader(
        _Consumer(dataset, size, seed, flip, rank, world, start, kept),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise the loader would draw from the global generator
    )
    for parts in loader:
        if isinstance(parts, UserError):
            raise parts

        tensors, lengths = parts
        values, labels, index, flipped, mask = _to_device(tensors, device)
        lengths = None if lengths is None else lengths.numpy()
        if flip:
            values = mirrored(dataset.modality, values, flipped)
        yield Batch(values, labels, index, flipped, mask, lengths)


_BatchTensors = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]
"""The fields of a `Batch` that go to the device."""
_BatchParts = tuple[_BatchTensors, Tensor | None]
"""These, and the lengths, which stay on the host."""


def _to_device(tensors: _BatchTensors, device: torch.device) -> _BatchTensors:
    moved = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors)
    return cast(_BatchTensors, tuple(moved))


@dataclass(frozen=True)
class _EncodedImage:
    """One image of the sequence, still encoded."""

    sample: dict[str, Any]
    index: int
    flipped: bool


class _Consumer(IterableDataset[Any]):
    """The batches of one loader process, from its range of every epoch."""

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
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.flip = flip
        self.rank = rank
        self.world = world
        self.start = start
        self.verified: set[str] = set()
        """Shards whose hashes this process has checked."""

        self.shards = dataset.manifest.splits["train"].shards
        self.shard_starts = [0, *itertools.accumulate(shard.count for shard in self.shards)]
        """Position in the split of each shard's first image; the last entry is the size of the split."""
        positions = np.arange(self.shard_starts[-1]) if kept is None else kept
        self.count = len(positions)
        self.kept_in_shard: list[np.ndarray] = []
        """For each shard, the sorted positions within the shard of the images to draw."""
        edges = np.searchsorted(positions, self.shard_starts)
        for start_of_shard, (low, high) in zip(self.shard_starts, itertools.pairwise(edges), strict=False):
            self.kept_in_shard.append(positions[low:high] - start_of_shard)

    def __iter__(self) -> Iterator[_BatchParts | UserError]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)

        # The loader takes a batch from each process in turn. Process 0 comes first, with the batch of step `start`.
        turn = (worker + self.start) % workers
        skipped_batches = len(range(turn, self.start, workers))
        images = self._sequence(self.rank * workers + turn, self.world * workers, skipped_batches * self.size)
        try:
            while True:
                yield self._decode_batch(list(itertools.islice(images, self.size)))
        except UserError as error:  # if raised in this process, it would reach the user as a traceback
            yield error

    def _sequence(self, consumer: int, consumers: int, skip: int) -> Iterator[_EncodedImage]:
        """Yield this consumer's images of all epochs, after the first `skip` images."""
        count = self.count
        epoch = max(0, skip * consumers // count - 1)
        while images_read(count, consumer, consumers, epoch + 1) <= skip:
            epoch += 1
        skip -= images_read(count, consumer, consumers, epoch)

        for number in itertools.count(epoch):
            yield from itertools.islice(self._epoch(number, consumer, consumers), skip, None)
            skip = 0

    def _epoch(self, epoch: int, consumer: int, consumers: int) -> Iterator[_EncodedImage]:
        """Yield this consumer's images of one epoch, shuffled."""
        flips = draw_epoch(self.shard_starts[-1], self.seed, epoch, self.flip).flips
        first, last = epoch_range(self.count, consumer, consumers, epoch)

        def in_order() -> Iterator[_EncodedImage]:
            passed = 0  # images of the epoch's sequence before this shard
            for shard in np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.shards)):
                kept = self.kept_in_shard[shard]
                in_range = kept[max(first - passed, 0) : max(last - passed, 0)]
                for position, sample in self._read(self.shards[shard], in_range):
                    index = self.shard_starts[shard] + position
                    yield _EncodedImage(sample, index, bool(flips[index]))
                passed += len(kept)

        generator = random.Random(f"{self.seed} {epoch} {consumer}")
        shuffled = iter(webdataset.filters.shuffle(SHUFFLE, initial=SHUFFLE, rng=generator)(in_order()))
        if self.dataset.manifest.lengths is None:
            return shuffled
        return self._alike_in_length(shuffled, epoch, consumer, consumers)

    def _alike_in_length(
        self, images: Iterator[_EncodedImage], epoch: int, consumer: int, consumers: int
    ) -> Iterator[_EncodedImage]:
        """Move an epoch's items so that those of a batch have about one length, as `batch.alike_in_length` does."""
        suffix = self.dataset.modality.suffix
        generator = np.random.default_rng((self.seed, epoch, 2, consumer))

        # The first ones complete a batch that the epoch before has begun.
        yield from itertools.islice(images, -images_read(self.count, consumer, consumers, epoch) % self.size)
        while window := list(itertools.islice(images, WINDOW * self.size)):
            whole = len(window) // self.size * self.size
            lengths = np.array([len(image.sample[suffix]) for image in window[:whole]])
            yield from (window[number] for number in window_order(lengths, self.size, generator))
            yield from window[whole:]

    def _read(self, shard: Shard, positions: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the samples at these ascending positions of a shard, each with its position."""
        if not len(positions):
            return
        if shard.file not in self.verified:
            verify_shard(self.dataset.folder, shard)
            self.verified.add(shard.file)

        wanted = set(positions.tolist())
        samples = webdataset.tariterators.tarfile_samples([{"url": str(self.dataset.folder / shard.file)}])
        for position, sample in enumerate(itertools.islice(samples, max(wanted) + 1)):
            if position in wanted:
                yield position, sample

    def _decode_batch(self, encoded: list[_EncodedImage]) -> _BatchParts:
        modality = self.dataset.modality
        decoded: list[np.ndarray] = []
        for image in encoded:
            sample = image.sample
            where = f"{sample['__url__']}: {sample['__key__']}"
            decoded.append(modality.decode(sample[modality.suffix], where))
        items = modality.collate(decoded)

        labels = None
        if self.dataset.manifest.splits["train"].per_class is not None:
            labels = torch.tensor([int(image.sample["cls"]) for image in encoded])
        index = torch.tensor([image.index for image in encoded])
        flipped = torch.tensor([image.flipped for image in encoded])
        lengths = lengths_of(items)
        lengths = None if lengths is None else torch.from_numpy(lengths)
        return (items.values, labels, index, flipped, items.mask), lengths


def epoch_range(count: int, consumer: int, consumers: int, epoch: int) -> tuple[int, int]:
    """Return the range of an epoch's `count` images that a consumer reads.

    Its length is `count / consumers`, rounded up for `count % consumers` consumers, which take turns over the epochs.
    """
    base, remainder = divmod(count, consumers)
    is_longer = [(other - epoch * remainder) % consumers < remainder for other in range(consumer + 1)]
    first = consumer * base + sum(is_longer[:-1])
    return first, first + base + is_longer[-1]


def images_read(count: int, consumer: int, consumers: int, epochs: int) -> int:
    """Return how many images a consumer reads in the first `epochs` epochs: the sum of the lengths of its ranges."""
    base, remainder = divmod(count, consumers)
    return epochs * base + (epochs * remainder - consumer + consumers - 1) // consumers
