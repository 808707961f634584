"""The options of `scrimp prepare`."""

from dataclasses import dataclass
from typing import Literal

from scrimp_trainers.common.files import expand_name

NEAR_IMAGES = 8.0
"""The default of `near` for images."""


@dataclass(frozen=True)
class Options:
    """How `ingest.prepare` makes a dataset of a source."""

    size: int | None = None
    """Height and width to crop and resize to; None if all images are squares of one size already."""
    limit: int | None = None
    """Training images to keep; None for all."""
    per_class: int | None = None
    """Training images to keep of each class; None for all."""
    first: int | None = None
    """Images of the source to read, the first ones in its own order, before any is held out; None for all."""
    seed: int = 0
    """Seed of the choice and order of images, and of the classifier."""
    holdout: float | None = None
    """Images to hold out: a number, or a fraction if below 1. None: the source's own test images, or else a tenth
    of all, at most 10,000."""
    reference: str | None = None
    """A source that scores compare with, LD-Diffusion's case 1; None for the training images, its case 2."""
    name: str | None = None
    """Name in reports; by default that of the new folder."""
    classifier: bool | None = None
    """Train a small CNN: on the labels, or without labels by contrast. True: use a classifier even if it is no better
    than chance."""
    near: float | None = None
    """Largest mean absolute difference, of 255, between images that count as near; 0: equal images only. None: 8 for
    images; equal ones only for drawings, whose pictures are mostly background, so that different ones are near."""
    depth16: Literal["scale"] | None = None
    """Scale 16-bit images to 8 bits; None rejects them."""
    background: str | None = None
    """Background colour for transparent images; None rejects them."""
    max_pixels: int | None = None
    """Largest number of pixels of an image before it is resized; by default Pillow's limit."""
    skip_bad: bool = False
    """Leave out images that cannot be used, instead of failing."""
    labels: str | None = None
    """Where classes come from: `none`, `folder`, `strokes` (how many a pen drawing has), or a file with them; None
    detects it."""
    label_column: str | None = None
    """The column of labels in that file, or in a table of images; None: one of the usual names."""
    classes: str | None = None
    """A file that lists the classes to take, one a line; None for all."""
    flat: bool = False
    """Take all images at any folder depth, and do not use folders as classes."""
    frames: Literal["first", "all"] = "first"
    """Which pages or frames to take of a file that has several."""
    captions: Literal["none"] | None = None
    """`none`: leave captions out; None: read those beside the images, if there are any."""
    reader: str | None = None
    """A user's own reader of the source, `my_parts:MyReader`."""
    workers: int | None = None
    """Number of threads; by default one per core."""

    def __post_init__(self) -> None:
        """Expand `~` in what may be a path."""
        for name in ("reference", "labels", "classes"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, expand_name(value))
