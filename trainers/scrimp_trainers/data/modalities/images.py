"""Square images of 8 bits, grey or RGB, kept as PNGs. An item is uint8 [C, H, W]."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from scrimp_trainers.common.errors import DamagedData, UserError
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.data.pixels import DECODING_ERRORS

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor


@dataclass(frozen=True)
class ImageModality:
    """Images of one size."""

    size: int
    """Height and width in pixels."""
    channels: int
    """1 for grey, 3 for RGB."""
    suffix: str = "png"

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W]."""
        return self.channels, self.size, self.size

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """They are pictures."""
        return self.shape

    @property
    def item_bytes(self) -> int:
        """A byte for each channel of each pixel."""
        return self.channels * self.size**2

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """Decode a PNG.

        Raises
        ------
        DamagedData
            If it is not a PNG of this size and number of channels.
        """
        mode = "L" if self.channels == 1 else "RGB"
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.size != (self.size, self.size) or image.mode != mode:
                    raise DamagedData(f"{where}: is {image.mode} {image.size}, not what the manifest says")
                pixels = np.asarray(image)
        except DECODING_ERRORS as error:
            raise DamagedData(f"{where}: damaged ({error}); prepare the dataset again") from None
        return channels_first(pixels)

    def encode(self, item: np.ndarray) -> bytes:
        """Encode as PNG, with fixed settings and no metadata."""
        pixels = item[0] if self.channels == 1 else item.transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def collate(self, items: Sequence[np.ndarray]) -> Items:
        """Stack images to uint8 [B, C, H, W]."""
        import torch

        return Items(torch.from_numpy(np.stack(items)))

    def mirror(self, values: "Tensor", flipped: "Tensor") -> "Tensor":
        """Mirror the marked images left to right."""
        from scrimp_trainers.data.batch import mirror

        return mirror(values, flipped)

    def render(self, items: Items) -> "Tensor":
        """Return the pixels: images are pictures already."""
        return items.values


def build(*, size: int, channels: int) -> ImageModality:
    """Return the modality of images of this size.

    Raises
    ------
    UserError
        If they are neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}; prepare the dataset again")
    return ImageModality(size, channels)


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """Return pixels [H, W] or [H, W, 3] as [C, H, W]."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
