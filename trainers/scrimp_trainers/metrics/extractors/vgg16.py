"""VGG-16, trained on ImageNet, as torch-fidelity has it."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch.nn import Module

FACTS = ExtractorFacts(layer="fc2_relu")


def source() -> PublishedWeights:
    """Return where its weights are published."""
    from torchvision.models import VGG16_Weights

    return PublishedWeights(VGG16_Weights.IMAGENET1K_V1.url)


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    from torch_fidelity import FeatureExtractorVGG16

    from scrimp_trainers.metrics.weight_files import rewritten

    return FeatureExtractorVGG16("vgg16", [FACTS.layer], rewritten(path))
