"""torchvision's ResNet-18 up to its pooled features, with the resize and the colours that it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor
    from torch.nn import Module

FACTS = ExtractorFacts(layer="avgpool")
SIDE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of the colours that it was trained on."""


def source() -> PublishedWeights:
    """Return where its weights are published."""
    from torchvision.models import ResNet18_Weights

    return PublishedWeights(ResNet18_Weights.IMAGENET1K_V1.url)


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    from torch import nn
    from torchvision.models import resnet18

    from scrimp_trainers.metrics.extractors.building import Preprocessed
    from scrimp_trainers.metrics.weight_files import tensors

    body = resnet18()
    body.load_state_dict(tensors(path))
    body.fc = nn.Identity()  # type: ignore[assignment]
    return Preprocessed(as_trained, body)


def as_trained(images: "Tensor") -> "Tensor":
    """Return uint8 images [b, 3, H, W] as float32 [b, 3, 224, 224], with the colours that it was trained on."""
    import torch.nn.functional as F

    x = F.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    mean, std = (x.new_tensor(colour).view(3, 1, 1) for colour in (MEAN, STD))
    return (x - mean) / std
