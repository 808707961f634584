"""From any image file to a grey or RGB square of uint8, and from there to PNG bytes and back."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps

from scrimp_trainers.common.errors import DamagedData, UserError

ENDINGS = ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif"
SUFFIXES = frozenset(ENDINGS.split(" "))
"""Files with these endings are images."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""The last two where Pillow, or a plugin that is loaded, reads them."""
SEVERAL = ("PNG", "WEBP", "GIF", "TIFF")
"""Formats whose files may hold several pages or frames."""
BEGINNINGS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6][\s#]|.{4}ftyp(avif|heic|heix|mif1)",
    re.DOTALL,
)
"""How the files of these formats begin."""
GREY = frozenset({"1", "L", "LA", "La"})
DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
BITS_PER_SAMPLE = 258
"""TIFF's tag."""
PNM_HEADER = re.compile(rb"P[2356](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)")
"""Its group is the largest value."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError)
"""What Pillow raises for files that are not sound images; each of its decoders has its own habit."""


@dataclass(frozen=True)
class Conversion:
    """What to do with images that cannot be had as 8-bit grey or RGB without a decision."""

    scale_depth: bool = False
    """Scale 16-bit images to 8 bits: 65,535 becomes 255. Otherwise they are refused."""
    background: str | None = None
    """Colour on which transparent images are put, a CSS name or #rrggbb; otherwise they are refused."""


@contextmanager
def pixel_limit(max_pixels: int | None = None) -> Iterator[None]:
    """Refuse images with more than `max_pixels` pixels (default: Pillow's limit), in all threads."""
    usual = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels or usual
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def is_image_data(head: bytes) -> bool:
    """Whether a file that begins so is an image."""
    return BEGINNINGS.match(head) is not None


def count_frames(file: BinaryIO) -> int:
    """Return how many pages or frames an image file has; 1 where it cannot be read.

    Only the head of a PNG is read. The further images in a JPEG are previews and depth maps, so it has one.
    """
    try:
        with Image.open(file, formats=_several()) as image:
            return getattr(image, "n_frames", 1)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, *BROKEN):
        return 1


@cache
def _several() -> tuple[str, ...]:
    return tuple(name for name in SEVERAL if name in _formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode_image(file: BinaryIO, where: str, frame: int = 0) -> Image.Image:
    """Decode one frame of an image file, turned upright as its EXIF data says.

    `info["depth"]` of the image is the bits a channel that the file has: of 16-bit colour Pillow keeps 8.

    Raises
    ------
    UserError
        If it is no image, is cut short, or has too many pixels.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            depth = stored_depth(image, file)
            if frame:
                image.seek(frame)
            upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{where}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels, a decompression bomb? If not, give --max-pixels"
        ) from None
    except BROKEN as error:
        raise UserError(f"{where}: not an image, or cut short ({type(error).__name__})") from None
    upright.info["depth"] = depth
    return upright


def stored_depth(image: Image.Image, file: BinaryIO) -> int:
    """Return the bits a channel of an opened image's file, read from its header."""
    place = file.tell()
    try:
        if image.format == "PNG":
            file.seek(len(b"\x89PNG\r\n\x1a\n") + len(b"....IHDR") + 8)
            return file.read(1)[0]
        if image.format == "TIFF":
            return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
        if image.format == "PPM":
            file.seek(0)
            header = PNM_HEADER.match(file.read(1024))
            return 16 if header and int(header[1]) > 255 else 8
        return 8
    finally:
        file.seek(place)


def to_8_bit(image: Image.Image, where: str, reading: Conversion = Conversion()) -> Image.Image:
    """Convert to 8-bit grey (`L`) or RGB: palettes, CMYK and the like become RGB, opaque alpha is dropped.

    Grey values of 16 bits become round(value / 257). Pillow gives 16-bit colour of PNG and TIFF files as value // 256,
    which differs by 1 at most; values of PNM files are first scaled from their own maximum.

    Raises
    ------
    UserError
        If pixels are transparent or have more than 8 bits, and `reading` does not say what to do.
    """
    image = _shallow(image, where, reading)
    grey = image.mode in GREY

    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            if reading.background is None:
                raise UserError(f"{where}: has transparent pixels; give the --background to put it on, such as white")
            colour = ImageColor.getrgb(reading.background)[:3]
            grey = grey and len(set(colour)) == 1
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image)
    return image.convert("L" if grey else "RGB")


def exceeds_8_bits(image: Image.Image) -> bool:
    """Whether the file of a decoded image had more than 8 bits a channel."""
    return image.mode in DEEP or image.info.get("depth", 8) > 8


def _shallow(image: Image.Image, where: str, reading: Conversion) -> Image.Image:
    """Scale an image of 16 bits a channel to 8, if that is asked for."""
    if not exceeds_8_bits(image):
        return image
    depth = image.info.get("depth", 16)
    if depth > 16 or image.mode == "F":
        raise UserError(f"{where}: has {max(depth, 32)} bits a channel (mode {image.mode}); convert it to 8 bits first")
    if not reading.scale_depth:
        raise UserError(f"{where}: has 16 bits a channel; --depth16 scale makes 8 of them, 65,535 becomes 255")
    if image.mode not in DEEP:
        return image  # Pillow has kept the upper 8 bits

    values = np.asarray(image).astype(np.float64).clip(0, 65_535)
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def crop_and_resize(image: Image.Image, size: int | None, where: str) -> Image.Image:
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
