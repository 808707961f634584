"""`scrimp prepare`: make a dataset of images, or of drawings, in any supported form.

Start reading at `prepare`. Everything is written to `OUT.part`, which is renamed to `OUT` once it is complete.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ImageColor

from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.common.files import atomic_folder, explain_disk_full, write_atomic
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.contact_sheet import sheet
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.duplicates import Duplicates, find_duplicates
from scrimp_trainers.data.manifest import (
    CAPTIONED,
    ClassifierRecord,
    EncoderRecord,
    Manifest,
    SourceSummary,
    Split,
    SplitName,
)
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.data.options import NEAR_IMAGES, Options
from scrimp_trainers.data.pixels import pixel_limit
from scrimp_trainers.data.reading import TAR_BYTES, ReportProgress, UsableImages, map_in_order, read_images, select
from scrimp_trainers.data.shards import Sample, read_shard, write_shards
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.sources.source import Layout, Source, first_images
from scrimp_trainers.data.subsets import choose_subsets

CLASSIFIER_FILE = "classifier.safetensors"
ENCODER_FILE = "encoder.safetensors"
CONTACT_SHEET = "contact_sheet.png"
"""The first training images, or drawings as they are rendered, over their captions or classes."""
ON_SHEET = 64
IMAGE_OPTIONS = ("depth16", "background", "max_pixels")
"""Options that drawings do not have."""
MAX_SIZES = 20
"""Number of image sizes that the summary lists."""
SIGNIFICANCE = 0.05
"""Level of the test whether the classifier is better than chance."""
LEAST_FOR_ENCODER = 640
"""Training images below which an extractor of 64 features is not learned without labels: a tenth is held out, and its
covariance needs as many."""
CLASSIFIER_BYTES = 2**31
"""The feature extractor is trained on as many images as fit into this many bytes of pixels."""


def prepare(source: str, out: Path, options: Options, progress: ReportProgress | None = None) -> Manifest:
    """Make a dataset. The same input and options give identical files.

    Parameters
    ----------
    source
        A folder, archive or file, or the name `digits`.
    out
        The folder to make; it must not exist.
    progress
        Called with the number of images read so far and their total.

    Raises
    ------
    UserError
        If the source, an image in it, or an option is not valid. No files are left then.
    """
    _validate(options)
    layout = Layout(
        labels=options.labels,
        label_column=options.label_column,
        classes=options.classes,
        flat=options.flat,
        frames=options.frames,
        captions=options.captions,
    )
    with atomic_folder(out) as folder, pixel_limit(options.max_pixels):
        # Read the images as pixels of one size.
        scratch = folder / "scratch"
        scratch.mkdir()
        sources: dict[SplitName, Source] = {"train": open_source(source, scratch, layout, options.reader)}
        if options.reference is not None:
            sources["reference"] = open_source(options.reference, scratch, layout, options.reader)
            if sources["train"].captions is None:
                sources["reference"] = replace(sources["reference"], captions=None)
        _validate_for(sources["train"], options)
        if options.first is not None:
            sources["train"] = first_images(sources["train"], options.first)
        options = replace(options, near=_near(sources["train"], options))
        usable = read_images(sources, scratch, options, progress)

        # Choose the images of each split, and write them to shards.
        images = usable["train"]
        duplicates = find_duplicates(images.pixels, options.near or 0.0, select(images.source.test, images.numbers))
        chosen = _choose_splits(usable, duplicates, options)
        content_hash, splits = _write_splits(usable, chosen, folder, options)
        shutil.rmtree(scratch)

        # Describe the dataset, and train its own feature extractor.
        folders = [f"{Path(path).parent}/" for path in (source, options.reference) if path is not None]
        manifest = Manifest(
            name=options.name or _default_name(out),
            content_hash=content_hash,
            modality=images.kind,
            size=images.modality.shape[-1],
            channels=images.modality.shape[0],
            lengths=_lengths(images, chosen["train"]),
            classes=images.source.classes,
            splits=splits,
            reference="reference" if "reference" in usable else "train",
            summary=_summary(usable, duplicates, options, folders),
            provenance=_provenance(source, images.source, options),
        )
        if options.classifier is not False and manifest.classes is not None and len(manifest.classes) > 1:
            classifier = _train_classifier(folder, manifest, len(manifest.classes), options)
            manifest = manifest.model_copy(update={"classifier": classifier})
        elif options.classifier is not False and manifest.splits["train"].count >= LEAST_FOR_ENCODER:
            encoder = _train_encoder(folder, manifest, options)
            manifest = manifest.model_copy(update={"encoder": encoder})
        _write_contact_sheet(folder, manifest)
        write_atomic(folder / manifests.MANIFEST_FILE, manifest.to_json())
    return manifest


def _validate(options: Options) -> None:
    for name in ("size", "limit", "per_class", "first", "workers", "max_pixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')}: must be at least 1, not {value}")
    if options.size is not None and options.size > manifests.MAX_SIZE:
        raise UserError(f"size: must be at most {manifests.MAX_SIZE}, not {options.size}")
    if options.name is not None and not 1 <= len(options.name) <= manifests.MAX_NAME_LENGTH:
        raise UserError(f"name: must have 1 to {manifests.MAX_NAME_LENGTH} characters, not {len(options.name)}")
    if options.name is not None and printable(options.name) != options.name:
        raise UserError(f"name {options.name}: has control characters")
    if options.near is not None and not 0 <= options.near <= 255:
        raise UserError(f"near: must be a difference from 0 to 255, not {options.near}")
    if options.background is not None:
        _validate_background(options.background)
    if options.limit is not None and options.per_class is not None:
        raise UserError("--limit and --per-class exclude each other")
    holdout = options.holdout
    if holdout is not None and (holdout < 0 or (holdout >= 1 and holdout != int(holdout))):
        raise UserError(f"holdout: must be a whole number of images or a share below 1, not {holdout}")


def _validate_for(source: Source, options: Options) -> None:
    """Refuse options that are about images, or about files of images, if the source has none."""
    if options.classes is not None and source.format != "images":
        raise UserError(f"--classes is for files of images, but the source is {source.format}")
    if source.modality == "images":
        return
    for name in IMAGE_OPTIONS:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for images, but the source has {source.modality}")


def _near(source: Source, options: Options) -> float:
    """Return the largest difference between images that count as near."""
    if options.near is not None:
        return options.near
    return NEAR_IMAGES if source.modality == "images" else 0.0


def _validate_background(colour: str) -> None:
    try:
        channels = ImageColor.getrgb(colour)
    except ValueError:
        raise UserError(f"background: {colour!r} is not a colour; give a name or #rrggbb") from None
    if len(channels) > 3:
        raise UserError(f"background: {colour!r} is itself transparent; give a name or #rrggbb")


def _choose_splits(
    usable: dict[SplitName, UsableImages], duplicates: Duplicates, options: Options
) -> dict[SplitName, np.ndarray]:
    """Return which rows of `pixels` each split contains, in order."""
    images = usable["train"]
    train, held_out = choose_subsets(
        len(images.numbers),
        images.labels,
        select(images.source.test, images.numbers),
        seed=options.seed,
        classes=images.source.classes,
        duplicates=duplicates,
        holdout=options.holdout,
        limit=options.limit,
        per_class=options.per_class,
    )
    chosen: dict[SplitName, np.ndarray] = {"train": train}
    if len(held_out):
        chosen["holdout"] = held_out
    if "reference" in usable:
        count = len(usable["reference"].numbers)
        chosen["reference"] = np.random.default_rng(options.seed).permutation(count)
    return chosen


def _write_splits(
    usable: dict[SplitName, UsableImages], chosen: dict[SplitName, np.ndarray], folder: Path, options: Options
) -> tuple[str, dict[SplitName, Split]]:
    """Write the shards of all splits. Return the content hash, and the splits for the manifest."""
    classes = usable["train"].source.classes
    modality = usable["train"].modality
    kind = [] if usable["train"].kind == "images" else [usable["train"].kind]
    content = hashlib.sha256(json.dumps([*kind, modality.shape[-1], modality.shape[0], classes]).encode())
    splits: dict[SplitName, Split] = {}

    def encode(images: UsableImages, row: int) -> tuple[bytes, str]:
        """Return an item's file, and the hash of its content."""
        return modality.encode(images.item(row)), hashlib.sha256(images.content(row)).hexdigest()

    def samples(split: SplitName, images: UsableImages, labels: np.ndarray | None) -> Iterator[Sample]:
        rows = chosen[split]
        encoded = map_in_order(lambda row: encode(images, row), rows, options.workers)
        for row, (data, digest) in zip(rows, encoded, strict=True):
            key = f"{images.numbers[row]:08d}"
            label = None if labels is None else int(labels[row])
            content.update(f"{split} {key} {label} {digest}\n".encode())
            yield Sample(key, data, label, images.caption(row))

    total = sum(len(rows) for rows in chosen.values())
    with explain_disk_full(folder.parent, total * (modality.item_bytes + TAR_BYTES)):
        for split, rows in chosen.items():
            images = usable["reference" if split == "reference" else "train"]
            labels = images.labels if images.source.classes == classes else None
            shards = write_shards(samples(split, images, labels), folder, split, modality)

            per_class = None
            if labels is not None and classes is not None:
                per_class = np.bincount(labels[rows], minlength=len(classes)).tolist()
            splits[split] = Split(count=len(rows), per_class=per_class, shards=shards)
    return content.hexdigest(), splits


def _lengths(images: UsableImages, rows: np.ndarray) -> list[int] | None:
    """Count the training items of each length; None for images, which have none."""
    if images.source.modality == "images":
        return None
    lengths = [len(images.item(row)) for row in rows]
    return np.bincount(lengths, minlength=images.modality.shape[-1] + 1).tolist()


def _write_contact_sheet(folder: Path, manifest: Manifest) -> None:
    """Draw the first training items on a sheet, to see that they were read as they were meant."""
    modality = modality_of(manifest)
    shard = manifest.splits["train"].shards[0]
    samples = list(islice(read_shard(folder, shard), ON_SHEET))
    items = [modality.decode(sample.data, shard.file) for sample in samples]
    pictures = np.stack(items) if "images" in manifest.kinds else modality.render(modality.collate(items)).numpy()

    captions = [sample.caption or "" for sample in samples]
    if manifest.modality != CAPTIONED and manifest.classes is not None:
        captions = [manifest.classes[sample.label or 0] for sample in samples]
    sheet(pictures, captions if any(captions) else ()).save(folder / CONTACT_SHEET)


def _summary(
    usable: dict[SplitName, UsableImages], duplicates: Duplicates, options: Options, folders: list[str]
) -> SourceSummary:
    """Summarise the sources. Prefixes in `folders` are removed from paths."""
    size = usable["train"].pixels.shape[1]
    source_images = list(usable.values())

    sizes: Counter[tuple[int, int]] = Counter()
    skipped: Counter[str] = Counter()
    bad: list[str] = []
    notes: list[str] = []
    for images in source_images:
        sizes += images.sizes
        skipped += Counter(images.source.skipped)
        bad += [_without_folders(f"{image.where}: {image.reason}", folders) for image in images.unusable]
        notes += [_without_folders(note, folders) for note in images.source.notes]

    return SourceSummary(
        images=sum(images.source.count for images in source_images),
        skipped=dict(skipped),
        bad=bad,
        notes=notes,
        sizes={f"{width}x{height}": number for (width, height), number in sizes.most_common(MAX_SIZES)},
        other_sizes=sum(number for _, number in sizes.most_common()[MAX_SIZES:]),
        cropped=sum(number for (width, height), number in sizes.items() if width != height),
        resized=sum(number for shape, number in sizes.items() if min(shape) != size),
        brightest_of_16_bits=max(
            (images.brightest for images in source_images if images.brightest is not None), default=None
        ),
        near_limit=options.near or 0.0,
        equal=duplicates.equal,
        largest_group=duplicates.largest,
        near=duplicates.near,
        beside_test=int(duplicates.beside_test.sum()),
    )


def _without_folders(line: str, folders: list[str]) -> str:
    for folder in folders:
        line = line.removeprefix(folder)
    return line


def _train_encoder(folder: Path, manifest: Manifest, options: Options) -> EncoderRecord:
    """Train the feature extractor of a dataset without labels, and measure what it sees."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as for the classifier
    import safetensors.torch

    from scrimp_trainers.metrics.contrastive import train_encoder

    dataset = Dataset(folder, manifest.model_copy(update={"splits": _splits_in_memory(manifest)}))
    images, _, _ = dataset.images("train")
    held_out_images = dataset.images("holdout")[0] if "holdout" in manifest.splits else images[:0]
    state, degradations = train_encoder(images, held_out_images, seed=options.seed)
    data = safetensors.torch.save(state)
    write_atomic(folder / ENCODER_FILE, data)
    return EncoderRecord(
        file=ENCODER_FILE, sha256=hashlib.sha256(data).hexdigest(), degradations=degradations, seed=options.seed
    )


def _train_classifier(folder: Path, manifest: Manifest, classes: int, options: Options) -> ClassifierRecord:
    """Train the dataset's own feature extractor, and test whether it is better than chance."""
    # Set before torch is imported: threads that spin while waiting are twenty times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import safetensors.torch

    from scrimp_trainers.metrics.classifier import train_classifier

    # Train.
    dataset = Dataset(folder, manifest.model_copy(update={"splits": _splits_in_memory(manifest)}))
    images, labels = _labelled_images(dataset, "train")
    held_out_images = images[:0]
    held_out_labels = labels[:0]
    if "holdout" in manifest.splits:
        held_out_images, held_out_labels = _labelled_images(dataset, "holdout")
    state, accuracy = train_classifier(
        images, labels, held_out_images, held_out_labels, classes=classes, seed=options.seed
    )
    data = safetensors.torch.save(state)
    write_atomic(folder / CLASSIFIER_FILE, data)

    # Compare it with always predicting the largest class, and with guessing: of few held-out images none may be of the
    # largest class, and then one right answer would be enough.
    largest_class = int(np.bincount(labels).argmax())
    known_labels = held_out_labels if len(held_out_labels) else labels
    baseline = float((known_labels == largest_class).mean())
    chance = max(baseline, 1 / classes)
    scored_images = len(held_out_labels) or max(1, len(labels) // 10)
    better_than_chance = _is_better_than_chance(accuracy, chance, scored_images)

    return ClassifierRecord(
        file=CLASSIFIER_FILE,
        sha256=hashlib.sha256(data).hexdigest(),
        accuracy=accuracy,
        baseline=baseline,
        usable=better_than_chance or options.classifier is True,
        better_than_chance=better_than_chance,
        seed=options.seed,
    )


def _is_better_than_chance(accuracy: float, chance: float, count: int) -> bool:
    """Test whether an accuracy over `count` images is significantly above chance (binomial test)."""
    from scipy.stats import binom

    correct = round(accuracy * count)
    return bool(binom.sf(correct - 1, count, chance) < SIGNIFICANCE)


def _labelled_images(dataset: Dataset, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = dataset.images(split)
    assert labels is not None  # noqa: S101
    return images, labels


def _splits_in_memory(manifest: Manifest) -> dict[SplitName, Split]:
    """Keep the first shards of each split that fit into memory. Images are in random order, so they represent all."""
    max_images = CLASSIFIER_BYTES // modality_of(manifest).item_bytes
    splits: dict[SplitName, Split] = {}
    for name, split in manifest.splits.items():
        images_up_to = np.cumsum([shard.count for shard in split.shards])
        fitting = int((images_up_to <= max_images).sum())
        shards = split.shards[: max(1, fitting)]
        count = sum(shard.count for shard in shards)
        splits[name] = Split(count=count, per_class=split.per_class, shards=shards)
    return splits


def _default_name(out: Path) -> str:
    return printable(out.absolute().name)[: manifests.MAX_NAME_LENGTH]


def _provenance(source: str, images: Source, options: Options) -> dict[str, str | int | float | bool | None]:
    """Return what is needed to make the dataset again. Paths have no folders, so it is the same on every machine."""
    recorded = {name: value for name, value in asdict(options).items() if name not in ("name", "workers")}
    if options.reference is not None:
        recorded["reference"] = Path(options.reference).resolve().name
    for name in ("captions", "label_column"):
        if recorded[name] is None:
            del recorded[name]
    if options.classes is not None:
        recorded["classes"] = Path(options.classes).name
    return {"source": Path(source).resolve().name, "format": images.format, "images": images.count, **recorded}
