"""Batches of training images, and the order in which an epoch draws them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's images of one step, on its device."""

    images: Tensor
    """uint8 [B, C, H, W], already flipped where `flipped`; with a codec its moments, float [B, 2c, h, w]."""
    labels: Tensor | None
    """int64 [B], or None where the dataset has no classes."""
    index: Tensor
    """int64 [B], positions in the training split's order."""
    flipped: Tensor
    """bool [B], which images are mirrored left to right."""


@dataclass(frozen=True)
class Epoch:
    """What is random in one epoch."""

    order: np.ndarray
    """int64 [N], a permutation."""
    flips: np.ndarray
    """bool [N], for each image whether it is mirrored."""


def draw_epoch(count: int, seed: int, epoch: int, flip: bool, chances: np.ndarray | None = None) -> Epoch:
    """Draw the order and the mirrorings of one epoch, a pure function of its arguments."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(count) if chances is None else random.choice(count, count, p=chances / chances.sum())
    return Epoch(order, random.random(count) < 0.5 if flip else np.zeros(count, dtype=bool))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the work that is queued there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def mirror(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the marked images [B, C, H, W] left to right."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
