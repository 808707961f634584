"""The class of an image, as a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scrimp_trainers.data.batch import Batch


@dataclass(frozen=True)
class Classes:
    """A conditioner by class, int64 [B]. The number of classes stands for a hidden one."""

    count: int
    """Number of classes."""
    name: ClassVar[str] = "labels"

    def of(self, batch: Batch) -> Tensor | None:
        """Return the labels of a batch; None if it has none."""
        return batch.labels

    def null(self, count: int, device: torch.device) -> Tensor:
        """Return hidden labels."""
        return torch.full((count,), self.count, device=device)

    def for_samples(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return the labels of samples: the classes in turn."""
        return torch.tensor(numbers, device=device) % self.count


def conditioner_for(classes: int) -> Classes | None:
    """Return the conditioner of a network with so many classes; None for 0."""
    return Classes(classes) if classes else None
