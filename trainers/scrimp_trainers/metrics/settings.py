"""How a model is scored, and which names its scores bear.

`fid`, `kid` and the like mean Inception-v3 through torch-fidelity and nothing else. Over another extractor the same
formulas bear its name: `fd_classifier`, `kd_dinov2`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.errors import UserError
from scrimp_trainers.sections import Section

Extractor = Literal["inception", "clip", "dinov2", "vgg16", "resnet18", "classifier"]

FIDELITY: dict[Extractor, list[str]] = {
    "inception": ["fid", "kid", "kid_std", "isc", "precision", "recall"],
    "clip": ["fd_clip", "kd_clip", "kd_clip_std", "precision_clip", "recall_clip"],
    "dinov2": ["fd_dinov2", "kd_dinov2", "kd_dinov2_std", "precision_dinov2", "recall_dinov2"],
    "vgg16": ["fd_vgg16", "kd_vgg16", "kd_vgg16_std", "precision_vgg16", "recall_vgg16"],
    "resnet18": ["fd_resnet18", "kd_resnet18", "kd_resnet18_std", "precision_resnet18", "recall_resnet18"],
    "classifier": [
        "fd_classifier",
        "kd_classifier",
        "kd_classifier_std",
        "isc_classifier",
        "precision_classifier",
        "recall_classifier",
    ],
}
"""Scores of each extractor. The inception score is there only where the extractor has class logits."""

MEMORISATION = ["memorized_fraction", "similarity_mean", "pixel_copied_fraction"]
"""Scores against the training set; `<name>_holdout` is the same for held-out images."""

COST = [
    "kimg",
    "seconds",
    "device_hours",
    "parameters",
    "nonzero_parameters",
    "train_flops",
    "sample_flops",
]
"""What a repeat costs."""

SMALLEST = 20
"""Fewest images that can be scored: two a split of the inception score, more than the neighbours of precision."""


class Scoring(Section):
    """How many samples are scored, with which extractor."""

    extractor: Extractor
    """The feature extractor: `inception` for FID, `classifier` for the dataset's own small CNN."""
    samples: Annotated[int, Field(ge=SMALLEST)] = 1000
    """Images that are sampled for one score."""
    weights: Path | None = None
    """The extractor's weight file; none looks in torch's cache and then downloads it."""
    threshold: Annotated[float, Field(gt=-1, lt=1)] | None = None
    """Cosine similarity to a training image above which a sample counts as memorised. None: 0.9, or for `classifier`
    (where all images of a class are alike) the 99% quantile of the held-out images' own similarities."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images that the extractor takes at once."""
    neighbours: Annotated[int, Field(ge=0)] = 16
    """Samples that are shown beside their nearest training images."""


def score_names(extractor: Extractor) -> list[str]:
    """Names of the scores that this extractor gives, without the held-out controls."""
    return FIDELITY[extractor] + MEMORISATION


def check(scoring: Scoring, manifest: Manifest) -> None:
    """Refuse scores that this dataset cannot have.

    Raises
    ------
    UserError
        If it has no classifier although one is asked for, or too few images to compare with.
    """
    if scoring.extractor == "classifier":
        if manifest.classifier is None:
            raise UserError(
                f"extractor classifier: dataset {manifest.name} has none, because it has no labels or was prepared "
                "without one; prepare it again with labels, or use inception"
            )
        if scoring.weights is not None:
            raise UserError(f"weights {scoring.weights}: the classifier is the dataset's own; leave `weights` out")
    count = manifest.splits[manifest.reference].count
    if count < SMALLEST:
        raise UserError(
            f"dataset {manifest.name}: {count} reference images are too few to score; {SMALLEST} are needed"
        )


def require_objectives(names: Iterable[str], scoring: Scoring) -> None:
    """Refuse objectives and constraints that no scored repeat would ever report.

    Raises
    ------
    UserError
        If one is another extractor's score (`fid` without `inception`), or nothing that is measured.
    """
    own = score_names(scoring.extractor)
    for name in names:
        others = [extractor for extractor, scores in FIDELITY.items() if name in scores]
        if name in own or name in COST or name == "loss":
            continue
        if others:
            raise UserError(
                f"{name}: is measured with extractor {others[0]}, but this dataset is scored with {scoring.extractor}; "
                f"use {own[0]}, or extractor {others[0]}"
            )
        raise UserError(f"{name}: no such score; there are {', '.join([*own, *COST, 'loss'])}")
