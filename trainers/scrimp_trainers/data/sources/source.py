"""What every reader makes of its input: a numbered set of images that are decoded one by one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image


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


def arrays(
    format: str,  # noqa: A002
    images: np.ndarray,
    where: Callable[[int], str],
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
    test: np.ndarray | None = None,
) -> Source:
    """Make a source of uint8 images in memory: [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return Source(format, len(images), lambda i: Image.fromarray(images[i]), where, labels, classes, test)
