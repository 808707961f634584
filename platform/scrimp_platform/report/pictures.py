"""Images inside the report."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

WIDEST = 1024
"""Pixels beyond which an image is reduced: a page holds several, and every sweep has one."""


@dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    source: str
    caption: str
    width: int
    height: int


def read(path: Path, caption: str) -> Picture | None:
    """Read an image; none if there is none, or half of one."""
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDEST, WIDEST))
            content = io.BytesIO()
            image.save(content, "PNG", optimize=True)
    except (FileNotFoundError, UnidentifiedImageError, OSError):
        return None
    return Picture(f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}", caption, *image.size)
