"""`scrimp prepare`: from images in whatever form to a dataset.

START READING in `prepare`. Everything is written to `OUT.part`, which becomes `OUT` when it is complete.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import ImageColor

from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.common.files import atomic_folder, explain_disk_full
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.duplicates import Duplicates, find_duplicates
from scrimp_trainers.data.manifest import Classifier, Manifest, Split, SplitName, Summary
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.pixels import pixel_limit, to_png
from scrimp_trainers.data.reading import TAR_BYTES, Progress, UsableImages, map_in_order, read_images, select
from scrimp_trainers.data.shards import Sample, write_shards
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.sources.source import Layout, Source
from scrimp_trainers.data.subsets import choose_subsets

CLASSIFIER_FILE = "classifier.safetensors"
MOST_SIZES = 20
"""Sizes of images that the summary tells apart."""
CHANCE = 0.05
CLASSIFIER_BYTES = 2**31
"""The classifier is trained on as many images as fit into so many bytes of pixels."""


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
    with atomic_folder(out) as folder, pixel_limit(options.max_pixels):
        scratch = folder / "scratch"
        scratch.mkdir()
        sources: dict[SplitName, Source] = {"train": open_source(source, scratch, layout, options.reader)}
        if options.reference is not None:
            sources["reference"] = open_source(options.reference, scratch, layout, options.reader)
        parts = read_images(sources, scratch, options, progress)

        images = parts["train"]
        repeats = find_duplicates(images.pixels, options.near, select(images.source.test, images.numbers))
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
        _save(folder / manifests.MANIFEST_FILE, manifest.to_json().encode())
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
        _check_background(options.background)
    if options.limit is not None and options.per_class is not None:
        raise UserError("--limit and --per-class exclude each other")
    held = options.holdout
    if held is not None and (held < 0 or (held >= 1 and held != int(held))):
        raise UserError(f"holdout: must be a whole number of images or a share below 1, not {held}")


def _check_background(colour: str) -> None:
    try:
        channels = ImageColor.getrgb(colour)
    except ValueError:
        raise UserError(f"background: {colour!r} is no colour; give a name or #rrggbb") from None
    if len(channels) > 3:
        raise UserError(f"background: {colour!r} is transparent itself; give a name or #rrggbb")


def _chosen(parts: dict[SplitName, UsableImages], repeats: Duplicates, options: Options) -> dict[SplitName, np.ndarray]:
    """Return which rows of `pixels` each split holds, in order."""
    images = parts["train"]
    train, held = choose_subsets(
        len(images.numbers),
        images.labels,
        select(images.source.test, images.numbers),
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
    parts: dict[SplitName, UsableImages], chosen: dict[SplitName, np.ndarray], folder: Path, options: Options
) -> tuple[str, dict[SplitName, Split]]:
    """Write the shards of all splits. Return the content hash, and what the manifest says of them."""
    classes = parts["train"].source.classes
    size, channels = parts["train"].pixels.shape[1], 3 if parts["train"].pixels.ndim == 4 else 1
    content = hashlib.sha256(json.dumps([size, channels, classes]).encode())
    splits: dict[SplitName, Split] = {}

    def samples(name: SplitName, part: UsableImages, labels: np.ndarray | None) -> Iterator[Sample]:
        rows = chosen[name]
        encoded = map_in_order(lambda row: _encode(part.pixels[row]), rows, options.workers)
        for row, (png, digest) in zip(rows, encoded, strict=True):
            key = f"{part.numbers[row]:08d}"
            label = None if labels is None else int(labels[row])
            content.update(f"{name} {key} {label} {digest}\n".encode())
            yield Sample(key, png, label)

    total = sum(len(rows) for rows in chosen.values())
    with explain_disk_full(folder.parent, total * (size * size * channels + TAR_BYTES)):
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


def _summary(
    parts: dict[SplitName, UsableImages], repeats: Duplicates, options: Options, folders: list[str]
) -> Summary:
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
    # Of few held-out images none may be of the largest class, and one right answer would do.
    chance = max(baseline, 1 / classes)
    better = _better(accuracy, chance, len(held[1]) or max(1, len(labels) // 10))
    return Classifier(
        file=CLASSIFIER_FILE,
        sha256=digest,
        accuracy=accuracy,
        baseline=baseline,
        usable=better or options.classifier is True,
        better_than_chance=better,
        seed=options.seed,
    )


def _better(accuracy: float, chance: float, count: int) -> bool:
    """Whether so many right answers of `count` are unlikely (5%) if each is right with this chance."""
    from scipy.stats import binom

    return bool(binom.sf(round(accuracy * count) - 1, count, chance) < CHANCE)


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
