"""The dataset's own small CNN, which `scrimp prepare` trains where there are no labels: nothing is downloaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts

if TYPE_CHECKING:  # importing it takes seconds
    from torch.nn import Module

FACTS = ExtractorFacts(own="encoder")


def load(folder: Path, manifest: Manifest) -> "Module":
    """Return the network of a dataset; raises as `load_encoder` does."""
    from scrimp_trainers.metrics.contrastive import load_encoder

    return load_encoder(folder, manifest)


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of its file; empty if the dataset has none."""
    return manifest.encoder.sha256 if manifest.encoder else ""
