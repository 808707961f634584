"""The codec of pixels: uint8 to the numbers in [-1, 1] that a network sees, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_trainers.codecs.codec import Decoding, Draw, Shape
from scrimp_trainers.data.modalities.modality import Items

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor, device


@dataclass(frozen=True)
class Pixels:
    """Scales pixels."""

    def shape(self, items: Shape) -> Shape:
        """Return the images' shape."""
        return items

    def item_shape(self, x: Shape) -> Shape:
        """Return the shape of x."""
        return x

    def encode(self, values: "Tensor", draw: Draw) -> "Tensor":
        """Scale uint8 pixels to [-1, 1]."""
        return scaled(values)

    def decode(self, x: "Tensor") -> Items:
        """Round to uint8 pixels."""
        return Items(to_pixels(x))


PIXEL_CODEC = Pixels()


def scaled(pixels: "Tensor") -> "Tensor":
    """Turn uint8 into numbers in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: "Tensor") -> "Tensor":
    """Turn images in [-1, 1] into uint8."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte()


def build(section: Any, items: Shape, device: "device") -> Pixels:  # noqa: ARG001
    """Return the codec, which needs nothing."""
    return PIXEL_CODEC


def shape(section: Any, items: Shape) -> Shape:  # noqa: ARG001
    """Return the shape of x: that of the images."""
    return items


def save(section: Any, items: Shape, folder: Path) -> None:
    """Write nothing: decoding needs nothing."""


def load(section: Any, folder: Path, device: "device") -> Pixels:  # noqa: ARG001
    """Return the codec of an exported model."""
    return PIXEL_CODEC


def decoding(section: Any, items: Shape) -> Decoding:  # noqa: ARG001
    """Return no code: x is the images."""
    return Decoding()
