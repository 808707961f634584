"""What several extractors' networks are made with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase


def of_torch_fidelity(kind: type[FeatureExtractorBase], name: str, layer: str) -> Any:
    """Return an extractor of torch-fidelity's without its network, `model`.

    Its own `__init__` would fetch and run code: a repository's, or whatever TorchScript a file holds. The rest of its
    class (resize, normalise) is used as it is.
    """
    extractor: Any = kind.__new__(kind)
    FeatureExtractorBase.__init__(extractor, name, [layer])
    extractor.feature_extractor_internal_dtype = torch.float32
    return extractor


class Preprocessed(nn.Module):
    """A network behind what is done to images before it sees them."""

    def __init__(self, prepare: Callable[[Tensor], Tensor], body: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [b, 3, H, W] to features [b, d]."""
        return (self.body(self.prepare(images)),)
