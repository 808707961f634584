"""A picture of a coreset: for each class, the most clearly kept images beside the most clearly dropped ones."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.precompute.coreset import ScoredImages
from scrimp_trainers.recipe.techniques import Coreset

MAX_CLASSES = 40
"""Rows of the picture."""

TEXT_COLOUR = "#1f2933"
MUTED_COLOUR = "#7b8794"
LINE_COLOUR = "#e4e7eb"
KEPT_COLOUR = "#2f855a"
DROPPED_COLOUR = "#b7472a"

# In pixels.
LABEL_WIDTH = 150
HEADING_HEIGHT = 118
MARGIN = 24
IMAGE_GAP = 5
BLOCK_GAP = 44
"""Between the kept and the dropped images."""


def draw_picture(dataset: Dataset, settings: Coreset, scored: ScoredImages, columns: int = 8) -> Image.Image:
    """Draw a row per class: on the left the kept images with the best scores, on the right the dropped with the worst.

    Parameters
    ----------
    columns
        Largest number of images of a class on each side.
    """
    images, _, _ = dataset.images("train")
    classes = dict(list(scored.classes.items())[:MAX_CLASSES])

    # Layout.
    side = _displayed_side(images.shape[-1])
    row_height = side + 2 * IMAGE_GAP
    block_width = columns * (side + IMAGE_GAP) - IMAGE_GAP
    kept_left = MARGIN + LABEL_WIDTH
    dropped_left = kept_left + block_width + BLOCK_GAP
    right_edge = dropped_left + block_width
    sheet_size = (right_edge + MARGIN, HEADING_HEIGHT + len(classes) * row_height + MARGIN)
    sheet = Image.new("RGB", sheet_size, "white")
    pen = ImageDraw.Draw(sheet)

    # Headings.
    _draw_heading(pen, dataset, settings, scored, len(classes))
    best, worst = ("highest", "lowest") if settings.side == "high" else ("lowest", "highest")
    blocks = [
        (kept_left, KEPT_COLOUR, f"kept: {best} score first"),
        (dropped_left, DROPPED_COLOUR, f"dropped: {worst} score last"),
    ]
    for left, colour, text in blocks:
        pen.text((left, HEADING_HEIGHT - 34), text, colour, _font(15))
        pen.rectangle((left, HEADING_HEIGHT - 11, left + block_width - 1, HEADING_HEIGHT - 8), colour)

    # A row per class.
    for row, (name, members) in enumerate(classes.items()):
        top = HEADING_HEIGHT + row * row_height
        if row:
            pen.line((MARGIN, top - IMAGE_GAP, right_edge - 1, top - IMAGE_GAP), LINE_COLOUR)
        kept_count = f"{scored.kept[members].sum():,} of {len(members):,} kept"
        _draw_label(pen, name, kept_count, top + side // 2)

        kept, dropped = _extremes(settings, scored, members, columns)
        for column, position in enumerate(kept):
            left = kept_left + column * (side + IMAGE_GAP)
            sheet.paste(_tile(images[position], side), (left, top))
        for column, position in enumerate(dropped, columns - len(dropped)):  # aligned to the right edge
            left = dropped_left + column * (side + IMAGE_GAP)
            sheet.paste(_tile(images[position], side), (left, top))
    return sheet


def _extremes(
    settings: Coreset, scored: ScoredImages, members: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the best kept and the worst dropped images of a class, each from best to worst."""
    sign = -1 if settings.side == "high" else 1
    ranked = members[np.argsort(sign * scored.scores[members], kind="stable")]
    is_kept = scored.kept[ranked]
    return ranked[is_kept][:count], ranked[~is_kept][-count:]


def _draw_heading(
    pen: ImageDraw.ImageDraw, dataset: Dataset, settings: Coreset, scored: ScoredImages, shown: int
) -> None:
    title = f"{dataset.manifest.name}: {scored.kept.sum():,} of {len(scored.kept):,} images kept"
    pen.text((MARGIN, 18), title, TEXT_COLOUR, _font(22))

    among = "each class" if settings.by_class else "the whole"
    criterion = f"by {settings.score} score in {settings.features} features"
    if settings.score == "random":
        criterion = "by chance"
    subtitle = f"{settings.keep * 100:.3g}% of {among}, {criterion}"
    if shown < len(scored.classes):
        subtitle += f"; {shown} of {len(scored.classes):,} classes shown"
    pen.text((MARGIN, 50), subtitle, MUTED_COLOUR, _font(14))


def _draw_label(pen: ImageDraw.ImageDraw, name: str, count: str, middle: int) -> None:
    font = _font(16)
    while pen.textlength(name, font) > LABEL_WIDTH - 12:
        name = name.removesuffix("…")[:-1] + "…"
    pen.text((MARGIN, middle - 1), name, TEXT_COLOUR, font, anchor="ls")
    pen.text((MARGIN, middle + 5), count, MUTED_COLOUR, _font(12), anchor="lt")


def _displayed_side(size: int) -> int:
    """Return the side at which images are shown: small ones magnified by a whole factor, large ones reduced."""
    if size < 48:
        return size * round(48 / size)
    return min(size, 96)


def _tile(image: np.ndarray, side: int) -> Image.Image:
    """Resize a uint8 image [C, H, W] for display."""
    array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(array).convert("RGB")
    magnified = side > len(image[0])
    resampling = Image.Resampling.NEAREST if magnified else Image.Resampling.LANCZOS
    return picture.resize((side, side), resampling)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
