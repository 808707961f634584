"""Images inside the report."""

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scrimp_trainers.common.errors import DamagedRecord

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
    """Read an image; none if there is none.

    Raises
    ------
    DamagedRecord
        If it is damaged.
    """
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDEST, WIDEST))
            content = io.BytesIO()
            image.save(content, "PNG", optimize=True)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError):  # as PIL has it
        raise DamagedRecord(f"{path}: a damaged image") from None
    return Picture(f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}", caption, *image.size)
