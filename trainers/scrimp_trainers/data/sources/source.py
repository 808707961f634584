"""What every reader makes of its input: a numbered set of images that are decoded one by one."""

import bisect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Layout:
    """What the user says of how image files are laid out."""

    labels: str | None = None
    """`none`, `folder`, or a file that lists them; None: whatever is found."""
    flat: bool = False
    """Take all images at whatever depth, without classes of folders."""
    frames: Literal["first", "all"] = "first"
    """Pages or frames to take of a file that has several."""


AS_FOUND = Layout()


@dataclass(frozen=True)
class Source:
    """Images in a fixed order, with their classes where there are any.

    `load` and `where` may be called from several threads at once.
    """

    format: str
    """Name of the reader."""
    count: int
    """Images in it."""
    load: Callable[[int], Image.Image]
    """Decode the image with this number, in whatever mode it is stored."""
    where: Callable[[int], str]
    """Say where the image with this number is, for error messages."""
    labels: np.ndarray | None = None
    """int64 [count], indices into `classes`."""
    classes: list[str] | None = None
    """Names of the classes; none without labels."""
    test: np.ndarray | None = None
    """bool [count]: the images that the source itself sets apart for testing, if it does."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Files that are not taken as images: the reason, and how many."""
    notes: list[str] = field(default_factory=list)
    """What else the reader noticed, a line each."""


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
        Where the images are from, and the images: uint8 [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels.
    labels, classes
        Those of all parts together.
    last_is_test
        Whether the last part is the source's own test set.
    """
    images = parts[0][1] if len(parts) == 1 else np.concatenate([images for _, images in parts])
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    starts = list(itertools.accumulate((len(part) for _, part in parts), initial=0))

    def where(i: int) -> str:
        part = bisect.bisect_right(starts, i) - 1
        return f"{parts[part][0]}, image {i - starts[part]}"

    test = np.arange(len(images)) >= starts[-2] if last_is_test else None
    return Source(format, len(images), lambda i: Image.fromarray(images[i]), where, labels, classes, test)
