"""What a user may say to `scrimp prepare`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What `prepare` makes of a source."""

    size: int | None = None
    """Height and width to crop and resize to; none where all images are squares of one size already."""
    limit: int | None = None
    """Training images to keep; none for all."""
    per_class: int | None = None
    """Training images to keep of each class; none for all."""
    seed: int = 0
    """Seed of the choice and order of images, and of the classifier."""
    holdout: float | None = None
    """Images to hold out: a number, or a share if below 1. None: the source's own test images, or else a tenth
    of all, 10,000 at most."""
    reference: str | None = None
    """A source that scores compare with, LD-Diffusion's case 1; none for the training images, its case 2."""
    name: str | None = None
    """Name in reports; by default that of the folder made."""
    classifier: bool | None = None
    """Train a classifier on the labels if there are any. True: use it even if it is no better than chance."""
    near: float = 8.0
    """Largest mean absolute difference, of 255, of images that count as near; 0: equal images alone."""
    depth16: Literal["scale"] | None = None
    """Scale 16-bit images to 8 bits; none refuses them."""
    background: str | None = None
    """Colour on which transparent images are put; none refuses them."""
    max_pixels: int | None = None
    """Pixels that an image may have before it is resized; by default what Pillow holds to be safe."""
    skip_bad: bool = False
    """Prepare the rest where some images cannot be used."""
    labels: str | None = None
    """Where classes come from: `none`, `folder`, or a file that lists them; None: whatever is found."""
    flat: bool = False
    """Take all images at whatever depth, without classes of folders."""
    frames: Literal["first", "all"] = "first"
    """Pages or frames to take of a file that has several."""
    reader: str | None = None
    """A user's own reader of the source, `my_parts:MyReader`."""
    workers: int | None = None
    """Threads; by default one a core."""
