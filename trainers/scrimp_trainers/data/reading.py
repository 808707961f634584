"""From the images of sources to pixels of one size, in files; what cannot be used is collected and named."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import explain_disk_full
from scrimp_trainers.data.manifest import SplitName
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.pixels import Conversion, crop_and_resize, exceeds_8_bits, to_8_bit
from scrimp_trainers.data.sources.source import Source

Progress = Callable[[int, int], None]
T = TypeVar("T")

BLOCK = 64
"""Images a thread takes at once."""
TAR_BYTES = 2048
"""What an image costs in a shard besides its pixels: two tar headers and padding."""
MOST_NAMED = 20
"""Images that cannot be used, of which a message names at most so many."""


@dataclass(frozen=True)
class UsableImages:
    """The usable images of a source, at their final size."""

    source: Source
    numbers: np.ndarray
    """int64 [n]: their numbers in the source."""
    pixels: np.ndarray
    """uint8 [n, H, W] or [n, H, W, 3], in a scratch file."""
    labels: np.ndarray | None
    """int64 [n]."""
    bad: list["UnusableImage"]
    """The others."""
    sizes: Counter[tuple[int, int]]
    """Width and height of the images as they were."""
    brightest: int | None
    """Largest value after 16 bits were scaled to 8; none if no image had 16."""


@dataclass(frozen=True)
class _Picture:
    """One image at its final size."""

    pixels: np.ndarray
    size: tuple[int, int]
    """Width and height as it was."""
    brightest: int | None
    """Largest value, if the image had 16 bits."""


@dataclass(frozen=True)
class UnusableImage:
    """An image that cannot be used."""

    where: str
    reason: str


class _ColourError(Exception):
    """A colour image where all were grey so far."""


def read_images(
    sources: dict[SplitName, Source], scratch: Path, options: Options, progress: Progress | None
) -> dict[SplitName, UsableImages]:
    """Read all images at their final size.

    Raises
    ------
    UserError
        If images cannot be used, naming all of them, and `skip_bad` is not set.
    """
    size = options.size or _side(sources["train"], options)
    try:
        parts = _pass(sources, scratch, size, 1, options, progress)
    except _ColourError:  # one image of many decides for all, so what was read in grey is read again
        parts = _pass(sources, scratch, size, 3, options, progress)

    bad = [image for part in parts.values() for image in part.bad]
    if bad and not options.skip_bad:
        raise UserError(_listed(bad, sum(source.count for source in sources.values())))
    for name, part in parts.items():
        if not len(part.numbers):
            raise UserError(f"{name}: {_listed(part.bad, part.source.count, hint='no image can be used')}")
    return parts


def _pass(
    sources: dict[SplitName, Source],
    scratch: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    progress: Progress | None,
) -> dict[SplitName, UsableImages]:
    """Read all images in grey or in colour."""
    total, done = sum(source.count for source in sources.values()), 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    # Twice: as pixels in the scratch files, and as PNGs.
    with explain_disk_full(scratch.parent.parent, 2 * total * (size * size * channels + TAR_BYTES)):
        return {
            name: _images(source, scratch / f"{name}.pixels", size, channels, options, count)
            for name, source in sources.items()
        }


def _images(
    source: Source,
    path: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    count: Callable[[], None],
) -> UsableImages:
    """Write the pixels of a source's usable images to a file, and open it."""
    reading = Conversion(options.depth16 == "scale", options.background)
    numbers: list[int] = []
    bad: list[UnusableImage] = []
    sizes: Counter[tuple[int, int]] = Counter()
    brightest: int | None = None

    def picture(i: int) -> _Picture | UnusableImage:
        return _picture(source, i, size, channels, options.size is not None, reading)

    with path.open("wb") as file:  # not mapped into memory: there a full disk kills the process
        for i, image in enumerate(map_in_order(picture, range(source.count), options.workers)):
            if isinstance(image, UnusableImage):
                bad.append(image)
            else:
                numbers.append(i)
                sizes[image.size] += 1
                if image.brightest is not None:
                    brightest = max(brightest or 0, image.brightest)
                file.write(image.pixels.tobytes())
            count()

    kept = np.array(numbers, dtype=np.int64)
    shape = (len(kept), size, size) if channels == 1 else (len(kept), size, size, channels)
    pixels = np.memmap(path, np.uint8, "r", shape=shape) if len(kept) else np.empty(shape, dtype=np.uint8)
    return UsableImages(source, kept, pixels, select(source.labels, kept), bad, sizes, brightest)


def _picture(
    source: Source, i: int, size: int, channels: int, resize: bool, reading: Conversion
) -> _Picture | UnusableImage:
    """Decode, crop and resize one image. Return what is wrong with it instead if it cannot be used."""
    where = source.where(i)
    try:
        stored = source.load(i)
        image = to_8_bit(stored, where, reading)
    except UserError as error:
        return UnusableImage(where, str(error).removeprefix(f"{where}: "))
    brightest = int(np.asarray(image).max()) if exceeds_8_bits(stored) else None

    fitted = crop_and_resize(image, size if resize else None, where)
    if fitted.width != size:
        raise UserError(f"{where}: is {fitted.width} pixels wide, others {size}; give a --size to resize to")
    if channels == 1 and fitted.mode != "L":
        raise _ColourError
    pixels = np.asarray(fitted if channels == 1 else fitted.convert("RGB"))
    return _Picture(pixels, stored.size, brightest)


def _side(source: Source, options: Options) -> int:
    """Side of the first usable image, where no size is asked for: all must have it."""
    reading = Conversion(options.depth16 == "scale", options.background)
    for i in range(source.count):
        where = source.where(i)
        try:
            image = to_8_bit(source.load(i), where, reading)
        except UserError:
            continue  # all of these are named together later
        return crop_and_resize(image, None, where).width
    return 1


def _listed(bad: list[UnusableImage], total: int, hint: str = "--skip-bad prepares the rest") -> str:
    """Name the images that cannot be used, by reason, in one line."""
    by_reason: dict[str, list[str]] = {}
    for image in bad[:MOST_NAMED]:
        by_reason.setdefault(image.reason, []).append(image.where)
    named = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in by_reason.items())
    if len(bad) == 1:
        return f"{named} ({hint})"
    rest = f"; and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
    return f"{len(bad):,} of {total:,} images cannot be used ({hint}): {named}{rest}"


def map_in_order(make: Callable[[int], T], numbers: Sequence[int] | np.ndarray, workers: int | None) -> Iterator[T]:
    """Yield `make` of each number in order, made over all cores and never far ahead of the reader."""
    workers = workers or os.cpu_count() or 1

    def block(part: Sequence[int] | np.ndarray) -> list[T]:
        return [make(int(number)) for number in part]

    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[T]]] = deque()
    try:
        for start in range(0, len(numbers), BLOCK):
            waiting.append(pool.submit(block, numbers[start : start + BLOCK]))
            if len(waiting) > 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def select(values: np.ndarray | None, numbers: np.ndarray) -> np.ndarray | None:
    """Return the entries with these numbers, if there are any values."""
    return None if values is None else values[numbers]
