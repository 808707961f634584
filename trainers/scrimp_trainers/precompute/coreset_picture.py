"""A picture of a coreset: of each class the most clearly kept images beside the most clearly dropped ones."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.precompute.coreset import ScoredImages
from scrimp_trainers.recipe.techniques import Coreset

MOST_CLASSES = 40
"""Rows at most."""
INK, FAINT, LINE = "#1f2933", "#7b8794", "#e4e7eb"
KEPT, DROPPED = "#2f855a", "#b7472a"
LABEL, TOP, MARGIN, GAP, DIVIDE = 150, 118, 24, 5, 44
"""Pixels: the classes' names, the heading, around everything, between two images, between kept and dropped."""


def draw_picture(dataset: Dataset, settings: Coreset, scored: ScoredImages, columns: int = 8) -> Image.Image:
    """Draw a row a class: the kept images furthest on the kept side left, the dropped ones furthest from it right.

    Parameters
    ----------
    columns
        Images of a class on each side, if it has as many.
    """
    images = dataset.images("train")[0]
    classes = dict(list(scored.classes.items())[:MOST_CLASSES])
    side = _side(dataset.manifest.size)
    block = columns * (side + GAP) - GAP
    right = MARGIN + LABEL + block + DIVIDE
    sheet = Image.new("RGB", (right + block + MARGIN, TOP + len(classes) * (side + 2 * GAP) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    _heading(pen, dataset, settings, scored, len(classes))
    first, last = ("highest", "lowest") if settings.side == "high" else ("lowest", "highest")
    blocks = [(MARGIN + LABEL, KEPT, f"kept: {first} score first"), (right, DROPPED, f"dropped: {last} score last")]
    for left, colour, words in blocks:
        pen.text((left, TOP - 34), words, colour, _font(15))
        pen.rectangle((left, TOP - 11, left + block - 1, TOP - 8), colour)
    for row, (name, members) in enumerate(classes.items()):
        top = TOP + row * (side + 2 * GAP)
        if row:
            pen.line((MARGIN, top - GAP, right + block - 1, top - GAP), LINE)
        _label(pen, name, f"{scored.kept[members].sum():,} of {len(members):,} kept", top + side // 2)
        kept, dropped = _extremes(settings, scored, members, columns)
        shift = columns - len(dropped)  # the last one is always at the edge
        places = [(MARGIN + LABEL, place, one) for place, one in enumerate(kept)]
        places += [(right, place + shift, one) for place, one in enumerate(dropped)]
        for left, place, one in places:
            sheet.paste(_tile(images[one], side), (left + place * (side + GAP), top))
    return sheet


def _extremes(settings: Coreset, scored: ScoredImages, members: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a class's images that were kept or dropped most clearly, each from best to worst."""
    sign = -1 if settings.side == "high" else 1
    ranked = members[np.argsort(sign * scored.scores[members], kind="stable")]
    return ranked[scored.kept[ranked]][:most], ranked[~scored.kept[ranked]][-most:]


def _heading(pen: ImageDraw.ImageDraw, dataset: Dataset, settings: Coreset, scored: ScoredImages, shown: int) -> None:
    space = "by chance" if settings.score == "random" else f"by {settings.score} score in {settings.features} features"
    among = "each class" if settings.per_class else "the whole"
    there = len(scored.classes)
    part = f"; {shown} of {there:,} classes shown" if shown < there else ""
    title = f"{dataset.manifest.name}: {scored.kept.sum():,} of {len(scored.kept):,} images kept"
    pen.text((MARGIN, 18), title, INK, _font(22))
    pen.text((MARGIN, 50), f"{settings.keep * 100:.3g}% of {among}, {space}{part}", FAINT, _font(14))


def _label(pen: ImageDraw.ImageDraw, name: str, count: str, middle: int) -> None:
    font = _font(16)
    while pen.textlength(name, font) > LABEL - 12:
        name = name.removesuffix("…")[:-1] + "…"
    pen.text((MARGIN, middle - 1), name, INK, font, anchor="ls")
    pen.text((MARGIN, middle + 5), count, FAINT, _font(12), anchor="lt")


def _side(size: int) -> int:
    """Screen pixels of an image: a whole multiple of small ones, large ones made smaller."""
    return size * round(48 / size) if size < 48 else min(size, 96)


def _tile(image: np.ndarray, side: int) -> Image.Image:
    pixels = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")
    how = Image.Resampling.NEAREST if side > len(image[0]) else Image.Resampling.LANCZOS
    return pixels.resize((side, side), how)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
