"""What an extractor's file states, and what it has.

Each file in this folder has `FACTS`, and imports no torch before it is asked for a network: names of scores, and what
a dataset lacks, answer at once. Besides, it has either of these:

- `source()`, where its weights are published, and `build(path)`, the network of a weight file. It is shown RGB.
- `load(folder, manifest)` and `digest(manifest)`, if its weights are the dataset's own: the network, and the SHA-256 of
  its file. It is shown the dataset's own channels.

A network maps uint8 images [b, C, H, W] to a tuple of features [b, d] and, with `logits`, class logits. One that reads
captions has `build_text(path)` besides: a network that maps their tokens, int64 [b, L], to features [b, d].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scrimp_trainers.common import parts
from scrimp_trainers.recipe.scoring import Extractor


@dataclass(frozen=True)
class ExtractorFacts:
    """What is known of an extractor without its network."""

    layer: str = "features"
    """The layer whose activations the features are; caches bear its name."""
    logits: bool = False
    """Whether it also gives class logits, without which there is no inception score."""
    similar: float | None = None
    """Cosine similarity above which an image is a near-copy; none: the held-out images settle it."""
    own: Literal["classifier", "encoder"] | None = None
    """Which network of the dataset's own it is, by its name in the manifest; a dataset may lack it."""
    score_names: Mapping[str, str] | None = None
    """What the quantities are called over it, without a suffix; none: as they are, with its name behind."""
    names_memorisation: bool = False
    """Whether the scores of memorisation bear its name, because they are a paper's."""
    reads_captions: bool = False
    """Whether it has features of captions, too, in the space of those of images."""


@dataclass(frozen=True)
class PublishedWeights:
    """Where weights are published."""

    url: str
    """Their address."""
    renamed: str = ""
    """Their file's name in torch's hub cache, if it is not the end of the address."""

    @property
    def file(self) -> str:
        """Their file's name in torch's hub cache."""
        return self.renamed or self.url.rpartition("/")[2]


def facts(extractor: Extractor) -> ExtractorFacts:
    """Return what an extractor's file states; of a user's own, which need not be loaded, nothing is known."""
    return ExtractorFacts() if parts.is_own(extractor) else parts.module("metrics.extractors", extractor).FACTS
