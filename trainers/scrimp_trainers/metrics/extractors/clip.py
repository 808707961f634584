"""CLIP's ViT-B/32, behind torch-fidelity's resize and normalisation.

It is published as TorchScript, which can run code. So of that form only the published file is accepted, by its hash.
"""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import Facts, Source

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor
    from torch.nn import Module

FACTS = Facts(layer="clip")
NAME = "clip-vit-b-32"
"""What torch-fidelity calls it."""


def source() -> Source:
    """Return where its weights are published."""
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

    return Source(MODEL_URLS[NAME], renamed=f"{NAME}-{MODEL_METADATA[NAME]['hash']}.pt")


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    import torch
    from torch_fidelity import FeatureExtractorCLIP
    from torch_fidelity.feature_extractor_clip import build_model

    from scrimp_trainers.metrics.extractors.building import of_torch_fidelity

    extractor = of_torch_fidelity(FeatureExtractorCLIP, NAME, FACTS.layer)
    extractor.model = build_model(_state(path), torch.float32)
    extractor.resolution = extractor.model.visual.input_resolution
    return extractor


def _state(path: Path) -> "dict[str, Tensor]":
    """Read its tensors. To load a TorchScript archive is to run its code, so only the published one is accepted."""
    import torch

    from scrimp_trainers.metrics.weight_files import published_hash, tensors

    content = path.read_bytes()  # what is loaded is what was hashed
    if hashlib.sha256(content).hexdigest() == published_hash(source().file):
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict())
    return tensors(path)
