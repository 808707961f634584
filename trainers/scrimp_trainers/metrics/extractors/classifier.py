"""The dataset's own small CNN, which `scrimp prepare` trains on its labels: for data far from photographs."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts

if TYPE_CHECKING:  # importing it takes seconds
    from torch.nn import Module

FACTS = ExtractorFacts(logits=True, own="classifier")


def load(folder: Path, manifest: Manifest) -> "Module":
    """Return the network of a dataset; raises as `load_classifier` does."""
    from scrimp_trainers.metrics.classifier import load_classifier

    return load_classifier(folder, manifest)


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of its file; empty if the dataset has none."""
    return manifest.classifier.sha256 if manifest.classifier else ""
