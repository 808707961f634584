"""Endless batches of a dataset's training images: START READING in `batches`.

The global sequence is one seeded permutation of the images an epoch, or as many draws by chance where images are not
all alike. Step `s` takes its positions [s * batch_size, (s + 1) * batch_size), and every rank an equal slice of these.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.batch import Batch, draw_epoch, mirror, to_device
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import RESIDENT


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
    chances: np.ndarray | None = None,
    room: int = RESIDENT,
    workers: int = 2,
) -> Iterator[Batch]:
    """Draw training batches without end, from the step `start` on as if the steps before had been drawn.

    A dataset that fits is decoded once and stays on the device: no loader processes, no copies, no host
    synchronisation a step. A larger one streams from its shards; see `streaming`.

    Parameters
    ----------
    batch_size
        Images a step over all ranks; each gets `batch_size // world`.
    flip
        Mirror each image with probability 1/2.
    kept
        Positions in the training split, sorted, of the images to draw; none for all.
    chances
        How likely each of them is, in proportion; none for every image once an epoch.
    room
        A dataset is kept on the device if its pixels take at most so many bytes. The order of images depends on it, so
        it is the same on every machine, whatever else runs there.
    workers
        Loader processes a rank when streaming.

    Raises
    ------
    UserError
        If the batch cannot be split evenly over the ranks, or chances are asked for of a dataset that is streamed.
    """
    if batch_size % world:
        raise UserError(f"training.batch_size: {batch_size} cannot be split evenly over {world} devices")
    device = torch.device(device)
    manifest = dataset.manifest
    count = manifest.splits["train"].count
    if manifest.train_bytes <= room:
        drawn = draw_indices(
            count, batch_size, seed, device, flip=flip, rank=rank, world=world, start=start, kept=kept, chances=chances
        )
        return _resident(dataset, drawn, device, flip)
    if chances is not None:
        raise UserError(f"reweighting.enters: {dataset.folder} is too large to draw by chance; use `loss`")
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
    chances: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw, without end, which of `count` images this rank takes, int64 [b], and which are mirrored, bool [b]."""
    size = batch_size // world
    position = start * batch_size + rank * size
    positions = None if kept is None else to_device(kept, device)
    among = count if kept is None else len(kept)
    number, order, flips = -1, torch.empty(0), torch.empty(0)
    while True:
        chosen, mirrored = [], []
        missing, here = size, position
        while missing:
            epoch, first = divmod(here, among)
            if epoch != number:
                drawn = draw_epoch(among, seed, epoch, flip, chances)
                number, order, flips = epoch, to_device(drawn.order, device), to_device(drawn.flips, device)
            taken = order[first : first + missing]
            chosen.append(taken)
            mirrored.append(flips[taken])
            missing, here = missing - len(taken), here + len(taken)
        index = torch.cat(chosen)
        yield index if positions is None else positions[index], torch.cat(mirrored)
        position += batch_size


def _resident(
    dataset: Dataset, drawn: Iterator[tuple[Tensor, Tensor]], device: torch.device, flip: bool
) -> Iterator[Batch]:
    arrays = dataset.images("train")
    images = torch.from_numpy(arrays[0]).to(device)
    labels = None if arrays[1] is None else torch.from_numpy(arrays[1]).to(device)
    for index, flipped in drawn:
        picked = images[index]
        yield Batch(
            mirror(picked, flipped) if flip else picked, None if labels is None else labels[index], index, flipped
        )
