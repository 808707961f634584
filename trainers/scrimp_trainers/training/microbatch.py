"""How many images a device trains on at once: the recipe's number, or as many as fit."""

from scrimp_trainers.common.fitting import FittingSize
from scrimp_trainers.recipe.sections import Training


class Microbatch(FittingSize):
    """The number of images of a step that this rank's device processes at once.

    With `training.microbatch: auto` a step that runs out of memory is computed again in halves, and the size that fits
    is kept. Random numbers belong to the images of a step, so its gradients are the same up to rounding. The other
    ranks follow when the ranks next meet to read their losses: within a step they do not wait for each other, and the
    rank with the smallest microbatch sets the pace.

    Parameters
    ----------
    training : Training
        The recipe's section.
    rank_batch : int
        Images of a step on this rank.
    """

    def __init__(self, training: Training, rank_batch: int) -> None:
        if training.microbatch == "auto":
            super().__init__(rank_batch)
        else:
            super().__init__(min(training.microbatch, rank_batch), automatic=False)
