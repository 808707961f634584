"""Between uint8 pixels and the numbers in [-1, 1] that a network sees."""

import torch
from torch import Tensor


def scaled(pixels: Tensor) -> Tensor:
    """Turn uint8 into numbers in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> Tensor:
    """Turn images in [-1, 1] into uint8."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
