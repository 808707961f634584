"""Endless batches of a dataset's training images. Start reading at `batches`.

The global sequence is one seeded permutation of the images per epoch, or, with sampling weights, as many weighted draws
with replacement. Items of several lengths are then moved so that those of a batch have about the same length. Step `s`
takes positions [s * batch_size, (s + 1) * batch_size) of it; each rank takes an equal slice.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.batch import Batch, alike_in_length, draw_epoch, to_device
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import RESIDENT
from scrimp_trainers.data.modalities.modality import Items, lengths_of, mirrored, train_bytes


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    flip: bool = False,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    kept: np.ndarray | None = None,
    sampling_weights: np.ndarray | None = None,
    resident_bytes: int = RESIDENT,
    workers: int = 2,
) -> Iterator[Batch]:
    """Draw training batches without end, beginning with that of the step `start`.

    A dataset that fits is decoded once and stays on the device: no loader processes, no copies, no host
    synchronisation per step. A larger one is streamed from its shards; see `streaming`.

    Parameters
    ----------
    batch_size
        Images per step over all ranks; each gets `batch_size // world`.
    flip
        Mirror each image with probability 1/2.
    kept
        Sorted positions, in the training split, of the images to draw; None for all.
    sampling_weights
        Proportional to the probability with which each of these images is drawn; None for each image once an epoch.
    resident_bytes
        A dataset is kept on the device if its items take at most this many bytes. The order of images depends on it,
        so it is a constant, whatever memory a machine has.
    workers
        Loader processes per rank when streaming.

    Raises
    ------
    UserError
        If the batch cannot be split evenly over the ranks, or a streamed dataset is to be drawn by weights.
    """
    if batch_size % world:
        raise UserError(f"training.batch_size: {batch_size} cannot be split evenly over {world} devices")
    device = torch.device(device)
    manifest = dataset.manifest

    if train_bytes(manifest) <= resident_bytes:
        items, labels, _ = dataset.items("train")
        indices = draw_indices(
            manifest.splits["train"].count,
            batch_size,
            seed,
            device,
            flip=flip,
            rank=rank,
            world=world,
            start=start,
            kept=kept,
            sampling_weights=sampling_weights,
            lengths=lengths_of(items),
        )
        return _resident_batches(dataset, items, labels, indices, device, flip)

    if sampling_weights is not None:
        raise UserError(f"reweighting.enters: {dataset.folder} is too large to draw its images by weight; use `loss`")
    from scrimp_trainers.data.streaming import stream

    return stream(dataset, batch_size // world, seed, device, flip, rank, world, start, kept, workers)


def draw_indices(
    count: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    *,
    flip: bool = False,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    kept: np.ndarray | None = None,
    sampling_weights: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor, np.ndarray | None]]:
    """Draw, without end, the images of this rank's batches: positions, int64 [b], mirroring, bool [b], and lengths.

    See `batches` for the parameters; `count` is the number of images in the training split. With their `lengths`,
    int64 [count], the images of a batch have about the same one, and each batch's are given, int64 [b], on the host.
    """
    rank_batch = batch_size // world
    kept_on_device = None if kept is None else to_device(kept, device)
    epoch_length = count if kept is None else len(kept)
    kept_lengths = lengths if lengths is None or kept is None else lengths[kept]

    current_epoch = -1
    order = torch.empty(0)
    flips = torch.empty(0)
    lengths_in_order = np.empty(0)
    batch_start = start * batch_size + rank * rank_batch
    while True:
        chosen: list[Tensor] = []
        mirrored: list[Tensor] = []
        chosen_lengths: list[np.ndarray] = []
        position = batch_start
        missing = rank_batch
        while missing:  # a batch may cross the end of an epoch
            epoch, first = divmod(position, epoch_length)
            if epoch != current_epoch:
                drawn = draw_epoch(epoch_length, seed, epoch, flip, sampling_weights)
                numbers = drawn.order
                if kept_lengths is not None:
                    numbers = alike_in_length(numbers, kept_lengths, batch_size, epoch * epoch_length, seed, epoch)
                    lengths_in_order = kept_lengths[numbers]
                order = to_device(numbers, device)
                flips = to_device(drawn.flips, device)
                current_epoch = epoch

            taken = order[first : first + missing]
            chosen.append(taken)
            mirrored.append(flips[taken])
            chosen_lengths.append(lengths_in_order[first : first + missing])
            missing -= len(taken)
            position += len(taken)

        index = torch.cat(chosen)
        if kept_on_device is not None:
            index = kept_on_device[index]
        yield index, torch.cat(mirrored), None if kept_lengths is None else np.concatenate(chosen_lengths)
        batch_start += batch_size


def _resident_batches(
    dataset: Dataset,
    items: Items,
    all_labels: np.ndarray | None,
    indices: Iterator[tuple[Tensor, Tensor, np.ndarray | None]],
    device: torch.device,
    flip: bool,
) -> Iterator[Batch]:
    """Keep all items on the device, and take batches from there."""
    items = items.to(device)
    labels = None if all_labels is None else torch.from_numpy(all_labels).to(device)

    for index, flipped, lengths in indices:
        drawn = items[index]
        values = drawn.values
        if flip:
            values = mirrored(dataset.modality, values, flipped)
        batch_labels = None if labels is None else labels[index]
        yield Batch(values, batch_labels, index, flipped, drawn.mask, lengths)
