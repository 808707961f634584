"""A picture of the first images of a dataset, each over its caption or class, to see that they were read as meant."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 160
"""Side of an image, in pixels."""
LINES, LETTERS, LINE = 3, 26, 12
"""Lines of a caption, letters of a line, and its height in pixels."""


def sheet(pictures: np.ndarray, captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Arrange images, uint8 [n, C, H, W], in rows, each over its caption if there are captions."""
    most_lines = LINES if any(len(caption) > LETTERS for caption in captions) else 1
    text_height = (most_lines + 1) * LINE if captions else LINE
    height = CELL + text_height
    rows = -(-len(pictures) // columns)
    result = Image.new("RGB", (columns * (CELL + LINE), rows * height), "white")
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(10)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        place = column * (CELL + LINE) + LINE // 2, row * height + LINE // 2
        pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        enlarged = len(pixels) <= CELL
        resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        result.paste(Image.fromarray(pixels).resize((CELL, CELL), resampling), place)

        if captions:
            lines = textwrap.wrap(captions[number], LETTERS, max_lines=most_lines, placeholder=" ...")
            draw.multiline_text((place[0], place[1] + CELL + 2), "\n".join(lines), "black", font, spacing=1)
    return result
