"""What a network is conditioned on for each item of a batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch. Each is None if the network does not take it, or it does not apply."""

    labels: Tensor | None = None
    """int64 [B], classes, or the number of classes where they are hidden."""
    text: Tensor | None = None
    """[B, L, D], the embeddings of the tokens of a caption; those of the empty one where it is hidden."""
    augment_labels: Tensor | None = None
    """[B, A], what was done to an image; zero for one as it was."""
    coordinates: Tensor | None = None
    """[B, 2, H, W], x and y of each pixel in [-1, 1] of the whole image."""
    mask: Tensor | None = None
    """bool [B, ...], where x is an item's, and not padding."""
    lengths: np.ndarray | None = None
    """int64 [B], how much of each item is not padding: the sums of the mask, on the host."""
    kept: Tensor | None = None
    """int64 [B, K], the tokens of each image that a pass sees; None for all."""

    def __getitem__(self, part: slice) -> "Conditions":
        """Return the conditions of a part of the batch."""
        return self._each(lambda value: value[part])

    def to(self, device: torch.device | str) -> "Conditions":
        """Return the same on another device; the lengths stay on the host."""
        return self._each(lambda value: value.to(device) if isinstance(value, Tensor) else value)

    def _each(self, change: Callable[[Any], Any]) -> "Conditions":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(**{name: None if value is None else change(value) for name, value in values.items()})


NOTHING = Conditions()
"""No conditions."""
