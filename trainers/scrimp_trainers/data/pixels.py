"""From any image file to a grey or RGB square of uint8, and from there to PNG bytes and back."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from scrimp_trainers.errors import DamagedData, UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Files with these endings are images; others in a folder are passed over."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
GREY = frozenset({"1", "L", "LA", "La"})
DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError)
"""What Pillow raises for files that are not sound images; each of its decoders has its own habit."""


@contextmanager
def no_bombs() -> Iterator[None]:
    """Turn Pillow's warning of an image with too many pixels into an error, in all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(file: BinaryIO, where: str) -> Image.Image:
    """Decode the first frame of an image file, turned upright as its EXIF data says.

    Raises
    ------
    UserError
        If it is no image, is cut short, or has more pixels than Pillow holds to be safe.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{where}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels, a decompression bomb?") from None
    except BROKEN as error:
        raise UserError(f"{where}: not an image, or cut short ({type(error).__name__})") from None


def plain(image: Image.Image, where: str) -> Image.Image:
    """Convert to 8-bit grey (`L`) or RGB: palettes, CMYK and the like become RGB, opaque alpha is dropped.

    Raises
    ------
    UserError
        If pixels are transparent, so that there is no telling their colour, or have more than 8 bits.
    """
    grey = image.mode in GREY
    if image.mode in DEEP:
        raise UserError(f"{where}: has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{where}: has transparent pixels; put it on a background first")
    return image.convert("L" if grey else "RGB")


def square(image: Image.Image, size: int | None, where: str) -> Image.Image:
    """Crop the centre square and resize it with Lanczos, as EDM's dataset tool does.

    Raises
    ------
    UserError
        If no size is asked for and the image is not square.
    """
    width, height = image.size
    crop = min(width, height)
    if size is None and width != height:
        raise UserError(f"{where}: is {width}x{height}, not square; give a --size to crop and resize to")
    left, top = (width - crop) // 2, (height - crop) // 2
    side = size or crop
    if (width, height) == (side, side):
        return image
    return image.crop((left, top, left + crop, top + crop)).resize((side, side), Image.Resampling.LANCZOS)


def to_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] with fixed settings and no metadata."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_png(data: bytes, size: int, channels: Literal[1, 3], where: str) -> np.ndarray:
    """Decode a PNG of a prepared dataset to uint8 [C, H, W].

    Raises
    ------
    DamagedData
        If it is not a PNG of this form.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (size, size) or image.mode != ("L" if channels == 1 else "RGB"):
                raise DamagedData(f"{where}: is {image.mode} {image.size}, not what the manifest says")
            pixels = np.asarray(image)
    except BROKEN as error:
        raise DamagedData(f"{where}: damaged ({error}); prepare the dataset again") from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
