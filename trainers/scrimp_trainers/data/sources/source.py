"""The result of every reader: numbered images, or other items, that are decoded one by one."""

import bisect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from scrimp_trainers.common.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The user's options for the layout of image files."""

    labels: str | None = None
    """`none`, `folder`, `strokes` (how many a pen drawing has), or a file that lists them; None: detect it."""
    label_column: str | None = None
    """The column of labels in that file, or in a table of images; None: one of the usual names."""
    classes: str | None = None
    """A file that lists the classes to take, one a line; None for all."""
    flat: bool = False
    """Take all images at any folder depth, and do not use folders as classes."""
    frames: Literal["first", "all"] = "first"
    """Which pages or frames to take of a file that has several."""
    captions: Literal["none"] | None = None
    """`none`: no captions; None: detect them."""


AS_FOUND = Layout()


@dataclass(frozen=True)
class Source:
    """Images, or drawings, in a fixed order, with their classes if they have any.

    `load` and `where` may be called from several threads at once.
    """

    format: str
    """Name of the reader."""
    count: int
    """Number of images."""
    load: Callable[[int], Any]
    """Decode the image with this number, in the mode in which it is stored; or return a drawing's strokes, each [n, 2].
    """
    where: Callable[[int], str]
    """Return the location of the image with this number, for error messages."""
    labels: np.ndarray | None = None
    """int64 [count], indices into `classes`."""
    classes: list[str] | None = None
    """Names of the classes; None without labels."""
    captions: list[str | None] | None = None
    """The caption of each image, None for one without; None if they have no captions."""
    test: np.ndarray | None = None
    """bool [count]: the source's own test images, if it has any."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many files were not read as images, by reason."""
    notes: list[str] = field(default_factory=list)
    """Other remarks of the reader, one line each."""
    modality: Literal["images", "strokes"] = "images"
    """What `load` gives."""


def first_images(source: Source, count: int) -> Source:
    """Return the first images of a source, in its own order.

    Raises
    ------
    UserError
        If there are fewer, or the source has test images of its own, of which none may be among the first.
    """
    if source.test is not None:
        raise UserError("--first: the source has test images of its own; choose of its training images with --limit")
    if count > source.count:
        raise UserError(f"--first: {count:,} images requested, but there are {source.count:,}")
    labels = None if source.labels is None else source.labels[:count]
    captions = None if source.captions is None else source.captions[:count]
    return replace(source, count=count, labels=labels, captions=captions)


def source_from_arrays(
    format: str,  # noqa: A002
    parts: list[tuple[str, np.ndarray]],
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
    last_is_test: bool = False,
) -> Source:
    """Make a source of images in memory.

    Parameters
    ----------
    parts
        The name of each part, for error messages, and its images: uint8 [N, H, W] or [N, H, W, C] with 1, 3 or 4
        channels.
    labels, classes
        Those of all parts together.
    last_is_test
        Whether the last part is the source's own test set.
    """
    part_images = [images for _, images in parts]
    images = part_images[0] if len(part_images) == 1 else np.concatenate(part_images)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    starts = list(itertools.accumulate(map(len, part_images), initial=0))

    def where(i: int) -> str:
        part = bisect.bisect_right(starts, i) - 1
        name, _ = parts[part]
        return f"{name}, image {i - starts[part]}"

    test = np.arange(len(images)) >= starts[-2] if last_is_test else None
    return Source(
        format,
        count=len(images),
        load=lambda i: Image.fromarray(images[i]),
        where=where,
        labels=labels,
        classes=classes,
        test=test,
    )
