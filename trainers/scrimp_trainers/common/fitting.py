"""How many images a device processes at once: as many as fit into its memory."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from scrimp_trainers.common.errors import UserError

T = TypeVar("T")


class FittingSize:
    """The number of images that a device processes at once, halved whenever memory runs out.

    Each rank finds its own: nothing that is computed with it may wait for other ranks.

    Parameters
    ----------
    size
        Where to begin.
    automatic
        Whether it may be halved.
    """

    def __init__(self, size: int, automatic: bool = True) -> None:
        self.size = size
        self._automatic = automatic

    def fit(self, compute: Callable[[int], T], undo: Callable[[], object] = lambda: None) -> T:
        """Return `compute(size)`. When it runs out of memory, call `undo`, halve the size and try again.

        Raises
        ------
        torch.OutOfMemoryError
            If not even one image fits, or the size may not be halved.
        """
        while True:
            try:
                return compute(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1 or not self._automatic:
                    raise

            # Not in the `except` block: until it ends, the exception keeps the tensors of the attempt alive.
            undo()
            self.size = math.ceil(self.size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def in_parts(count: int, size: FittingSize, compute: Callable[[slice], T], what: str) -> Iterator[T]:
    """Yield `compute(part)` for one part after another of `count` images, each as large as fits.

    Raises
    ------
    UserError
        If not even one image fits; the message begins with `what` does not. It can be retried: other processes may hold
        the memory.
    """
    first = 0
    while first < count:

        def compute_next(length: int, first: int = first) -> T:
            return compute(slice(first, min(first + length, count)))

        try:
            result = size.fit(compute_next)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{what}: not even one image fits into the memory that is left on the device; end other processes that "
                "use it, or take a device with more memory"
            ) from error
        yield result
        first += size.size
