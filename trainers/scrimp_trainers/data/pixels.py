"""Convert image files to grey or RGB squares of uint8."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps

from scrimp_trainers.common.errors import UserError

ENDINGS = ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif"
SUFFIXES = frozenset(ENDINGS.split(" "))
"""Files with these suffixes are images."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""AVIF and HEIF can be read only if Pillow or a loaded plugin supports them."""
MULTI_FRAME_FORMATS = ("PNG", "WEBP", "GIF", "TIFF", "AVIF")
"""Formats whose files may contain several pages or frames."""
HEIF_MAGIC_BYTES = re.compile(rb".{4}ftyp(avi[fs]|he[iv][cxms]|mif1|msf1)", re.DOTALL)
"""How AVIF and HEIC files begin: with a box that names their brand. HEIC is what HEIF is called with HEVC in it."""
MAGIC_BYTES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6][\s#]|"
    + HEIF_MAGIC_BYTES.pattern,
    re.DOTALL,
)
"""How files of these formats begin."""
GREY_MODES = frozenset({"1", "L", "LA", "La"})
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
BITS_PER_SAMPLE = 258
"""A tag of TIFF files."""
PNM_HEADER = re.compile(rb"P[2356](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)")
"""The group is the largest value of a pixel."""
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, RuntimeError)
"""What Pillow's decoders raise for damaged files; that of AVIF raises RuntimeError."""


@dataclass(frozen=True)
class Conversion:
    """How to convert images to 8-bit grey or RGB where that takes a decision."""

    scale_depth: bool = False
    """Scale 16-bit images to 8 bits: 65,535 becomes 255. Otherwise they are rejected."""
    background: str | None = None
    """Background colour for transparent images, a CSS name or #rrggbb; None rejects them."""


@contextmanager
def pixel_limit(max_pixels: int | None = None) -> Iterator[None]:
    """Reject images with more than `max_pixels` pixels (default: Pillow's limit), in all threads."""
    default = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels or default
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = default


def is_image_data(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an image."""
    return MAGIC_BYTES.match(head) is not None


def count_frames(file: BinaryIO) -> int:
    """Return how many pages or frames an image file has; 1 if it cannot be read.

    Of a PNG only the header is read. Further images in a JPEG are previews and depth maps, so it counts as one frame.
    """
    try:
        with Image.open(file, formats=_readable_multi_frame_formats()) as image:
            return getattr(image, "n_frames", 1)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, *DECODING_ERRORS):
        return 1


@cache
def _readable_multi_frame_formats() -> tuple[str, ...]:
    return tuple(name for name in MULTI_FRAME_FORMATS if name in _readable_formats())


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode_image(file: BinaryIO, where: str, frame: int = 0) -> Image.Image:
    """Decode one frame of an image file, rotated as its EXIF data says.

    The image's `info["depth"]` is the file's number of bits per channel: Pillow keeps only 8 bits of 16-bit colour.

    Raises
    ------
    UserError
        If it is not an image, is cut short, or has too many pixels.
    """
    try:
        with Image.open(file, formats=_readable_formats()) as image:
            depth = stored_depth(image, file)
            if frame:
                image.seek(frame)
            upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{where}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels, a decompression bomb? If not, give --max-pixels"
        ) from None
    except DECODING_ERRORS as error:
        missing = _missing_decoder(file)
        if missing:
            raise UserError(
                f"{where}: is in the format {missing}, which cannot be read here; convert it to PNG or JPEG first"
            ) from None
        raise UserError(f"{where}: not an image, or cut short ({type(error).__name__})") from None
    upright.info["depth"] = depth
    return upright


def _missing_decoder(file: BinaryIO) -> str:
    """Return the name of a file's format if it is one that cannot be decoded here; otherwise nothing."""
    file.seek(0)
    head = file.read(64)
    if not HEIF_MAGIC_BYTES.match(head):
        return ""
    if b"avi" in head:  # its own brand, or one that it is compatible with
        return "" if "AVIF" in _readable_formats() else "AVIF"
    return "" if "HEIF" in _readable_formats() else "HEIC"


def stored_depth(image: Image.Image, file: BinaryIO) -> int:
    """Return the bits per channel of an opened image's file, from its header."""
    position = file.tell()
    try:
        if image.format == "PNG":
            file.seek(len(b"\x89PNG\r\n\x1a\n") + len(b"....IHDR") + 8)
            return file.read(1)[0]
        if image.format == "TIFF":
            return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
        if image.format == "PPM":
            file.seek(0)
            header = PNM_HEADER.match(file.read(1024))
            max_value = int(header[1]) if header else 255
            return 16 if max_value > 255 else 8
        return 8
    finally:
        file.seek(position)


def to_8_bit(image: Image.Image, where: str, conversion: Conversion = Conversion()) -> Image.Image:
    """Convert to 8-bit grey (`L`) or RGB: palettes, CMYK and the like become RGB, an opaque alpha channel is dropped.

    Grey values of 16 bits become round(value / 257). For 16-bit colour in PNG and TIFF files Pillow returns
    value // 256, which differs by at most 1; values of PNM files are first scaled from their own maximum.

    Raises
    ------
    UserError
        If pixels are transparent or have more than 8 bits, and `conversion` does not say what to do.
    """
    image = _scale_to_8_bits(image, where, conversion)
    grey = image.mode in GREY_MODES

    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            if conversion.background is None:
                raise UserError(f"{where}: has transparent pixels; give the --background to put it on, such as white")
            colour = ImageColor.getrgb(conversion.background)[:3]
            grey = grey and len(set(colour)) == 1
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image)
    return image.convert("L" if grey else "RGB")


def exceeds_8_bits(image: Image.Image) -> bool:
    """Whether the file of a decoded image had more than 8 bits per channel."""
    return image.mode in DEEP_MODES or image.info.get("depth", 8) > 8


def _scale_to_8_bits(image: Image.Image, where: str, conversion: Conversion) -> Image.Image:
    """Scale an image of 16 bits per channel to 8, if the conversion says so."""
    if not exceeds_8_bits(image):
        return image

    depth = image.info.get("depth", 16)
    if depth > 16 or image.mode == "F":
        raise UserError(
            f"{where}: has {max(depth, 32)} bits per channel (mode {image.mode}); convert it to 8 bits first"
        )
    if not conversion.scale_depth:
        raise UserError(f"{where}: has 16 bits per channel; --depth16 scale converts them to 8, 65,535 becomes 255")
    if image.mode not in DEEP_MODES:
        return image  # Pillow has already dropped the lower 8 bits

    values = np.asarray(image).astype(np.float64).clip(0, 65_535)
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def crop_and_resize(image: Image.Image, size: int | None, where: str) -> Image.Image:
    """Crop the centre square and resize it with Lanczos, as EDM's dataset tool does.

    Raises
    ------
    UserError
        If no size is given and the image is not square.
    """
    width, height = image.size
    crop = min(width, height)
    if size is None and width != height:
        raise UserError(f"{where}: is {width}x{height}, not square; give a --size to crop and resize to")

    side = size or crop
    if (width, height) == (side, side):
        return image
    left = (width - crop) // 2
    top = (height - crop) // 2
    cropped = image.crop((left, top, left + crop, top + crop))
    return cropped.resize((side, side), Image.Resampling.LANCZOS)
