"""How many parameters the networks of the papers have, counted from their published structure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

EMBEDDING = "embedding of level and augmentation"
FIRST = "first convolution"
ENCODER = "encoder's residual blocks"
MIDDLE = "middle's residual blocks"
DECODER = "decoder's residual blocks"
RESAMPLING = "blocks that halve and double"
INPUTS = "convolutions of the halved input"
ATTENTION = "attention"
LAST = "last norm and convolution"
"""The parts of a U-Net."""


BASE = 128
WIDE = 4 * BASE
BLOCKS = 4
"""Channels, width of the embedding and residual blocks a level of both networks."""


def song_unet(
    size: int, multipliers: Sequence[int], *, inputs: int, outputs: int, ncsnpp: bool, augment_labels: int
) -> Counter[str]:
    """Count the parameters of each part of EDM's DDPM++, or of its NCSN++ (Karras et al. 2022; Song et al. 2021).

    Both attend after every block of the encoder at 16x16, once in the middle, and after the last block of the decoder
    at 16x16. In NCSN++ the input of every lower level is added, halved, and the embedding begins twice as wide.
    """
    widths = [BASE * multiplier for multiplier in multipliers]
    attends = [size >> level == 16 for level in range(len(widths))]
    narrow = BASE * (2 if ncsnpp else 1)

    parts: Counter[str] = Counter()
    parts[EMBEDDING] = narrow * (WIDE + augment_labels) + WIDE + WIDE * WIDE + WIDE
    parts[FIRST] = _convolution(inputs, BASE, 3)
    skips = _encoder(parts, widths, attends)
    if ncsnpp:
        halved = [inputs, *widths[:-2]]
        parts[INPUTS] = sum(_convolution(one, other, 3) for one, other in zip(halved, widths[:-1], strict=True))
    for attending in (True, False):
        _block(parts, MIDDLE, widths[-1], widths[-1], attends=attending)
    _decoder(parts, widths, attends, skips)
    parts[LAST] = 2 * widths[0] + _convolution(widths[0], outputs, 3)
    return parts


def _encoder(parts: Counter[str], widths: Sequence[int], attends: Sequence[bool]) -> list[int]:
    """Count the encoder; return the channels that it hands to the decoder."""
    channels = BASE
    skips = [BASE]
    for level, width in enumerate(widths):
        if level:
            _block(parts, RESAMPLING, channels, channels)
            skips.append(channels)
        for _ in range(BLOCKS):
            _block(parts, ENCODER, channels, width, attends=attends[level])
            channels = width
            skips.append(channels)
    return skips


def _decoder(parts: Counter[str], widths: Sequence[int], attends: Sequence[bool], skips: list[int]) -> None:
    channels = widths[-1]
    for level in reversed(range(len(widths))):
        if level < len(widths) - 1:
            _block(parts, RESAMPLING, channels, channels)
        for number in range(BLOCKS + 1):
            is_last = number == BLOCKS
            _block(parts, DECODER, channels + skips.pop(), widths[level], attends=is_last and attends[level])
            channels = widths[level]


def latent_unet() -> Counter[str]:
    """Count the parameters of each part of latent diffusion's U-Net for latents of 3x64x64 (Rombach et al. 2022).

    Every level but the first attends after each block; convolutions halve and double the resolution.
    """
    base, blocks = 224, 2
    wide = 4 * base
    widths = [base * multiplier for multiplier in (1, 2, 3, 4)]
    parts: Counter[str] = Counter()
    parts[EMBEDDING] = base * wide + wide + wide * wide + wide
    parts[FIRST] = _convolution(3, base, 3)

    channels = base
    skips = [base]
    for level, width in enumerate(widths):
        if level:
            parts[RESAMPLING] += _convolution(channels, channels, 3)
            skips.append(channels)
        for _ in range(blocks):
            _block(parts, ENCODER, channels, width, wide, attends=level > 0)
            channels = width
            skips.append(channels)

    for attending in (True, False):
        _block(parts, MIDDLE, channels, channels, wide, attends=attending)

    for level in reversed(range(len(widths))):
        for _ in range(blocks + 1):
            _block(parts, DECODER, channels + skips.pop(), widths[level], wide, attends=level > 0)
            channels = widths[level]
        if level:
            parts[RESAMPLING] += _convolution(channels, channels, 3)
    parts[LAST] = 2 * base + _convolution(base, 3, 3)
    return parts


def _block(
    parts: Counter[str], part: str, channels: int, width: int, embedding: int = WIDE, *, attends: bool = False
) -> None:
    """Count a residual block, which has a convolution on the way around where it changes width or resolution."""
    parts[part] += 2 * channels + _convolution(channels, width, 3)
    parts[part] += embedding * width + width
    parts[part] += 2 * width + _convolution(width, width, 3)
    if channels != width or part == RESAMPLING:
        parts[part] += _convolution(channels, width, 1)
    if attends:
        parts[ATTENTION] += 2 * width + 4 * _convolution(width, width, 1)


def mdt(
    *,
    version: int,
    patch_size: int,
    channels: int,
    layers: int,
    decoder_layers: int,
    heads: int,
    side: int,
    inputs: int,
    outputs: int,
    classes: int,
) -> int:
    """Count the parameters of MDT's released networks: positions are learned, and a side-interpolater is one block."""
    places = (side // patch_size) ** 2
    offsets = ((2 * side // patch_size - 1) ** 2 + 3) * heads
    block = _linear(channels, 3 * channels) + _linear(channels, channels) + offsets
    block += _linear(channels, 4 * channels) + _linear(4 * channels, channels) + _linear(channels, 6 * channels)
    skips = (layers - decoder_layers) // 2 + decoder_layers if version == 2 else 0

    embeddings = _convolution(inputs, channels, patch_size) + _linear(256, channels) + _linear(channels, channels)
    embeddings += (classes + 1) * channels + 2 * places * channels + channels
    last = _linear(channels, 2 * channels) + _linear(channels, patch_size**2 * outputs)
    return (layers + 1) * block + skips * _linear(2 * channels, channels) + embeddings + last


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _convolution(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2 + outputs


STABLE_DIFFUSION_2: dict[str, Any] = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
"""The config of Stable Diffusion 2.1's U-Net, a `UNet2DConditionModel`, where it is not diffusers' default."""
