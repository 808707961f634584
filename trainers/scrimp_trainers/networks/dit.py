"""A diffusion transformer of diffusers: "Scalable Diffusion Models with Transformers" (Peebles and Xie 2023)."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.denoiser import Denoiser, load_library_network
from scrimp_trainers.recipe import networks

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel


class DiTDenoiser(Denoiser):
    """A `DiTTransformer2DModel`, with one more class than the dataset has: that of a hidden label."""

    folder = "transformer"
    library_class = "DiTTransformer2DModel"

    def __init__(self, transformer: "DiTTransformer2DModel") -> None:
        super().__init__()
        self.transformer = transformer
        config = transformer.config
        self.classes = config["num_embeds_ada_norm"]
        self.shape = torch.Size((config["in_channels"], config["sample_size"], config["sample_size"]))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B].

        Without labels they are hidden.
        """
        labels = conditions.labels
        if labels is None:
            labels = torch.full((len(images),), self.classes, device=images.device)
        return self.transformer(images, timestep=levels, class_labels=labels).sample

    @property
    def takes_only_images_and_levels(self) -> bool:
        """No: it always takes labels."""
        return False

    def save(self, folder: Path) -> None:
        """Write the `DiTTransformer2DModel`."""
        self.transformer.save_pretrained(folder)

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks a `DiTTransformer2DModel`."""
        labels = labels or f"torch.full((len(x),), {self.classes})"
        return f"transformer({images}, t.expand(len(x)), {labels}).sample"


def build(
    section: networks.DiT,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
) -> DiTDenoiser:
    """Make a new network for square images. The weights are drawn from torch's global generator.

    Raises
    ------
    UserError
        If the images cannot be cut into patches, or the heads do not fit.
    ValueError
        If it is to take augmentation labels or coordinates, which its section does not offer.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    if augment_labels or coordinates:
        raise ValueError("a DiT takes neither augmentation labels nor coordinates")
    if image_size % section.patch_size:
        raise UserError(f"network.patch_size: {section.patch_size} does not divide {image_size} pixels")
    if section.channels % section.heads:
        raise UserError(f"network.heads: {section.heads} does not divide the {section.channels} of network.channels")

    transformer = DiTTransformer2DModel(
        num_attention_heads=section.heads,
        attention_head_dim=section.channels // section.heads,
        in_channels=channels,
        num_layers=section.layers,
        dropout=section.dropout,
        sample_size=image_size,
        patch_size=section.patch_size,
        num_embeds_ada_norm=classes,
    )
    _initialise(transformer)
    dropout.replace(transformer)
    return DiTDenoiser(_without_own_label_dropout(transformer))


def load(folder: Path) -> DiTDenoiser:
    """Read the network of an exported model; raises as `load_library_network` does."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    transformer = load_library_network(DiTTransformer2DModel, folder / DiTDenoiser.folder)
    return DiTDenoiser(_without_own_label_dropout(transformer))


def _initialise(transformer: "DiTTransformer2DModel") -> None:
    """Start as the paper's code does: linear layers by Xavier, embeddings at 0.02, every block as the identity."""
    from diffusers.models.normalization import AdaLayerNormZero

    for name, module in transformer.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            if "timestep_embedder" in name:
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    modulations = [module.linear for module in transformer.modules() if isinstance(module, AdaLayerNormZero)]
    for layer in [*modulations, transformer.proj_out_1, transformer.proj_out_2]:
        nn.init.zeros_(layer.weight)


def _without_own_label_dropout(transformer: "DiTTransformer2DModel") -> "DiTTransformer2DModel":
    """Turn off diffusers' own dropping of labels: the training loop drops them, by draws that belong to the step."""
    from diffusers.models.embeddings import LabelEmbedding

    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return transformer
