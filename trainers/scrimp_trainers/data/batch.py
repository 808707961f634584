"""Batches of training images, and the order in which an epoch draws them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WINDOW = 32
"""Batches whose items are sorted by length together."""


@dataclass(frozen=True)
class Batch:
    """One rank's images of one step, on its device."""

    values: Tensor
    """[B, ...], what the codec encodes: the items' values, of images uint8 [B, C, H, W], already mirrored where
    `flipped`; or what it has cached of them, of an autoencoder its moments, float [B, 2c, h, w]."""
    labels: Tensor | None
    """int64 [B], or None if the dataset has no classes."""
    index: Tensor
    """int64 [B], positions in the training split."""
    flipped: Tensor
    """bool [B], which images are mirrored left to right."""
    mask: Tensor | None = None
    """bool [B, ...], where items are, and not padding, as in `Items`; none if there is no padding."""
    lengths: np.ndarray | None = None
    """int64 [B], how much of each item is not padding: the sums of the mask, on the host, where to know them takes no
    wait for the device; none if there is no padding."""


@dataclass(frozen=True)
class Epoch:
    """The random choices of one epoch."""

    order: np.ndarray
    """int64 [N], the images in the order in which they are drawn."""
    flips: np.ndarray
    """bool [N], whether each image is mirrored."""


def draw_epoch(count: int, seed: int, epoch: int, flip: bool, sampling_weights: np.ndarray | None = None) -> Epoch:
    """Draw the order of one epoch's images and which are mirrored, a pure function of the arguments."""
    random = np.random.default_rng((seed, epoch))
    if sampling_weights is None:
        order = random.permutation(count)
    else:
        order = random.choice(count, count, p=sampling_weights / sampling_weights.sum())

    flips = np.zeros(count, dtype=bool)
    if flip:
        flips = random.random(count) < 0.5
    return Epoch(order, flips)


def alike_in_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, first: int, seed: int, epoch: int
) -> np.ndarray:
    """Return an epoch's order in which the items of a batch have about the same length, so that little is padding.

    `WINDOW` batches at a time are sorted by length, and come in a random order. Every item is drawn as often as before.

    Parameters
    ----------
    order
        int64 [N], an epoch's items in the order drawn.
    lengths
        int64 [N], the length of each item.
    first
        Position of the epoch in the sequence of all epochs. Its first and last items are in batches with items of the
        epochs beside it, and stay where they are.
    """
    random = np.random.default_rng((seed, epoch, 2))
    order = order.copy()
    begin = -first % batch_size
    end = begin + (len(order) - begin) // batch_size * batch_size
    for start in range(begin, end, WINDOW * batch_size):
        window = order[start : min(start + WINDOW * batch_size, end)]
        window[:] = window[window_order(lengths[window], batch_size, random)]
    return order


def window_order(lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """Return an order of items of these lengths, int64 [k * batch_size]: k batches of about one length each, mixed."""
    by_length = np.argsort(lengths, kind="stable").reshape(-1, batch_size)
    return random.permutation(by_length).ravel()


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for the work that is queued there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def mirror(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the marked images [B, ..., W] left to right."""
    return torch.where(flipped.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)
