"""Read the images of sources as pixels of one size, in scratch files, and collect the images that cannot be used.

Drawings are read as items of `strokes`, and their pictures take the place of pixels.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.common.files import explain_disk_full
from scrimp_trainers.data.drawing import MOST_POINTS, UnusableDrawingError, to_item
from scrimp_trainers.data.manifest import CAPTIONED, MAX_SIZE, SplitName
from scrimp_trainers.data.modalities.images import channels_first
from scrimp_trainers.data.modalities.modality import Modality, open_modality
from scrimp_trainers.data.modalities.strokes import SIDE, StrokeModality
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.pixels import Conversion, crop_and_resize, exceeds_8_bits, to_8_bit
from scrimp_trainers.data.sources.source import Source

ReportProgress = Callable[[int, int], None]
T = TypeVar("T")

BLOCK = 64
"""Images that a thread processes at once."""
TAR_BYTES = 2048
"""Size of an image in a shard besides its pixels: two tar headers and padding."""
MAX_LISTED = 20
"""Largest number of unusable images that an error message lists."""


@dataclass(frozen=True)
class UsableImages:
    """The usable images of a source, at their final size."""

    source: Source
    numbers: np.ndarray
    """int64 [n], their numbers in the source."""
    pixels: np.ndarray
    """uint8 [n, H, W] or [n, H, W, 3], in a scratch file."""
    labels: np.ndarray | None
    """int64 [n]."""
    unusable: list["UnusableImage"]
    """The other images of the source."""
    sizes: Counter[tuple[int, int]]
    """Original widths and heights of the images."""
    brightest: int | None
    """Largest value after scaling 16 bits to 8; None if no image had 16 bits."""

    @property
    def kind(self) -> str:
        """The kind of the modality."""
        return self.source.modality if self.source.captions is None else CAPTIONED

    @property
    def modality(self) -> Modality:
        """What the items are."""
        return open_modality(self.kind, size=self.pixels.shape[1], channels=3 if self.pixels.ndim == 4 else 1)

    def item(self, row: int) -> np.ndarray:
        """Return an item as the modality has it."""
        return channels_first(self.pixels[row])

    def caption(self, row: int) -> str | None:
        """Return an item's caption; None if the source has none."""
        return None if self.source.captions is None else self.source.captions[self.numbers[row]]

    def content(self, row: int) -> bytes:
        """Return the bytes that tell an item from others."""
        return self.pixels[row].tobytes() + (self.caption(row) or "").encode()


@dataclass(frozen=True)
class UsableDrawings(UsableImages):
    """The usable drawings of a source. Their `pixels` are their pictures."""

    items: list[np.ndarray]
    """float32 [points, 3] each."""
    most_points: int
    """Of the longest drawing of all sources."""

    @property
    def modality(self) -> Modality:
        """What the items are."""
        return StrokeModality(self.most_points)

    def item(self, row: int) -> np.ndarray:
        """Return a drawing."""
        return self.items[row]

    def content(self, row: int) -> bytes:
        """Return the bytes of its points."""
        return self.items[row].tobytes()


@dataclass(frozen=True)
class _UsableImage:
    """One image at its final size."""

    pixels: np.ndarray
    size: tuple[int, int]
    """Original width and height."""
    brightest: int | None
    """Largest value, if the image had 16 bits."""


@dataclass(frozen=True)
class UnusableImage:
    """An image that cannot be used."""

    where: str
    reason: str


class _ColourError(Exception):
    """A colour image, where all images so far were grey."""


def read_images(
    sources: dict[SplitName, Source], scratch: Path, options: Options, progress: ReportProgress | None
) -> dict[SplitName, UsableImages]:
    """Read all images at their final size.

    Raises
    ------
    UserError
        If images cannot be used and `skip_bad` is not set; the message lists them.
    """
    modalities = {source.modality for source in sources.values()}
    if len(modalities) > 1:
        raise UserError(f"reference: the source has {sources['train'].modality}, its reference set others")
    if modalities == {"strokes"}:
        usable = _read_all_drawings(sources, scratch, options, progress)
    else:
        usable = _read_all_images(sources, scratch, options, progress)

    unusable = [image for images in usable.values() for image in images.unusable]
    if unusable and not options.skip_bad:
        total = sum(source.count for source in sources.values())
        raise UserError(_list_unusable(unusable, total))
    for name, images in usable.items():
        if not len(images.numbers):
            problems = _list_unusable(images.unusable, images.source.count)
            raise UserError(f"{name}: {problems}")
    return usable


def _read_all_images(
    sources: dict[SplitName, Source], scratch: Path, options: Options, progress: ReportProgress | None
) -> dict[SplitName, UsableImages]:
    size = options.size or _common_size(sources["train"], options)
    try:
        return _read_all(sources, scratch, size, 1, options, progress)
    except _ColourError:  # one colour image makes the dataset RGB, so read all images again
        return _read_all(sources, scratch, size, 3, options, progress)


def _read_all_drawings(
    sources: dict[SplitName, Source], scratch: Path, options: Options, progress: ReportProgress | None
) -> dict[SplitName, UsableImages]:
    """Read all drawings. Those that have no line, or too many points or strokes, are left out and counted."""
    total = sum(source.count for source in sources.values())
    done = 0
    read: dict[SplitName, tuple[Source, list[int], list[np.ndarray], list[UnusableImage]]] = {}
    for name, source in sources.items():
        numbers: list[int] = []
        items: list[np.ndarray] = []
        unusable: list[UnusableImage] = []
        left_out: Counter[str] = Counter()
        for i in range(source.count):
            try:
                items.append(to_item(source.load(i), options.size or MOST_POINTS))
                numbers.append(i)
            except UnusableDrawingError as reason:
                left_out[str(reason)] += 1
            except UserError as error:
                where = printable(source.where(i))
                unusable.append(UnusableImage(where, str(error).removeprefix(f"{where}: ")))
            done += 1
            if progress is not None:
                progress(done, total)
        skipped = {**source.skipped, **{f"a drawing that {reason}": count for reason, count in left_out.items()}}
        read[name] = replace(source, skipped=skipped), numbers, items, unusable
        if not items and not unusable:
            raise UserError(f"{name}: no drawing can be used: {dict(left_out)}")

    most_points = max((len(item) for _, _, items, _ in read.values() for item in items), default=1)
    with explain_disk_full(scratch.parent.parent, total * (SIDE * SIDE + TAR_BYTES)):
        return {
            name: UsableDrawings(
                source=source,
                numbers=np.array(numbers, dtype=np.int64),
                pixels=_pictures(items, StrokeModality(most_points), scratch / f"{name}.pixels"),
                labels=select(source.labels, np.array(numbers, dtype=np.int64)),
                unusable=unusable,
                sizes=Counter(),
                brightest=None,
                items=items,
                most_points=most_points,
            )
            for name, (source, numbers, items, unusable) in read.items()
        }


def _pictures(items: list[np.ndarray], modality: StrokeModality, path: Path) -> np.ndarray:
    """Render drawings to a file of uint8 [n, 64, 64], and open it."""
    with path.open("wb") as file:
        for start in range(0, len(items), BLOCK):
            rendered = modality.render(modality.collate(items[start : start + BLOCK]))
            file.write(rendered.numpy().tobytes())
    shape = (len(items), SIDE, SIDE)
    return np.memmap(path, np.uint8, "r", shape=shape) if items else np.empty(shape, dtype=np.uint8)


def _read_all(
    sources: dict[SplitName, Source],
    scratch: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    progress: ReportProgress | None,
) -> dict[SplitName, UsableImages]:
    """Read all images in grey or in colour."""
    total = sum(source.count for source in sources.values())
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    # Images are stored twice: as pixels in the scratch files, and as PNGs.
    needed_bytes = 2 * total * (size * size * channels + TAR_BYTES)
    with explain_disk_full(scratch.parent.parent, needed_bytes):
        return {
            name: _read_source(source, scratch / f"{name}.pixels", size, channels, options, count)
            for name, source in sources.items()
        }


def _read_source(
    source: Source,
    path: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    count: Callable[[], None],
) -> UsableImages:
    """Write the pixels of a source's usable images to a file, and open it."""
    conversion = Conversion(options.depth16 == "scale", options.background)
    numbers: list[int] = []
    unusable: list[UnusableImage] = []
    sizes: Counter[tuple[int, int]] = Counter()
    brightest: int | None = None

    def read(i: int) -> _UsableImage | UnusableImage:
        return _read_image(source, i, size, channels, options.size is not None, conversion)

    with path.open("wb") as file:  # not a memory map: writing to one on a full disk kills the process
        for i, image in enumerate(map_in_order(read, range(source.count), options.workers)):
            if isinstance(image, UnusableImage):
                unusable.append(image)
            else:
                numbers.append(i)
                sizes[image.size] += 1
                if image.brightest is not None:
                    brightest = max(brightest or 0, image.brightest)
                file.write(image.pixels.tobytes())
            count()

    usable = np.array(numbers, dtype=np.int64)
    shape = (len(usable), size, size) if channels == 1 else (len(usable), size, size, channels)
    pixels = np.memmap(path, np.uint8, "r", shape=shape) if len(usable) else np.empty(shape, dtype=np.uint8)
    return UsableImages(source, usable, pixels, select(source.labels, usable), unusable, sizes, brightest)


def _read_image(
    source: Source, i: int, size: int, channels: int, resize: bool, conversion: Conversion
) -> _UsableImage | UnusableImage:
    """Decode, crop and resize one image, or return why it cannot be used."""
    where = printable(source.where(i))
    if source.captions is not None and source.captions[i] is None:
        return UnusableImage(where, "has no caption, unlike others; --captions none leaves all captions out")
    try:
        stored = source.load(i)
        image = to_8_bit(stored, where, conversion)
    except UserError as error:
        return UnusableImage(where, str(error).removeprefix(f"{where}: "))
    brightest = int(np.asarray(image).max()) if exceeds_8_bits(stored) else None

    fitted = crop_and_resize(image, size if resize else None, where)
    if fitted.width != size:
        raise UserError(f"{where}: is {fitted.width} pixels wide, others {size}; give a --size to resize to")
    if channels == 1 and fitted.mode != "L":
        raise _ColourError
    pixels = np.asarray(fitted if channels == 1 else fitted.convert("RGB"))
    return _UsableImage(pixels, stored.size, brightest)


def _common_size(source: Source, options: Options) -> int:
    """Return the size of the first usable image. If no size is given, all images must have it.

    Raises
    ------
    UserError
        If it is larger than a dataset's images may be.
    """
    conversion = Conversion(options.depth16 == "scale", options.background)
    for i in range(source.count):
        where = source.where(i)
        try:
            image = to_8_bit(source.load(i), where, conversion)
        except UserError:
            continue  # unusable images are listed together later
        size = crop_and_resize(image, None, where).width
        if size > MAX_SIZE:
            raise UserError(f"{where}: is {size:,} pixels wide, more than {MAX_SIZE:,}; give a --size to resize to")
        return size
    return 1


def _list_unusable(unusable: list[UnusableImage], total: int) -> str:
    """List the images that cannot be used in one line: each reason, with how many have it and the first of them."""
    hint = "--skip-bad prepares the rest" if len(unusable) < total else "no image can be used"
    if len(unusable) == 1:
        return f"{unusable[0].where}: {unusable[0].reason} ({hint})"

    by_reason: dict[str, list[str]] = {}
    for image in unusable:
        by_reason.setdefault(image.reason, []).append(image.where)
    listed = max(1, MAX_LISTED // len(by_reason))

    parts: list[str] = []
    for reason, images in list(by_reason.items())[:MAX_LISTED]:
        names = ", ".join(images[:listed])
        if len(images) > listed:
            names += f" and {len(images) - listed:,} more"
        parts.append(f"{len(images):,} x {reason}: {names}")
    if len(by_reason) > MAX_LISTED:
        parts.append(f"and {len(by_reason) - MAX_LISTED:,} other reasons")
    return f"{len(unusable):,} of {total:,} images cannot be used ({hint}): {'; '.join(parts)}"


def map_in_order(function: Callable[[int], T], numbers: Sequence[int] | np.ndarray, workers: int | None) -> Iterator[T]:
    """Yield `function` of each number, in order, computed by threads that never run far ahead of the consumer."""
    workers = workers or os.cpu_count() or 1

    def apply(block: Sequence[int] | np.ndarray) -> list[T]:
        return [function(int(number)) for number in block]

    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[list[T]]] = deque()
    try:
        for start in range(0, len(numbers), BLOCK):
            pending.append(pool.submit(apply, numbers[start : start + BLOCK]))
            if len(pending) > 4 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def select(values: np.ndarray | None, numbers: np.ndarray) -> np.ndarray | None:
    """Return the entries at these indices; None if there are no values."""
    return None if values is None else values[numbers]
