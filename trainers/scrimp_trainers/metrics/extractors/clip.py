"""CLIP's ViT-B/32, behind torch-fidelity's resize and normalisation.

It is published as TorchScript, which can run code. So of that form only the published file is accepted, by its hash.
"""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor
    from torch.nn import Module

FACTS = ExtractorFacts(layer="clip", reads_captions=True)
NAME = "clip-vit-b-32"
"""What torch-fidelity calls it."""
HEAD = 64
"""Width of an attention head in all of CLIP's networks."""


def source() -> PublishedWeights:
    """Return where its weights are published."""
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

    return PublishedWeights(MODEL_URLS[NAME], renamed=f"{NAME}-{MODEL_METADATA[NAME]['hash']}.pt")


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


def build_text(path: Path) -> "Module":
    """Return the network of captions in a weight file. The tokens are those of CLIP's vocabulary, 77 at most.

    Its feature of a caption is that of the token that ends it, which has the largest number of all.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch_fidelity.feature_extractor_clip import Transformer

    class Text(nn.Module):
        def __init__(self, state: "dict[str, Tensor]") -> None:
            super().__init__()
            length, width = state["positional_embedding"].shape
            layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
            later = torch.full((length, length), float("-inf")).triu(1)
            self.token_embedding = nn.Embedding(len(state["token_embedding.weight"]), width)
            self.positional_embedding = nn.Parameter(torch.empty(length, width))
            self.transformer = Transformer(width, layers, heads=width // HEAD, attn_mask=later)
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.empty(state["text_projection"].shape))

        def forward(self, tokens: "Tensor") -> "Tensor":
            missing = len(self.positional_embedding) - tokens.shape[1]
            if missing < 0:
                raise UserError(
                    f"clip reads {len(self.positional_embedding)} tokens of a caption, not {tokens.shape[1]}"
                )
            tokens = F.pad(tokens, (0, missing))  # what comes after a caption's end changes nothing
            x = self.token_embedding(tokens) + self.positional_embedding
            x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # torch-fidelity has the tokens first
            ends = tokens.argmax(dim=1)
            return self.ln_final(x)[torch.arange(len(x), device=x.device), ends] @ self.text_projection

    state = {name: tensor.float() for name, tensor in _state(path).items()}
    network = Text(state)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


def _state(path: Path) -> "dict[str, Tensor]":
    """Read its tensors. To load a TorchScript archive is to run its code, so only the published one is accepted."""
    import torch

    from scrimp_trainers.metrics.weight_files import published_hash, tensors

    content = path.read_bytes()  # what is loaded is what was hashed
    if hashlib.sha256(content).hexdigest() == published_hash(source().file):
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict())
    return tensors(path)
