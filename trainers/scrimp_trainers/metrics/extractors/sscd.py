"""SSCD's ResNet-50, a descriptor for the detection of copies (Pizzi et al. 2022), as the code of DCR asks it.

"Understanding and Mitigating Copying in Diffusion Models" (Somepalli et al. 2023) counts samples whose similarity to a
training image is above 0.5. Of the published forms this is `torchvision.pt`, which holds tensors alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor
    from torch.nn import Module

# The similarity is the paper's.
FACTS = ExtractorFacts(layer="descriptor", similar=0.5, names_memorisation=True)
WIDTH = 512
"""Numbers of a descriptor."""
POWER = 3.0
"""Of the generalised mean over the last grid."""
SIDE, SHOWN = 256, 224
"""What an image is resized to, and how much of its middle is shown."""


def source() -> PublishedWeights:
    """Return where its weights are published."""
    return PublishedWeights("https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchvision.pt")


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    import torch.nn.functional as F
    from torch import nn
    from torchvision.models import resnet50

    from scrimp_trainers.metrics.extractors.building import Preprocessed
    from scrimp_trainers.metrics.weight_files import tensors

    class GeneralisedMean(nn.Module):
        def forward(self, x: "Tensor") -> "Tensor":
            return x.clamp(min=1e-6).pow(POWER).mean(dim=(2, 3)).pow(1 / POWER)

    class Descriptor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet50(num_classes=WIDTH)
            self.backbone.avgpool = GeneralisedMean()  # type: ignore[assignment]

        def forward(self, x: "Tensor") -> "Tensor":
            return F.normalize(self.backbone(x))

    network = Descriptor()
    network.load_state_dict(tensors(path))
    return Preprocessed(as_shown, network)


def as_shown(images: "Tensor") -> "Tensor":
    """Return the middles of uint8 images [b, 3, H, H] as float32 [b, 3, 224, 224] in [-1, 1]."""
    import torch.nn.functional as F

    from scrimp_trainers.codecs.pixels import scaled

    x = F.interpolate(scaled(images), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    edge = (SIDE - SHOWN) // 2
    return x[..., edge:-edge, edge:-edge]
