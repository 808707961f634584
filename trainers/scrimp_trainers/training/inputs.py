"""What training is given: batches, and what a recipe's techniques need before the first step.

The latter is made once per dataset and shared by all repeats.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.codecs.codec import Codec
from scrimp_trainers.codecs.pixels import PIXEL_CODEC
from scrimp_trainers.common import parts, ranks
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.conditioning.text import Texts
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.recipe.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """What the codec and the techniques need; None where a technique is off."""

    kept: np.ndarray | None = None
    """Positions of the coreset's images in the training split."""
    codec: Codec = PIXEL_CODEC
    """Between the items and what the network is trained on."""
    conditioner: Texts | None = None
    """The captions that the network is conditioned on; None if on classes, which need no preparation, or on nothing."""
    noise_keys: Tensor | None = None
    """int64 [N], a number for each training image, the seed of its fixed ambient noise."""
    class_weights: Tensor | None = None
    """[K], the weight of each class, 1 on average."""
    loss_weights: Tensor | None = None
    """The class weights on the training device, if they are factors on the losses."""
    sampling_weights: np.ndarray | None = None
    """[N or the number of kept images], proportional to the probability with which each image is drawn."""
    device_hours: float = 0.0
    """What reference and proxy have cost, which whoever trains this recipe alone has to pay."""
    files: tuple[Path, ...] = ()
    """Files of the dataset's cache to copy into the repeat's folder: the coreset's list and picture."""


NOTHING_PREPARED = Prepared()
"""For a recipe on pixels whose techniques need nothing."""


def draw_batches(
    recipe: Recipe, dataset: Dataset, prepared: Prepared, *, seed: int, start: int, device: torch.device
) -> Iterator[Batch]:
    """Draw this rank's batches without end, from the step `start` on: of what the codec has cached, or of the items.

    Raises
    ------
    UserError
        As `loading.batches`.
    """
    codec = parts.module("codecs", recipe.codec.part)
    draw = partial(codec.batches, recipe.codec) if hasattr(codec, "batches") else batches
    rank, world = ranks.rank_and_world()
    return draw(
        dataset,
        batch_size=recipe.training.batch_size,
        seed=seed,
        device=device,
        flip=recipe.training.flip,
        rank=rank,
        world=world,
        start=start,
        kept=prepared.kept,
        sampling_weights=prepared.sampling_weights,
    )


def write_artifacts(prepared: Prepared, dataset: Dataset, folder: Path) -> None:
    """Write what was prepared into a repeat's folder: coreset.csv, coreset.png, class_weights.json."""
    for file in prepared.files:
        write_atomic(folder / f"coreset{file.suffix}", file.read_bytes())
    if prepared.class_weights is not None:
        weights = dict(zip(dataset.manifest.classes or [], prepared.class_weights.tolist(), strict=True))
        write_atomic(folder / "class_weights.json", json.dumps(weights, indent=2) + "\n")
