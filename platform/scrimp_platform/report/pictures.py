"""Images that are embedded in pages."""

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scrimp_trainers.common.errors import DamagedRecord

MAX_SIDE_PX = 1024
"""Larger images are scaled down, because a report embeds several of them."""

MAX_PNG_BYTES = 200_000
"""Larger pictures are stored with a little loss: all of a report take a few megabytes then."""


@dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    source: str
    caption: str
    width: int
    height: int


def read_picture(path: Path, caption: str) -> Picture | None:
    """Read an image; None if the file does not exist.

    Raises
    ------
    DamagedRecord
        If the image is damaged.
    """
    try:
        with Image.open(path) as image:
            return picture_of(image, caption)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError):  # what PIL raises
        raise DamagedRecord(f"{path}: a damaged image") from None


def picture_of(image: Image.Image, caption: str) -> Picture:
    """Return an image, which is scaled down in place if it is too large."""
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    kind = "png"
    if content.tell() > MAX_PNG_BYTES:  # of photos
        content = io.BytesIO()
        image.convert("RGB").save(content, "WEBP", quality=90)
        kind = "webp"
    encoded = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{encoded}", caption, *image.size)
