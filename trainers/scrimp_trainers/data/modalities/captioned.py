"""Square images of 8 bits with a caption each. An item is the image; its caption lies beside it in the shard.

What is trained on images is trained on these as it is: captions are read by `Dataset.captions` where they are wanted.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scrimp_trainers.data.modalities import images
from scrimp_trainers.data.modalities.images import Images

CELL = 160
"""Side of an image on a sheet, in pixels."""
LINES, LETTERS, LINE = 3, 26, 12
"""Lines of a caption on a sheet, letters of a line, and its height in pixels."""


class Captioned(Images):
    """Captioned images of one size."""


def build(*, size: int, channels: int) -> Captioned:
    """Return the modality of captioned images of this size; raises as `images.build` does."""
    plain = images.build(size=size, channels=channels)
    return Captioned(plain.size, plain.channels)


def sheet(pictures: np.ndarray, captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Arrange images, uint8 [n, C, H, W], in rows, each over its caption."""
    rows = -(-len(captions) // columns)
    height = CELL + (LINES + 1) * LINE
    result = Image.new("RGB", (columns * (CELL + LINE), rows * height), "white")
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(10)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        place = column * (CELL + LINE) + LINE // 2, row * height + LINE // 2
        pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        result.paste(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST), place)

        lines = textwrap.wrap(caption, LETTERS, max_lines=LINES, placeholder=" ...")
        draw.multiline_text((place[0], place[1] + CELL + 2), "\n".join(lines), "black", font, spacing=1)
    return result
