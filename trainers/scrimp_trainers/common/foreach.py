"""In-place operations on lists of tensors: on a GPU a few kernels in all, where a loop would launch one per tensor.

These functions are private to torch, whose optimizers use them. Only this module calls them.
"""

import torch
from torch import Tensor


def add_(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Add the other tensors, one to each."""
    torch._foreach_add_(tensors, others)


def mul_(tensors: list[Tensor], factors: list[Tensor] | float) -> None:
    """Multiply each tensor by its factor, or all tensors by one number."""
    torch._foreach_mul_(tensors, factors)


def copy_(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Copy the other tensors, one into each."""
    torch._foreach_copy_(tensors, others)


def lerp_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Interpolate linearly from each tensor to its end: tensor + weight * (end - tensor)."""
    torch._foreach_lerp_(tensors, ends, weight)


def zero_(tensors: list[Tensor]) -> None:
    """Set all tensors to zero."""
    torch._foreach_zero_(tensors)
