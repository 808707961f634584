"""How a model is scored: with which extractor, on how many samples."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scrimp_trainers.recipe.sections import FilePath, OwnPart, Section

Builtin = Literal["inception", "clip", "dinov2", "vitg14", "sscd", "vgg16", "resnet18", "classifier", "contrastive"]
Extractor = Builtin | OwnPart

SMALLEST = 20
"""Fewest images that can be scored: two a split of the inception score, more than the neighbours of precision."""


class Scoring(Section):
    """How many samples are scored, with which extractor. A list of them scores the same samples with several."""

    extractor: Extractor
    """The feature extractor: `inception` for FID; `classifier` for the dataset's own small CNN, and `contrastive` for
    that of a dataset without labels; `vitg14` for the memorisation of Shah et al. (2025): DINOv2's ViT-g/14 on images
    that are neither resized nor normalised; `sscd` for that of Somepalli et al. (2023), which Shah et al. use for
    images with captions."""
    also: tuple[str, ...] = ()
    """Further scores, which cost time: `fd_infinity`, the Fréchet distance without the bias of the sample count;
    `fld_gap`, by how much likelier training images are than held-out ones under a density around the samples;
    `clip_score`, with `extractor: clip`, how well samples agree with the captions that they are drawn of."""
    samples: Annotated[int, Field(ge=SMALLEST)] = 1000
    """Images that are sampled for one score."""
    weights: FilePath | None = None
    """The extractor's weight file; none looks in torch's cache and then downloads it."""
    threshold: Annotated[float, Field(gt=-1, lt=1)] | None = None
    """Cosine similarity to a training image above which a sample counts as memorised. None: 0.9 for `vitg14` and 0.5
    for `sscd`, as in the papers, 0.9 for `dinov2`, as we chose after them; for others the 99% quantile of the held-out
    images' own similarities, since 0.9 means little there."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images that the extractor takes at once, and half as many whenever memory runs out."""
    neighbours: Annotated[int, Field(ge=0)] = 16
    """Samples that are shown beside their nearest training images."""
    further: tuple["Scoring", ...] = ()
    """Further extractors, which score the same samples: the second and later ones of a list. Every score then ends in
    its extractor."""

    @property
    def each(self) -> "tuple[Scoring, ...]":
        """The scorings of all extractors."""
        return (self, *self.further)

    @property
    def extractors(self) -> str:
        """The names of all extractors."""
        return ", ".join(each.extractor for each in self.each)

    @model_validator(mode="before")
    @classmethod
    def _first_of_a_list(cls, values: Any) -> Any:
        """Take a list as its first, with the others as further ones of as many samples."""
        if not isinstance(values, list | tuple) or not all(isinstance(each, dict) for each in values):
            return values
        if not values:
            raise ValueError("name at least one extractor")
        first, *others = values
        if "samples" in first:
            others = [{"samples": first["samples"]} | other for other in others]
        return first | {"further": others}

    @model_validator(mode="after")
    def _same_samples(self) -> "Scoring":
        names = [each.extractor for each in self.each]
        if len(set(names)) < len(names):
            raise ValueError(f"lists an extractor twice: {self.extractors}")
        for other in self.further:
            if other.further:
                raise ValueError("further extractors have none of their own; list all of them beside each other")
            if other.samples != self.samples:
                raise ValueError(
                    f"extractors {self.extractor} and {other.extractor} score the same samples; give both the same "
                    f"number, {self.samples} or {other.samples}"
                )
        return self
