"""One operation on a whole list of tensors, in place: a few kernels on a GPU where a loop would start one a tensor.

torch's optimizers work with these functions. torch keeps them for itself, so nothing but this module names them.
"""

import torch
from torch import Tensor


def add_(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Add to each tensor its other."""
    torch._foreach_add_(tensors, others)


def mul_(tensors: list[Tensor], factors: list[Tensor] | float) -> None:
    """Multiply each tensor by its factor, or all by the same number."""
    torch._foreach_mul_(tensors, factors)


def lerp_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each tensor towards its end, by this share of the way."""
    torch._foreach_lerp_(tensors, ends, weight)


def zero_(tensors: list[Tensor]) -> None:
    """Set all to zero."""
    torch._foreach_zero_(tensors)
