"""What training and sampling need of a conditioner: it turns what is known of an item into an input of the network."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from scrimp_trainers.data.batch import Batch


class Conditioner(Protocol):
    """One condition of a network. A row of its tensors belongs to one item."""

    name: ClassVar[str]
    """Its field in `Conditions`."""

    def of(self, batch: Batch, /) -> Tensor | None:
        """Return the condition of a training batch, [B, ...]; None if nothing is known of its items."""
        ...

    def null(self, count: int, device: torch.device, /) -> Tensor:
        """Return the empty condition of `count` items, of the same shape."""
        ...

    def for_samples(self, numbers: Sequence[int], device: torch.device, /) -> Tensor:
        """Return the condition of the samples with these numbers: a function of the number alone."""
        ...


def hide(conditioner: Conditioner, known: Tensor, hidden: Tensor) -> Tensor:
    """Replace the rows of `known` that are marked in `hidden`, bool [B], by the empty condition."""
    empty = conditioner.null(len(known), known.device)
    return torch.where(hidden.view(-1, *[1] * (known.ndim - 1)), empty, known)
