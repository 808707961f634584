"""How many images a device processes at once: the recipe's number, or as many as fit."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from scrimp_trainers.recipe.sections import Training

T = TypeVar("T")


class Microbatch:
    """The number of images that this rank's device processes at once.

    With `training.microbatch: auto` a step that runs out of memory is computed again in halves, and the size that fits
    is kept. Random numbers belong to the images of a step, so its gradients are the same up to rounding. Each rank
    finds its own size: ranks only synchronise when the gradients of the whole step are averaged.

    Parameters
    ----------
    training : Training
        The recipe's section.
    rank_batch : int
        Images of a step on this rank.
    """

    def __init__(self, training: Training, rank_batch: int) -> None:
        self._automatic = training.microbatch == "auto"
        if training.microbatch == "auto":
            self.size = rank_batch
        else:
            self.size = min(training.microbatch, rank_batch)

    def fit(self, compute: Callable[[int], T], undo: Callable[[], object]) -> T:
        """Return `compute(size)`. When it runs out of memory, call `undo`, halve the size and try again.

        Raises
        ------
        torch.OutOfMemoryError
            If not even one image fits, or the recipe sets the size.
        """
        while True:
            try:
                return compute(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1 or not self._automatic:
                    raise

            # Not in the `except` block: until it ends, the exception keeps the step's tensors alive.
            undo()
            self.size = math.ceil(self.size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
