"""`scrimp prepare`: from images in whatever form to a dataset.

START READING in `prepare`. Everything is written to `OUT.part`, which becomes `OUT` when it is complete.
"""

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ImageColor

from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.aside import aside, room
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.duplicates import Duplicates, search
from scrimp_trainers.data.manifest import Classifier, Manifest, Split, SplitName, Summary
from scrimp_trainers.data.pixels import Reading, is_deep, no_bombs, plain, square, to_png
from scrimp_trainers.data.shards import Sample, write_shards
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.sources.source import Layout, Source
from scrimp_trainers.data.subsets import choose
from scrimp_trainers.errors import UserError, printable

Progress = Callable[[int, int], None]
T = TypeVar("T")

BLOCK = 64
"""Images a thread takes at once."""
TAR_BYTES = 2048
"""What an image costs in a shard besides its pixels: two tar headers and padding."""
CLASSIFIER_FILE = "classifier.safetensors"
MOST_NAMED = 20
"""Images that cannot be used, of which a message names at most so many."""
MOST_SIZES = 20
"""Sizes of images that the summary tells apart."""
CHANCE = 0.05
CLASSIFIER_BYTES = 2**31
"""The classifier is trained on as many images as fit into so many bytes of pixels."""


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
    workers: int | None = None
    """Threads; by default one a core."""


@dataclass(frozen=True)
class _Part:
    """The usable images of a source, at their final size."""

    source: Source
    numbers: np.ndarray
    """int64 [n]: their numbers in the source."""
    pixels: np.ndarray
    """uint8 [n, H, W] or [n, H, W, 3], in a scratch file."""
    labels: np.ndarray | None
    """int64 [n]."""
    bad: list["_Bad"]
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
class _Bad:
    """An image that cannot be used."""

    where: str
    reason: str


class _ColourError(Exception):
    """A colour image where all were grey so far."""


def prepare(source: str, out: Path, options: Options, progress: Progress | None = None) -> Manifest:
    """Make a dataset. The same input and options give the same bytes.

    Parameters
    ----------
    source
        A folder, archive or file, or the name `digits`.
    out
        The folder to make; it must not exist.
    progress
        Called with the images read so far and their total.

    Raises
    ------
    UserError
        If the source, an image in it, or an option is unfit. Nothing is left behind then.
    """
    _check(options)
    layout = Layout(options.labels, options.flat, options.frames)
    with aside(out) as folder, no_bombs(options.max_pixels):
        scratch = folder / "scratch"
        scratch.mkdir()
        sources: dict[SplitName, Source] = {"train": open_source(source, scratch, layout)}
        if options.reference is not None:
            sources["reference"] = open_source(options.reference, scratch, layout)
        parts = _read(sources, scratch, options, progress)

        images = parts["train"]
        repeats = search(images.pixels, options.near, _at(images.source.test, images.numbers))
        chosen = _chosen(parts, repeats, options)
        content_hash, splits = _write(parts, chosen, folder, options)
        shutil.rmtree(scratch)

        folders = [f"{Path(path).parent}/" for path in (source, options.reference) if path is not None]
        manifest = Manifest(
            name=options.name or _name(out),
            content_hash=content_hash,
            size=images.pixels.shape[1],
            channels=3 if images.pixels.ndim == 4 else 1,
            classes=images.source.classes,
            splits=splits,
            reference="reference" if "reference" in parts else "train",
            summary=_summary(parts, repeats, options, folders),
            provenance=_provenance(source, images.source, options),
        )
        if options.classifier is not False and manifest.classes is not None and len(manifest.classes) > 1:
            made = _classifier(folder, manifest, len(manifest.classes), options)
            manifest = manifest.model_copy(update={"classifier": made})
        _save(folder / manifests.FILE, manifest.to_json().encode())
    return manifest


def _check(options: Options) -> None:
    for name in ("size", "limit", "per_class", "workers", "max_pixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')}: must be at least 1, not {value}")
    if options.size is not None and options.size > manifests.LARGEST_SIZE:
        raise UserError(f"size: must be at most {manifests.LARGEST_SIZE}, not {options.size}")
    if options.name is not None and not 1 <= len(options.name) <= manifests.LONGEST_NAME:
        raise UserError(f"name: must have 1 to {manifests.LONGEST_NAME} characters, not {len(options.name)}")
    if not 0 <= options.near <= 255:
        raise UserError(f"near: must be a difference from 0 to 255, not {options.near}")
    if options.background is not None:
        try:
            ImageColor.getrgb(options.background)
        except ValueError:
            raise UserError(f"background: {options.background!r} is no colour; give a name or #rrggbb") from None
    if options.limit is not None and options.per_class is not None:
        raise UserError("--limit and --per-class exclude each other")
    held = options.holdout
    if held is not None and (held < 0 or (held >= 1 and held != int(held))):
        raise UserError(f"holdout: must be a whole number of images or a share below 1, not {held}")


def _read(
    sources: dict[SplitName, Source], scratch: Path, options: Options, progress: Progress | None
) -> dict[SplitName, _Part]:
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
            raise UserError(f"{name}: no image can be used; {_listed(part.bad, part.source.count)}")
    return parts


def _pass(
    sources: dict[SplitName, Source],
    scratch: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    progress: Progress | None,
) -> dict[SplitName, _Part]:
    """Read all images in grey or in colour."""
    total, done = sum(source.count for source in sources.values()), 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    # Twice: as pixels in the scratch files, and as PNGs.
    with room(scratch.parent.parent, 2 * total * (size * size * channels + TAR_BYTES)):
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
) -> _Part:
    """Write the pixels of a source's usable images to a file, and open it."""
    reading = Reading(options.depth16 == "scale", options.background)
    numbers: list[int] = []
    bad: list[_Bad] = []
    sizes: Counter[tuple[int, int]] = Counter()
    brightest: int | None = None

    def picture(i: int) -> _Picture | _Bad:
        return _picture(source, i, size, channels, options.size is not None, reading)

    with path.open("wb") as file:  # not mapped into memory: there a full disk kills the process
        for i, image in enumerate(_in_order(picture, range(source.count), options.workers)):
            if isinstance(image, _Bad):
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
    return _Part(source, kept, pixels, _at(source.labels, kept), bad, sizes, brightest)


def _picture(source: Source, i: int, size: int, channels: int, resize: bool, reading: Reading) -> _Picture | _Bad:
    """Decode, crop and resize one image. Return what is wrong with it instead if it cannot be used."""
    where = source.where(i)
    try:
        stored = source.load(i)
        image = plain(stored, where, reading)
    except UserError as error:
        return _Bad(where, str(error).removeprefix(f"{where}: "))
    brightest = int(np.asarray(image).max()) if is_deep(stored) else None

    fitted = square(image, size if resize else None, where)
    if fitted.width != size:
        raise UserError(f"{where}: is {fitted.width} pixels wide, others {size}; give a --size to resize to")
    if channels == 1 and fitted.mode != "L":
        raise _ColourError
    pixels = np.asarray(fitted if channels == 1 else fitted.convert("RGB"))
    return _Picture(pixels, stored.size, brightest)


def _side(source: Source, options: Options) -> int:
    """Side of the first usable image, where no size is asked for: all must have it."""
    reading = Reading(options.depth16 == "scale", options.background)
    for i in range(source.count):
        where = source.where(i)
        try:
            image = plain(source.load(i), where, reading)
        except UserError:
            continue  # all of these are named together later
        return square(image, None, where).width
    return 1


def _listed(bad: list[_Bad], total: int) -> str:
    """Name the images that cannot be used, by reason, in one line."""
    by_reason: dict[str, list[str]] = {}
    for image in bad[:MOST_NAMED]:
        by_reason.setdefault(image.reason, []).append(image.where)
    named = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in by_reason.items())
    if len(bad) == 1:
        return f"{named} (--skip-bad prepares the rest)"
    rest = f"; and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
    return f"{len(bad):,} of {total:,} images cannot be used (--skip-bad prepares the rest): {named}{rest}"


def _chosen(parts: dict[SplitName, _Part], repeats: Duplicates, options: Options) -> dict[SplitName, np.ndarray]:
    """Return which rows of `pixels` each split holds, in order."""
    images = parts["train"]
    train, held = choose(
        len(images.numbers),
        images.labels,
        _at(images.source.test, images.numbers),
        seed=options.seed,
        classes=images.source.classes,
        duplicates=repeats,
        holdout=options.holdout,
        limit=options.limit,
        per_class=options.per_class,
    )
    chosen: dict[SplitName, np.ndarray] = {"train": train}
    if len(held):
        chosen["holdout"] = held
    if "reference" in parts:
        chosen["reference"] = np.random.default_rng(options.seed).permutation(len(parts["reference"].numbers))
    return chosen


def _write(
    parts: dict[SplitName, _Part], chosen: dict[SplitName, np.ndarray], folder: Path, options: Options
) -> tuple[str, dict[SplitName, Split]]:
    """Write the shards of all splits. Return the content hash, and what the manifest says of them."""
    classes = parts["train"].source.classes
    size, channels = parts["train"].pixels.shape[1], 3 if parts["train"].pixels.ndim == 4 else 1
    content = hashlib.sha256(json.dumps([size, channels, classes]).encode())
    splits: dict[SplitName, Split] = {}

    def samples(name: SplitName, part: _Part, labels: np.ndarray | None) -> Iterator[Sample]:
        rows = chosen[name]
        encoded = _in_order(lambda row: _encode(part.pixels[row]), rows, options.workers)
        for row, (png, digest) in zip(rows, encoded, strict=True):
            key = f"{part.numbers[row]:08d}"
            label = None if labels is None else int(labels[row])
            content.update(f"{name} {key} {label} {digest}\n".encode())
            yield Sample(key, png, label)

    total = sum(len(rows) for rows in chosen.values())
    with room(folder.parent, total * (size * size * channels + TAR_BYTES)):
        for name, rows in chosen.items():
            part = parts["reference" if name == "reference" else "train"]
            labels = part.labels if part.source.classes == classes else None
            shards = write_shards(samples(name, part, labels), folder, name, size * size * channels)
            per_class = None
            if labels is not None and classes is not None:
                per_class = np.bincount(labels[rows], minlength=len(classes)).tolist()
            splits[name] = Split(count=len(rows), per_class=per_class, shards=shards)
    return content.hexdigest(), splits


def _encode(pixels: np.ndarray) -> tuple[bytes, str]:
    """Return one image as PNG, and the hash of its pixels."""
    return to_png(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()


def _in_order(make: Callable[[int], T], numbers: Sequence[int] | np.ndarray, workers: int | None) -> Iterator[T]:
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


def _at(values: np.ndarray | None, numbers: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[numbers]


def _summary(parts: dict[SplitName, _Part], repeats: Duplicates, options: Options, folders: list[str]) -> Summary:
    """Say what was understood of the sources, without the `folders` in which they lie."""
    size = parts["train"].pixels.shape[1]
    sizes = sum((part.sizes for part in parts.values()), Counter())
    depths = [part.brightest for part in parts.values() if part.brightest is not None]
    skipped = sum((Counter(part.source.skipped) for part in parts.values()), Counter())

    def local(line: str) -> str:
        for folder in folders:
            line = line.removeprefix(folder)
        return line

    return Summary(
        images=sum(part.source.count for part in parts.values()),
        skipped=dict(skipped),
        bad=[local(f"{image.where}: {image.reason}") for part in parts.values() for image in part.bad],
        notes=[local(note) for part in parts.values() for note in part.source.notes],
        sizes={f"{width}x{height}": number for (width, height), number in sizes.most_common(MOST_SIZES)},
        other_sizes=sum(number for _, number in sizes.most_common()[MOST_SIZES:]),
        cropped=sum(number for (width, height), number in sizes.items() if width != height),
        resized=sum(number for shape, number in sizes.items() if min(shape) != size),
        brightest_of_16_bits=max(depths, default=None),
        near_limit=options.near,
        equal=repeats.equal,
        largest_group=repeats.largest,
        near=repeats.near,
        beside_test=int(repeats.beside_test.sum()),
    )


def _classifier(folder: Path, manifest: Manifest, classes: int, options: Options) -> Classifier:
    """Train the dataset's own feature extractor, and say whether it has learnt anything."""
    # Before torch is loaded: threads that spin while they wait make this twenty times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import safetensors.torch

    from scrimp_trainers.metrics.classifier import train_classifier

    dataset = Dataset(folder, manifest.model_copy(update={"splits": _start(manifest)}))
    images, labels = _labelled(dataset, "train")
    held = _labelled(dataset, "holdout") if "holdout" in manifest.splits else (images[:0], labels[:0])
    state, accuracy = train_classifier(images, labels, *held, classes=classes, seed=options.seed)
    data = safetensors.torch.save(state)
    _save(folder / CLASSIFIER_FILE, data)
    digest = hashlib.sha256(data).hexdigest()
    largest = int(np.bincount(labels).argmax())
    known = held[1] if len(held[1]) else labels
    baseline = float((known == largest).mean())
    better = _better(accuracy, baseline, len(held[1]) or max(1, len(labels) // 10))
    return Classifier(
        file=CLASSIFIER_FILE,
        sha256=digest,
        accuracy=accuracy,
        baseline=baseline,
        usable=better or options.classifier is True,
        better_than_chance=better,
        seed=options.seed,
    )


def _better(accuracy: float, baseline: float, count: int) -> bool:
    """Whether so many right answers of `count` are unlikely (5%) from always naming the largest class."""
    from scipy.stats import binom

    return bool(binom.sf(round(accuracy * count) - 1, count, baseline) < CHANCE)


def _labelled(dataset: Dataset, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = dataset.images(split)
    assert labels is not None  # noqa: S101
    return images, labels


def _start(manifest: Manifest) -> dict[SplitName, Split]:
    """Keep as many shards of each split as fit into memory; their order is random, so the first stand for all."""
    most = CLASSIFIER_BYTES // (manifest.size**2 * manifest.channels)
    splits: dict[SplitName, Split] = {}
    for name, split in manifest.splits.items():
        counts = np.cumsum([shard.count for shard in split.shards])
        shards = split.shards[: max(1, int((counts <= most).sum()))]
        splits[name] = Split(count=sum(shard.count for shard in shards), per_class=split.per_class, shards=shards)
    return splits


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _name(out: Path) -> str:
    return printable(out.absolute().name)[: manifests.LONGEST_NAME]


def _provenance(source: str, images: Source, options: Options) -> dict[str, str | int | float | bool | None]:
    """How to make the dataset again. Names without their folders, so that it is the same on every machine."""
    kept = {name: value for name, value in asdict(options).items() if name not in ("name", "workers")}
    if options.reference is not None:
        kept["reference"] = Path(options.reference).resolve().name
    return {"source": Path(source).resolve().name, "format": images.format, "images": images.count, **kept}
