"""A masked diffusion transformer: "Masked Diffusion Transformer is a Strong Image Synthesizer" (Gao et al. 2023).

What samples is in torch alone, and the model card of an exported network quotes it.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import networks


def waves(values: Tensor, count: int) -> Tensor:
    """Return cosines and sines [..., count] of values [...], with periods from 2 pi to 20,000 pi."""
    frequencies = 10_000.0 ** -(torch.arange(count // 2, device=values.device) / (count // 2))
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def grid_waves(side: int, channels: int) -> Tensor:
    """Return sines and cosines [side^2, channels] of the column, and then of the row, of each place of a grid."""
    line = torch.arange(side).float()
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    halves = [waves(place.flatten(), channels // 2).chunk(2, -1) for place in (columns, rows)]
    return torch.cat([wave for cosines, sines in halves for wave in (sines, cosines)], -1)


def places_between(side: int) -> Tensor:
    """Give each offset between two places of a grid its number: int64 [side^2, side^2], below (2 side - 1)^2."""
    line = torch.arange(side)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    rows, columns = (places[:, None] - places[None] + side - 1).unbind(-1)
    return rows * (2 * side - 1) + columns


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise tokens [B, N, C]; scale and shift them by what each image [B, C] says."""
    normal = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return normal * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block with adaptive layer norms, a bias for each offset in attention, and perhaps a skip."""

    def __init__(self, side: int, channels: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.skip = nn.Linear(2 * channels, channels) if skip else None
        self.modulation = nn.Linear(channels, 6 * channels)
        # The last three rows are BEiT's, for a token of the whole image, which there is none of here.
        self.offsets = nn.Embedding((2 * side - 1) ** 2 + 3, heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attended = nn.Linear(channels, channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor, condition: Tensor, places: Tensor, skipped: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, C], given the condition of each image [B, C], and offsets' numbers [..., N, N]."""
        if self.skip is not None and skipped is not None:
            tokens = self.skip(torch.cat([tokens, skipped], -1))
        shift, scale, gate, later_shift, later_scale, later_gate = self.modulation(condition).chunk(6, -1)

        query, key, value = self.qkv(modulated(tokens, shift, scale)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        bias = self.offsets(places).movedim(-1, -3).to(query.dtype)
        attended = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), bias
        )
        tokens = tokens + gate[:, None] * self.attended(attended.transpose(1, 2).flatten(2))

        wide = nn.functional.gelu(self.widen(modulated(tokens, later_shift, later_scale)), approximate="tanh")
        return tokens + later_gate[:, None] * self.narrow(wide)


class Transformer(nn.Module):
    """The network. Version 2 has skips in the encoder and from the patches to the decoder; version 1 has none.

    The encoder sees all tokens of an image, or those that are kept; then a side-interpolater estimates the others, and
    the decoder sees all.
    """

    def __init__(
        self,
        size: int,
        inputs: int,
        outputs: int,
        patch_size: int,
        channels: int,
        heads: int,
        layers: int,
        decoder_layers: int,
        classes: int,
        version: int,
        masked: bool,
    ) -> None:
        super().__init__()
        self.side = size // patch_size
        self.patch_size = patch_size
        self.classes = classes
        self.patches = nn.Conv2d(inputs, channels, patch_size, patch_size)
        self.time_embedding = nn.Sequential(nn.Linear(256, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.class_embedding = nn.Embedding(classes + 1, channels) if classes else None

        def blocks(count: int, skip: bool) -> nn.ModuleList:
            return nn.ModuleList([Block(self.side, channels, heads, skip) for _ in range(count)])

        skips = version == 2
        half = (layers - decoder_layers) // 2
        self.first = blocks(half if skips else layers - decoder_layers, False)
        self.second = blocks(half if skips else 0, True)
        self.decoder = blocks(decoder_layers, skips)
        self.interpolater = Block(self.side, channels, heads, False) if masked else None
        self.hidden = nn.Parameter(torch.zeros(1, 1, channels)) if masked else None
        self.encoder_places = nn.Parameter(grid_waves(self.side, channels)[None])
        self.decoder_places = nn.Parameter(grid_waves(self.side, channels)[None])
        self.places: Tensor
        self.register_buffer("places", places_between(self.side), persistent=False)
        self.last_modulation = nn.Linear(channels, 2 * channels)
        self.last = nn.Linear(channels, patch_size**2 * outputs)

    def forward(self, images: Tensor, levels: Tensor, labels: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """Return the raw output [B, outputs, H, W] for images [B, inputs, H, W] and their noise levels [B].

        `labels`, int64 [B], are classes, or their number where they are hidden; `kept`, int64 [B, K], are the tokens
        that the encoder sees.
        """
        condition = self.time_embedding(waves(levels, 256))
        if self.class_embedding is not None:
            condition = condition + self.class_embedding(labels)
        condition = nn.functional.silu(condition)

        patches = self.patches(images).flatten(2).transpose(1, 2) + self.encoder_places
        tokens = self.encoded(patches, condition, kept) + self.decoder_places
        if kept is not None and self.interpolater is not None:
            estimated = self.interpolater(tokens, condition, self.places)
            seen = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, kept, True)
            tokens = torch.where(seen[..., None], tokens, estimated)
        for block in self.decoder:
            tokens = block(tokens, condition, self.places, patches)

        pixels = self.last(modulated(tokens, *self.last_modulation(condition).chunk(2, -1)))
        squares = pixels.unflatten(1, (self.side, self.side)).unflatten(-1, (self.patch_size, self.patch_size, -1))
        return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def encoded(self, tokens: Tensor, condition: Tensor, kept: Tensor | None) -> Tensor:
        """Return the tokens [B, N, C] after the encoder; those that it does not see are the one that is learned."""
        seen, places = tokens, self.places
        if kept is not None:
            seen = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
            places = places[kept[:, :, None], kept[:, None, :]]

        skipped = []
        for block in self.first:
            seen = block(seen, condition, places)
            skipped.append(seen)
        for block in self.second:
            seen = block(seen, condition, places, skipped.pop())
        if kept is None or self.hidden is None:
            return seen
        hidden = self.hidden.to(seen.dtype).expand(len(seen), tokens.shape[1], -1)
        return hidden.scatter(1, kept[..., None].expand_as(seen), seen)


CODE = "\n\n".join(
    ["from torch import Tensor\n"]
    + [inspect.getsource(part) for part in (waves, grid_waves, places_between, modulated, Block, Transformer)]
)
LOADING = """

network = Transformer(**json.loads((folder / "network" / "config.json").read_text()))
weights = load_file(folder / "network" / "diffusion_pytorch_model.safetensors")
network.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in weights.items()})
"""
"""What a model card says of the network: the same, without Scrimp."""


class MDTDenoiser(Denoiser):
    """The transformer, with one more class than the dataset has: that of a hidden label."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(**config)
        self.classes = config["classes"]
        self.shape = torch.Size((config["inputs"], config["size"], config["size"]))
        self.variances = config["outputs"] > config["inputs"]
        self.tokens = self.transformer.side**2 if config["masked"] else 0

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C or 2 C, H, W] for images [B, C, H, W] and their noise levels [B].

        Labels that are not given are hidden. Of an image with kept tokens, no others are seen.
        """
        labels = conditions.labels
        if labels is None and self.classes:
            labels = torch.full((len(images),), self.classes, device=images.device)
        return self.transformer(images, levels, labels, conditions.kept)

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks the network in `code`."""
        return f"network({images}, t.expand(len(x)), {labels})"

    @property
    def code(self) -> str:
        """Return the network in torch alone, and how it is read."""
        return CODE + LOADING


def build(
    section: networks.MDT,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
    masked: bool = False,
    variances: bool = False,
) -> MDTDenoiser:
    """Make a new network for square images. The weights are drawn from torch's global generator.

    Raises
    ------
    UserError
        If the images cannot be cut into patches.
    ValueError
        If it is to take augmentation labels or coordinates, which its section does not offer.
    """
    if augment_labels or coordinates:
        raise ValueError("an MDT takes neither augmentation labels nor coordinates")
    if image_size % section.patch_size:
        raise UserError(f"network.patch_size: {section.patch_size} does not divide {image_size} pixels")

    network = MDTDenoiser(
        size=image_size,
        inputs=channels,
        outputs=2 * channels if variances else channels,
        patch_size=section.patch_size,
        channels=section.channels,
        heads=section.heads,
        layers=section.layers,
        decoder_layers=section.decoder_layers,
        classes=classes,
        version=section.version,
        masked=masked,
    )
    _initialise(network.transformer)
    return network


def load(folder: Path) -> MDTDenoiser:
    """Read the network of an exported model; raises as `Denoiser.from_folder` does."""
    return MDTDenoiser.from_folder(folder)


def _initialise(transformer: Transformer) -> None:
    """Start as the paper's code does: linear layers by Xavier, embeddings at 0.02, every block as the identity."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    for layer in transformer.time_embedding:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    if transformer.hidden is not None:
        nn.init.normal_(transformer.hidden, std=0.02)

    zero = [module.modulation for module in transformer.modules() if isinstance(module, Block)]
    for layer in (*zero, transformer.last_modulation, transformer.last):
        nn.init.zeros_(layer.weight)
