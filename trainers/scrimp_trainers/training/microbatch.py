"""How many images a device takes at once: as many as the recipe says, or as fit."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from scrimp_trainers.recipe.sections import Training

Result = TypeVar("Result")


class Microbatch:
    """The number of images that this rank's device takes at once.

    With `training.microbatch: auto` a step that runs out of memory is computed again in halves, and what then fits is
    kept. What a step draws at random belongs to its images, so its gradients are the same to rounding. Each rank
    finds its own size: ranks meet only when the gradients of the whole step are averaged, so nobody has to agree.

    Parameters
    ----------
    training : Training
        The recipe's section.
    share : int
        Images of a step that this rank takes.
    """

    def __init__(self, training: Training, share: int) -> None:
        self._automatic = training.microbatch == "auto"
        self.size = share if training.microbatch == "auto" else min(training.microbatch, share)

    def fit(self, compute: Callable[[int], Result], undo: Callable[[], object]) -> Result:
        """Return what `compute` makes of a step with `size` images at once; on lack of memory `undo`, halve, repeat.

        Raises
        ------
        torch.OutOfMemoryError
            If not even one image fits, or the recipe states the size.
        """
        while True:
            try:
                return compute(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1 or not self._automatic:
                    raise
            # Only here: until the error is gone, it holds what the step had taken.
            undo()
            self.size = math.ceil(self.size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
