"""Dropout whose masks belong to the images, and that does not hold up a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALUES = 2**16
"""A mask's element is a number of 16 bits, compared with the share to drop."""


class Dropout(nn.Dropout):
    """`nn.Dropout`, with masks that cost a CPU a third, and that can belong to the images of a whole step.

    PyTorch draws masks an element at a time and on one core, which is a tenth of a training step of DDPM's network on
    two. Here one draw of 64 bits serves four elements. The share dropped is rounded to a multiple of 1/65536, and what
    is kept is scaled by what that leaves, so that the mean stays what it was.
    """

    rows: int | None = None
    """Images of the step that the input is a part of; none where the input is all there is."""
    first: int = 0
    """Position of the input's first image among them."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the name that nn.Dropout gives it
        """Drop elements at random while training, in any shape; scale what is kept."""
        dropped = round(self.p * VALUES)
        if not self.training or not 0 < dropped < VALUES:
            return F.dropout(input, self.p, self.training)

        # Numbers for the whole step, of which a part takes its own rows.
        count = len(input) if input.ndim else 1
        elements = input.numel() // max(1, count)
        rows = self.rows or count
        if torch.compiler.is_compiling():  # a graph draws where it multiplies; a draw in place would break it in two
            numbers = torch.rand(rows, elements, device=input.device)
            least = dropped / VALUES
        else:
            bits = torch.empty((rows, (elements + 3) // 4), dtype=torch.int64, device=input.device)
            numbers = bits.random_(-(2**63), None).view(torch.int16)
            least = dropped - VALUES // 2

        own = numbers[self.first : self.first + count, :elements]
        kept = own.reshape(input.shape) >= least
        return input * kept.to(input.dtype).mul_(VALUES / (VALUES - dropped))


@contextmanager
def of_step(network: nn.Module, rows: int, first: int, seed: int) -> Iterator[None]:
    """Let the network drop of some images of a step what it would drop of them if it saw all `rows` at once.

    `first` is the position of the first of these images in the step. So a mask belongs to its image, into however
    many parts and over however many ranks a step is cut.
    """
    layers = [module for module in network.modules() if isinstance(module, Dropout) and module.p > 0]
    if layers:
        torch.manual_seed(seed)
    for layer in layers:
        layer.rows = rows
        layer.first = first
    try:
        yield
    finally:
        for layer in layers:
            layer.rows = None
            layer.first = 0


def replace(network: nn.Module) -> None:
    """Put it in the place of every `nn.Dropout` of a network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
