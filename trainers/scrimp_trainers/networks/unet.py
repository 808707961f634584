"""A U-Net of diffusers, with the inputs that its own `forward` has no place for: augmentation labels, coordinates."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.networks import dropout
from scrimp_trainers.recipe.sections import Network

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.models.unets.unet_2d import UNet2DModel


class UNet(nn.Module):
    """A `UNet2DModel` that can also be told how an image was augmented and which part of the frame it is.

    Neither changes what the `UNet2DModel` alone computes where augmentation labels are zero or absent, so the
    `UNet2DModel` is all that sampling needs.
    """

    def __init__(self, unet: "UNet2DModel", *, augment_labels: int = 0, coordinates: bool = False) -> None:
        super().__init__()
        self.unet = unet
        config = unet.config
        self.augment = (
            nn.Linear(augment_labels, config["block_out_channels"][0], bias=False) if augment_labels else None
        )
        self.coordinates = coordinates
        self.classes: int = (config["num_class_embeds"] or 1) - 1
        """Number of classes that the network can be told, 0 for none."""
        self.shape = torch.Size((config["out_channels"], config["sample_size"], config["sample_size"]))
        """Shape [C, H, W] of an image."""

    def forward(
        self,
        images: Tensor,
        levels: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        coordinates: Tensor | None = None,
    ) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B].

        `labels` [B] are classes, or the number of classes where they are hidden; none hides all. `augment_labels`
        [B, A] are zero for an image as it is. `coordinates` [B, 2, H, W] are x and y in [-1, 1] of the full frame;
        none means that the images are full frames.
        """
        unet = self.unet
        features = unet.time_proj(levels)
        if self.augment is not None and augment_labels is not None:
            features = features + self.augment(augment_labels)
        embedding = unet.time_embedding(features)
        if unet.class_embedding is not None:
            labels = levels.new_full((), self.classes, dtype=torch.long) if labels is None else labels
            embedding = embedding + unet.class_embedding(labels)
        if self.coordinates:
            images = torch.cat([images, frame(images) if coordinates is None else coordinates], dim=1)
        return _blocks(unet, images, embedding)


def frame(images: Tensor) -> Tensor:
    """Return the coordinates [B, 2, H, W] of full frames: x, then y, in [-1, 1]."""
    count, _, height, width = images.shape
    x = torch.linspace(-1, 1, width, device=images.device).expand(count, 1, height, width)
    y = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(count, 1, height, width)
    return torch.cat([x, y], dim=1)


def build(
    network: Network,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
) -> UNet:
    """Make a new network for square images. The weights are drawn from torch's global generator.

    Raises
    ------
    UserError
        If the images cannot be halved as often as the network has levels, or the attention heads do not fit.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    levels = len(network.multipliers)
    widths = [network.channels * multiplier for multiplier in network.multipliers]
    _check(network, image_size, widths)
    attends = [image_size >> level in network.attention for level in range(levels)]
    unet = UNet2DModel(
        sample_size=image_size,
        in_channels=channels + (2 if coordinates else 0),
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=network.blocks,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        attention_head_dim=network.head_channels,
        dropout=network.dropout,
        norm_num_groups=math.gcd(32, network.channels // 4),
        freq_shift=1,  # the embedding's frequencies end at 1/10000, as in DDPM and EDM
        num_class_embeds=classes + 1 if classes else None,
    )
    _start_as_identity(unet)
    dropout.replace(unet)
    return UNet(unet, augment_labels=augment_labels, coordinates=coordinates)


def _check(network: Network, image_size: int, widths: list[int]) -> None:
    halvings = len(widths) - 1
    if image_size % 2**halvings:
        raise UserError(
            f"network.multipliers: {len(widths)} levels halve the images {halvings} times, but {image_size} pixels are "
            f"not a multiple of {2**halvings}; use fewer levels or another --size"
        )
    if network.head_channels and any(width % network.head_channels for width in widths):
        raise UserError(f"network.head_channels: {network.head_channels} does not divide {sorted(set(widths))}")


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


def _start_as_identity(unet: "UNet2DModel") -> None:
    """Shrink the last layer of every residual branch, and of the network, to almost nothing.

    Both papers start so (EDM with a factor of 1e-5); diffusers does not.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    last: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Attention):
            last.append(module.to_out[0])  # type: ignore[index]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(1e-5)  # type: ignore[operator]
            layer.bias.zero_()  # type: ignore[operator]
