"""DINOv2's ViT-g/14 as the code of Shah et al. (2025) asks it: for images in [0, 1] of their own size."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor
    from torch.nn import Module

    from scrimp_trainers.metrics.dinov2 import VisionTransformer

# The similarity is the paper's.
FACTS = ExtractorFacts(layer="class_token", similar=0.9, names_memorisation=True)


def source() -> PublishedWeights:
    """Return where its weights are published."""
    return PublishedWeights("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_pretrain.pth")


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    from scrimp_trainers.metrics import dinov2
    from scrimp_trainers.metrics.weight_files import tensors

    return shown(dinov2.from_state(tensors(path)))


def shown(network: "VisionTransformer") -> "Module":
    """Put what is done to images before a network: it maps uint8 images [b, 3, H, W] to features [b, 1536]."""
    from scrimp_trainers.metrics.extractors.building import Preprocessed

    return Preprocessed(lambda images: reflected(images / 255, network.patch), network)


def reflected(images: "Tensor", multiple: int) -> "Tensor":
    """Reflect images [b, C, H, W] at their borders, so that their sides are multiples of a number.

    An odd remainder is at the bottom and at the right.
    """
    import torch.nn.functional as F

    height, width = (-side % multiple for side in images.shape[-2:])
    left = width // 2
    top = height // 2
    return F.pad(images, (left, width - left, top, height - top), mode="reflect")
