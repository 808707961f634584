"""What training and sampling need of a conditioner, which turns what is known of an item into a network's input."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from scrimp_trainers.data.batch import Batch


class Conditioner(Protocol):
    """One thing that a network is told of each item. A row of its tensors belongs to one item."""

    def of(self, batch: Batch, /) -> Tensor:
        """Return what the network is told of a training batch, [B, ...]."""
        ...

    def null(self, count: int, device: torch.device, /) -> Tensor:
        """Return what the network is told of `count` items of which it is to know nothing, of the same shape."""
        ...

    def for_samples(self, numbers: Sequence[int], device: torch.device, /) -> Tensor:
        """Return what the network is told of the samples with these numbers: a function of the number alone."""
        ...


def hide(conditioner: Conditioner, known: Tensor, hidden: Tensor) -> Tensor:
    """Replace the rows of `known` that are marked in `hidden`, bool [B], by what says nothing."""
    nothing = conditioner.null(len(known), known.device)
    return torch.where(hidden.view(-1, *[1] * (known.ndim - 1)), nothing, known)
