"""DINOv2's ViT-L/14 (Oquab et al. 2023), behind torch-fidelity's resize and normalisation."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch.nn import Module

# The similarity is our choice, after the one of Shah et al. (2025) for the largest network of this family.
FACTS = ExtractorFacts(layer="dinov2", similar=0.9)


def source() -> PublishedWeights:
    """Return where its weights are published."""
    return PublishedWeights("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth")


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    from torch_fidelity import FeatureExtractorDinoV2

    from scrimp_trainers.metrics import dinov2
    from scrimp_trainers.metrics.extractors.building import of_torch_fidelity
    from scrimp_trainers.metrics.weight_files import tensors

    extractor = of_torch_fidelity(FeatureExtractorDinoV2, "dinov2-vit-l-14", FACTS.layer)
    extractor.model = dinov2.from_state(tensors(path))
    return extractor
