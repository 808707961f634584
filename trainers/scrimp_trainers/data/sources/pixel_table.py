"""Tables of pixels, as on Kaggle: a row an image, with a column a pixel, or one column `pixels` of all of them.

Pixels are whole numbers from 0 to 255, row by row, of square grey images. MNIST, Fashion-MNIST and FER2013 come so.
"""

import csv
import io
import math
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources import folders
from scrimp_trainers.data.sources.labels import LABEL_COLUMNS
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import DAMAGED, Tree

HEADER_BYTES = 2**17
"""More than a header of 96x96 columns takes."""
PIXEL = re.compile(r"(pixel|px|p)?[-_]?\d+(x\d+)?")
"""Names of columns that are a pixel each: pixel0, 1x1, px_17."""
ALL_PIXELS = "pixels"
SPLIT_COLUMN = "usage"
CLASS_COLUMNS = (*LABEL_COLUMNS, "emotion")
LEAST_PIXELS = 64


@dataclass(frozen=True)
class _Header:
    """What the columns of a table hold."""

    pixels: list[int]
    """Numbers of the columns of one pixel each, or of the one column of all."""
    packed: bool
    """Whether it is one column of all pixels."""
    label: int | None
    split: int | None


@dataclass(frozen=True)
class _Rows:
    """The images of a file."""

    images: np.ndarray
    """uint8 [N, H, W]."""
    labels: list[str] | None
    test: np.ndarray
    """bool [N]."""


def recognises(tree: Tree) -> bool:
    """Whether there are tables of pixels."""
    return any(_header(tree, name) for name in tree.names)


def read(tree: Tree) -> Source:
    """Read the tables into memory.

    Files named like a test split, and rows whose `Usage` is one, are the source's own test images. If they have no
    labels, and the other images have some, they are left out.

    Raises
    ------
    UserError
        If a table is damaged, its rows are no squares, or tables do not fit together.
    """
    tables: list[tuple[str, _Rows]] = []
    skipped: dict[str, int] = {}
    for name in tree.names:
        header = _header(tree, name)
        if header:
            tables.append((tree.where(name), _read_rows(tree, name, header)))
    tables.sort(key=lambda table: bool(table[1].test.all()))  # training images first

    if any(rows.labels for _, rows in tables):
        for where, rows in [table for table in tables if not table[1].labels]:
            if not rows.test.all():
                raise UserError(f"{where}: has no column of labels, but others have one; prepare one at a time")
            skipped[f"in {PurePosixPath(where).name}, which has no labels"] = len(rows.images)
        tables = [table for table in tables if table[1].labels]
    if len({rows.images.shape[1:] for _, rows in tables}) > 1:
        raise UserError(f"{tree.path}: tables of different sizes of images; prepare one at a time")

    names = [label for _, rows in tables for label in rows.labels or ()]
    classes = sorted(set(names), key=_by_value)
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.array([number_of[name] for name in names], dtype=np.int64) if names else None
    test = np.concatenate([rows.test for _, rows in tables])
    source = source_from_arrays(
        "pixel_table", [(where, rows.images) for where, rows in tables], labels, classes or None
    )
    return replace(source, test=test if test.any() and not test.all() else None, skipped=skipped)


def _header(tree: Tree, name: str) -> _Header | None:
    """Return what the columns of a file hold; None if it is no table of pixels."""
    if not name.lower().endswith(".csv"):
        return None
    line = tree.head(name, HEADER_BYTES).decode("utf-8-sig", errors="replace").partition("\n")[0]
    columns = [column.strip().strip('"').lower() for column in line.split(",")]
    label = next((columns.index(column) for column in CLASS_COLUMNS if column in columns), None)
    split = columns.index(SPLIT_COLUMN) if SPLIT_COLUMN in columns else None
    if ALL_PIXELS in columns:
        return _Header([columns.index(ALL_PIXELS)], packed=True, label=label, split=split)
    pixels = [number for number, column in enumerate(columns) if PIXEL.fullmatch(column)]
    if len(pixels) < LEAST_PIXELS:
        return None
    return _Header(pixels, packed=False, label=label, split=split)


def _read_rows(tree: Tree, name: str, header: _Header) -> _Rows:
    where = tree.where(name)
    pixels: list[np.ndarray] = []
    labels: list[str] = []
    splits: list[str] = []
    try:
        with tree.open(name) as file:
            rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            next(rows)
            for row in rows:
                texts = row[header.pixels[0]].split() if header.packed else [row[number] for number in header.pixels]
                pixels.append(_whole_numbers(texts))
                labels.append("" if header.label is None else row[header.label].strip())
                splits.append("" if header.split is None else row[header.split].lower())
    except (*DAMAGED, ValueError, IndexError, OverflowError, csv.Error):
        raise UserError(f"{where}: line {len(pixels) + 2}: is not a row of whole numbers from 0 to 255") from None

    if not pixels:
        raise UserError(f"{where}: no images in it")
    count = len(pixels[0])
    side = math.isqrt(count)
    if side**2 != count:
        raise UserError(f"{where}: line 2: {count} pixels do not fill a square")
    for number, row in enumerate(pixels):
        if len(row) != count:
            raise UserError(f"{where}: line {number + 2}: has {len(row)} pixels, and line 2 has {count}")
    if header.label is not None and not all(labels):
        raise UserError(f"{where}: line {labels.index('') + 2}: has no label")

    images = np.stack(pixels).reshape(-1, side, side)
    words = re.split(r"[-_. ]", PurePosixPath(name).stem)
    of_test_file = any(folders.is_held_out(word) for word in words)
    test = np.array([of_test_file or "test" in split or "val" in split for split in splits])
    return _Rows(images, labels if header.label is not None else None, test)


def _whole_numbers(texts: list[str]) -> np.ndarray:
    """Return uint8 of texts; raises ValueError for anything but whole numbers from 0 to 255."""
    values = np.array(texts, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() > 255):
        raise ValueError
    return values.astype(np.uint8)


def _by_value(name: str) -> tuple[bool, int, str]:
    """Sort whole numbers by value, and before all other names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)
