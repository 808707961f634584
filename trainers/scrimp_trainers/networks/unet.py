"""A U-Net of diffusers, with the inputs that its own `forward` has no place for: augmentation labels, coordinates."""

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.denoiser import Denoiser, load_library_network
from scrimp_trainers.recipe import networks

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


class UNetDenoiser(Denoiser):
    """A `UNet2DModel` that also takes augmentation labels and the coordinates of a patch.

    Neither changes what the `UNet2DModel` alone computes where augmentation labels are zero or absent, so the
    `UNet2DModel` is all that sampling needs.
    """

    convolutional = True
    folder = "unet"
    library_class = "UNet2DModel"

    def __init__(self, unet: "UNet2DModel", *, augment_labels: int = 0, coordinates: bool = False) -> None:
        super().__init__()
        self.unet = unet
        config = unet.config
        self.augment = None
        if augment_labels:
            self.augment = nn.Linear(augment_labels, config["block_out_channels"][0], bias=False)
        self.coordinates = coordinates
        self.classes = (config["num_class_embeds"] or 1) - 1
        self.shape = torch.Size((config["out_channels"], config["sample_size"], config["sample_size"]))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B].

        Without labels they are hidden; without coordinates the images are full frames.
        """
        unet = self.unet
        features = unet.time_proj(levels)
        if self.augment is not None and conditions.augment_labels is not None:
            features = features + self.augment(conditions.augment_labels)
        embedding = unet.time_embedding(features)

        labels = conditions.labels
        if unet.class_embedding is not None:
            labels = levels.new_full((), self.classes, dtype=torch.long) if labels is None else labels
            embedding = embedding + unet.class_embedding(labels)

        if self.coordinates:
            places = frame(images) if conditions.coordinates is None else conditions.coordinates
            images = torch.cat([images, places], dim=1)
        return _blocks(unet, images, embedding)

    def save(self, folder: Path) -> None:
        """Write the `UNet2DModel`. Where this network leaves attention out, it has some that adds nothing: zeros."""
        unet = copy.deepcopy(self.unet)
        for block in _attending_decoder_blocks(unet):
            for number, attention in enumerate(block.attentions):
                if isinstance(attention, nn.Identity):
                    block.attentions[number] = _zeros_like(block.attentions[-1])
        unet.save_pretrained(folder)

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks a `UNet2DModel`."""
        return f"unet({images}, t{f', {labels}' if labels else ''}).sample"


def frame(images: Tensor) -> Tensor:
    """Return the coordinates [B, 2, H, W] of full frames: x, then y, in [-1, 1]."""
    count, _, height, width = images.shape
    x = torch.linspace(-1, 1, width, device=images.device).expand(count, 1, height, width)
    y = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(count, 1, height, width)
    return torch.cat([x, y], dim=1)


def build(
    section: networks.UNet,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
) -> UNetDenoiser:
    """Make a new network for square images. The weights are drawn from torch's global generator.

    Raises
    ------
    UserError
        If the images cannot be halved as often as the network has levels, or the attention heads do not fit.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    levels = len(section.multipliers)
    widths = [section.channels * multiplier for multiplier in section.multipliers]
    _check(section, image_size, widths)
    attends = [image_size >> level in section.attention for level in range(levels)]
    residual = section.resampling == "residual"
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    embedding = None
    if section.embedding_multiplier:
        embedding = section.embedding_multiplier * section.channels
    unet = UNet2DModel(
        sample_size=image_size,
        in_channels=channels + (2 if coordinates else 0),
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=section.blocks,
        down_block_types=tuple("AttnDownBlock2D" if here else down for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else up for here in reversed(attends)),
        downsample_type="resnet" if residual else "conv",  # of blocks with attention
        upsample_type="resnet" if residual else "conv",
        time_embedding_dim=embedding,
        attention_head_dim=section.head_channels,
        dropout=section.dropout,
        norm_num_groups=_groups(section.channels),
        freq_shift=1,  # the embedding's frequencies end at 1/10000, as in DDPM and EDM
        num_class_embeds=classes + 1 if classes else None,
    )
    if section.decoder_attention == "last":
        for block in _attending_decoder_blocks(unet):
            for number in range(len(block.attentions) - 1):
                block.attentions[number] = nn.Identity()
    start_as_identity(unet)
    dropout.replace(unet)
    return UNetDenoiser(unet, augment_labels=augment_labels, coordinates=coordinates)


def load(folder: Path) -> UNetDenoiser:
    """Read the network of an exported model; raises as `load_library_network` does."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = load_library_network(UNet2DModel, folder / UNetDenoiser.folder)
    for block in _attending_decoder_blocks(unet):
        for number, attention in enumerate(block.attentions):
            if not any(parameter.any() for parameter in attention.parameters()):
                block.attentions[number] = nn.Identity()
    return UNetDenoiser(unet, coordinates=unet.config["in_channels"] > unet.config["out_channels"])


def _groups(channels: int) -> int:
    """Return how many groups norms have: 32 as in the papers, or in narrow networks fewer, of four channels or more."""
    return math.gcd(32, channels if channels >= 128 else channels // 4)


def _check(section: networks.UNet, image_size: int, widths: list[int]) -> None:
    halvings = len(widths) - 1
    if image_size % 2**halvings:
        raise UserError(
            f"network.multipliers: {len(widths)} levels halve the images {halvings} times, but {image_size} pixels are "
            f"not a multiple of {2**halvings}; use fewer levels or another --size"
        )
    if section.head_channels and any(width % section.head_channels for width in widths):
        raise UserError(f"network.head_channels: {section.head_channels} does not divide {sorted(set(widths))}")


def _blocks(unet: "UNet2DModel", x: Tensor, embedding: Tensor) -> Tensor:
    """Run a `UNet2DModel` from its first to its last convolution."""
    x = unet.conv_in(x)
    skips = [x]
    for block in unet.down_blocks:
        x, passed = block(hidden_states=x, temb=embedding)
        skips.extend(passed)
    x = unet.mid_block(x, embedding)  # type: ignore[misc]
    for block in unet.up_blocks:
        count = len(block.resnets)  # type: ignore[arg-type]
        x = block(x, tuple(skips[-count:]), embedding)
        del skips[-count:]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _attending_decoder_blocks(unet: "UNet2DModel") -> list[Any]:
    """Return the blocks of the decoder that have attention."""
    return [block for block in unet.up_blocks if hasattr(block, "attentions")]


def _zeros_like(attention: nn.Module) -> nn.Module:
    """Return an attention of the same shape that adds nothing to its input."""
    zeros = copy.deepcopy(attention)
    with torch.no_grad():
        for parameter in zeros.parameters():
            parameter.zero_()
    return zeros


def start_as_identity(unet: "UNet2DModel | UNet2DConditionModel") -> None:
    """Shrink the last layer of every residual branch, and of the network, to almost nothing.

    The papers start so (EDM with a factor of 1e-5, DDPM and LDM with zeros); diffusers does not.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    last: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Transformer2DModel):
            last.append(module.proj_out)
        elif isinstance(module, Attention) and module.residual_connection:  # it is no part of a transformer
            last.append(module.to_out[0])  # type: ignore[index]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(1e-5)  # type: ignore[operator]
            layer.bias.zero_()  # type: ignore[operator]
