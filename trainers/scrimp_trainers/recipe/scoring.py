"""How a model is scored: with which extractor, on how many samples."""

from typing import Annotated, Literal

from pydantic import Field

from scrimp_trainers.recipe.sections import FilePath, OwnPart, Section

Builtin = Literal["inception", "clip", "dinov2", "vitg14", "vgg16", "resnet18", "classifier"]
Extractor = Builtin | OwnPart

SMALLEST = 20
"""Fewest images that can be scored: two a split of the inception score, more than the neighbours of precision."""


class Scoring(Section):
    """How many samples are scored, with which extractor."""

    extractor: Extractor
    """The feature extractor: `inception` for FID, `classifier` for the dataset's own small CNN, `vitg14` for the
    memorisation of Shah et al. (2025): DINOv2's ViT-g/14 on images that are neither resized nor normalised."""
    also: tuple[str, ...] = ()
    """Further scores, which cost time: `fd_infinity`, the Fréchet distance without the bias of the sample count;
    `fld_gap`, by how much likelier training images are than held-out ones under a density around the samples."""
    samples: Annotated[int, Field(ge=SMALLEST)] = 1000
    """Images that are sampled for one score."""
    weights: FilePath | None = None
    """The extractor's weight file; none looks in torch's cache and then downloads it."""
    threshold: Annotated[float, Field(gt=-1, lt=1)] | None = None
    """Cosine similarity to a training image above which a sample counts as memorised. None: 0.9 for `vitg14`, as in the
    paper, and for `dinov2`, as we chose after it; for others the 99% quantile of the held-out images' own similarities,
    since 0.9 means little there."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images that the extractor takes at once."""
    neighbours: Annotated[int, Field(ge=0)] = 16
    """Samples that are shown beside their nearest training images."""
