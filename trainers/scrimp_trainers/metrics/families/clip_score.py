"""CLIPScore, `clip_score`: how well samples agree with the captions that they were drawn of (Hessel et al. 2021).

100 times the cosine similarity of CLIP's features of an image and of its caption, or 0 if that is negative, averaged.
`clip_score_training` is the same of training images with these captions, their own.
"""

from typing import TYPE_CHECKING, cast

from scrimp_trainers.recipe.scoring import Extractor

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.metrics.fidelity import Compared

NEEDS_CAPTIONS = True
"""Samples have to be drawn of captions, and the extractor has to have features of them, too."""


def names(extractor: Extractor) -> list[str]:  # noqa: ARG001
    """Return the names of the scores."""
    return ["clip_score", "clip_score_training"]


def scores(compared: "Compared") -> dict[str, float]:
    """Return the scores, by their names."""
    captions = cast("Tensor", compared.captions)
    training = cast("Tensor", compared.training)

    # Sample i is drawn of the caption of training image i, and of the first one's again after the last.
    own = captions[: len(training)]
    return {
        "clip_score": agreement(compared.features, captions),
        "clip_score_training": agreement(training[: len(own)], own),
    }


def agreement(images: "Tensor", captions: "Tensor") -> float:
    """Return the mean score of images by their features [n, d], and of their captions by theirs [n, d]."""
    import torch.nn.functional as F

    similarity = F.cosine_similarity(images.double(), captions.double())
    return float(100 * similarity.clamp(min=0).mean())
