"""`scrimp prepare`: from images in whatever form to a dataset.

START READING in `prepare`. Everything is written to `OUT.part`, which becomes `OUT` when it is complete.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.aside import aside, room
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import Classifier, Manifest, Split, SplitName
from scrimp_trainers.data.pixels import no_bombs, plain, square, to_png
from scrimp_trainers.data.shards import Sample, write_shards
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.subsets import choose
from scrimp_trainers.errors import UserError

Progress = Callable[[int, int], None]

BLOCK = 64
"""Images a thread takes at once."""
TAR_BYTES = 2048
"""What an image costs in a shard besides its pixels: two tar headers and padding."""
MOST_SIZE = 4096
CLASSIFIER_FILE = "classifier.safetensors"
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
    """Name in reports; by default that of the source."""
    classifier: bool = True
    """Train a classifier on the labels if there are any."""
    workers: int | None = None
    """Threads; by default one a core."""


@dataclass(frozen=True)
class _Part:
    """A split to be: which images of a source, with which classes."""

    source: Source
    chosen: np.ndarray
    labels: np.ndarray | None


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
        Called with the images written so far and their total.

    Raises
    ------
    UserError
        If the source, an image in it, or an option is unfit. Nothing is left behind then.
    """
    _check(options)
    with aside(out) as folder, no_bombs():
        scratch = folder / "scratch"
        scratch.mkdir()
        images = open_source(source, scratch)
        parts = _parts(images, options, scratch)
        size = options.size or _side(parts["train"])
        channels: Literal[1, 3] = 1
        try:
            splits, content_hash = _write(parts, folder, size, channels, options, progress)
        except _ColourError:  # one image of many decides for all, so what was written in grey is written again
            channels = 3
            splits, content_hash = _write(parts, folder, size, channels, options, progress)
        shutil.rmtree(scratch)
        manifest = Manifest(
            name=options.name or _stem(source),
            content_hash=content_hash,
            size=size,
            channels=channels,
            classes=images.classes,
            splits=splits,
            reference="reference" if "reference" in parts else "train",
            provenance=_provenance(source, images, options),
        )
        if options.classifier and manifest.classes is not None and len(manifest.classes) > 1:
            made = _classifier(folder, manifest, len(manifest.classes), options.seed)
            manifest = manifest.model_copy(update={"classifier": made})
        _save(folder / manifests.FILE, manifest.to_json().encode())
    return manifest


def _check(options: Options) -> None:
    for name in ("size", "limit", "per_class", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')}: must be at least 1, not {value}")
    if options.size is not None and options.size > MOST_SIZE:
        raise UserError(f"size: must be at most {MOST_SIZE}, not {options.size}")
    if options.limit is not None and options.per_class is not None:
        raise UserError("--limit and --per-class exclude each other")
    held = options.holdout
    if held is not None and (held < 0 or (held >= 1 and held != int(held))):
        raise UserError(f"holdout: must be a whole number of images or a share below 1, not {held}")


def _parts(images: Source, options: Options, scratch: Path) -> dict[SplitName, _Part]:
    labels = images.labels
    train, held = choose(
        images.count,
        labels,
        images.test,
        seed=options.seed,
        holdout=options.holdout,
        limit=options.limit,
        per_class=options.per_class,
    )
    parts: dict[SplitName, _Part] = {"train": _Part(images, train, labels)}
    if len(held):
        parts["holdout"] = _Part(images, held, labels)
    if options.reference is not None:
        other = open_source(options.reference, scratch)
        order = np.random.default_rng(options.seed).permutation(other.count)
        parts["reference"] = _Part(other, order, other.labels if other.classes == images.classes else None)
    return parts


def _write(
    parts: dict[SplitName, _Part],
    folder: Path,
    size: int,
    channels: Literal[1, 3],
    options: Options,
    progress: Progress | None,
) -> tuple[dict[SplitName, Split], str]:
    """Write the shards of all splits. Return what the manifest says of them, and the content hash."""
    total, done = sum(len(part.chosen) for part in parts.values()), 0
    classes = parts["train"].source.classes
    content = hashlib.sha256(json.dumps([size, channels, classes]).encode())
    splits: dict[SplitName, Split] = {}

    def samples(name: SplitName, part: _Part) -> Iterator[Sample]:
        nonlocal done
        for i, (png, digest) in zip(part.chosen, _encoded(part, size, channels, options), strict=True):
            label = None if part.labels is None else int(part.labels[i])
            content.update(f"{name} {i:08d} {label} {digest}\n".encode())
            yield Sample(f"{i:08d}", png, label)
            done += 1
            if progress is not None:
                progress(done, total)

    with room(folder.parent, total * (size * size * channels + TAR_BYTES)):
        for name, part in parts.items():
            shards = write_shards(samples(name, part), folder, name, size * size * channels)
            splits[name] = Split(count=len(part.chosen), per_class=_per_class(part, classes), shards=shards)
    return splits, content.hexdigest()


def _side(part: _Part) -> int:
    """Side of the first image, where no size is asked for: all must have it."""
    first = int(part.chosen[0])
    return square(part.source.load(first), None, part.source.where(first)).width


def _per_class(part: _Part, classes: list[str] | None) -> list[int] | None:
    if part.labels is None or classes is None:
        return None
    return np.bincount(part.labels[part.chosen], minlength=len(classes)).tolist()


def _encoded(part: _Part, size: int, channels: int, options: Options) -> Iterator[tuple[bytes, str]]:
    """Encode images in order over all cores, never far ahead of the writer."""
    workers = options.workers or os.cpu_count() or 1

    def encode(chosen: np.ndarray) -> list[tuple[bytes, str]]:
        return [_encode(part.source, int(i), size, channels, options.size is not None) for i in chosen]

    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[tuple[bytes, str]]]] = deque()
    try:
        for start in range(0, len(part.chosen), BLOCK):
            waiting.append(pool.submit(encode, part.chosen[start : start + BLOCK]))
            if len(waiting) > 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(source: Source, i: int, size: int, channels: int, resize: bool) -> tuple[bytes, str]:
    """Return one image as PNG, and the hash of its pixels."""
    where = source.where(i)
    image = square(plain(source.load(i), where), size if resize else None, where)
    if image.width != size:
        raise UserError(f"{where}: is {image.width} pixels wide, others {size}; give a --size to resize to")
    if channels == 1 and image.mode != "L":
        raise _ColourError
    pixels = np.asarray(image if channels == 1 else image.convert("RGB"))
    return to_png(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()


def _classifier(folder: Path, manifest: Manifest, classes: int, seed: int) -> Classifier:
    """Train the dataset's own feature extractor."""
    # Before torch is loaded: threads that spin while they wait make this twenty times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import safetensors.torch

    from scrimp_trainers.metrics.classifier import train_classifier

    dataset = Dataset(folder, manifest.model_copy(update={"splits": _start(manifest)}))
    images, labels = _labelled(dataset, "train")
    held = _labelled(dataset, "holdout") if "holdout" in manifest.splits else (images[:0], labels[:0])
    state, accuracy = train_classifier(images, labels, *held, classes=classes, seed=seed)
    data = safetensors.torch.save(state)
    _save(folder / CLASSIFIER_FILE, data)
    digest = hashlib.sha256(data).hexdigest()
    return Classifier(file=CLASSIFIER_FILE, sha256=digest, accuracy=accuracy, seed=seed)


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


def _stem(source: str) -> str:
    """Name of a source without its folder and endings."""
    return Path(source).resolve().name.split(".")[0] or "dataset"


def _provenance(source: str, images: Source, options: Options) -> dict[str, str | int | float | bool | None]:
    """How to make the dataset again. Names without their folders, so that it is the same on every machine."""
    kept = {name: value for name, value in asdict(options).items() if name not in ("name", "workers")}
    if options.reference is not None:
        kept["reference"] = Path(options.reference).resolve().name
    return {"source": Path(source).resolve().name, "format": images.format, "images": images.count, **kept}
