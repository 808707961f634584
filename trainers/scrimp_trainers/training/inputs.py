"""What a recipe's techniques need before the first step: made once for a dataset, and shared by all repeats."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.data.dataset import Dataset

if TYPE_CHECKING:
    from scrimp_trainers.codecs.autoencoder import OpenCodec


@dataclass(frozen=True)
class Prepared:
    """What the techniques need; none where a technique is off."""

    kept: np.ndarray | None = None
    """Positions of the coreset's images in the training split."""
    codec: "OpenCodec | None" = None
    """The autoencoder between pixels and latents."""
    image_keys: Tensor | None = None
    """int64 [N], a number for each training image from which its fixed noise is drawn."""
    class_weights: Tensor | None = None
    """[K], the weight of each class, 1 on average."""
    loss_weights: Tensor | None = None
    """The same, where they are factors on the losses."""
    chances: np.ndarray | None = None
    """[N or as many as are kept], how likely each image is to be drawn, in proportion."""
    files: tuple[Path, ...] = ()
    """In the dataset's cache, what to show of it: the coreset's list and picture."""


NOTHING_PREPARED = Prepared()
"""For a recipe without techniques that need anything."""


def write_artifacts(prepared: Prepared, dataset: Dataset, folder: Path) -> None:
    """Leave in a repeat's folder what was prepared for it: coreset.csv, coreset.png, class_weights.json."""
    for file in prepared.files:
        write_atomic(folder / f"coreset{file.suffix}", file.read_bytes())
    if prepared.class_weights is not None:
        weights = dict(zip(dataset.manifest.classes or [], prepared.class_weights.tolist(), strict=True))
        write_atomic(folder / "class_weights.json", json.dumps(weights, indent=2) + "\n")
