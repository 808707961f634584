"""A summary of a prepared dataset: what `scrimp prepare` found in its source, and what to check."""

from collections.abc import Iterator

from scrimp_trainers.data.manifest import ClassifierRecord, EncoderRecord, Manifest, SourceSummary

MAX_NAMES = 20
"""Number of classes or unusable images that are listed by name."""
MAX_SIZES = 5
"""Number of original sizes that are listed."""
SMALL_CLASS = 10
SMALL_CLASS_FRACTION = 0.01
"""A class gets a warning if it has fewer training images than both this and this fraction of the largest class."""
LARGE_GROUP = 20
LARGE_GROUP_FRACTION = 0.01
"""A group of near duplicates gets a warning if it exceeds both this size and this fraction of the images."""
DARK_BELOW = 64
"""Scaled 16-bit images whose largest value is below this probably use fewer than 16 bits."""


def summary_lines(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of the summary, warnings included."""
    summary = manifest.summary
    if manifest.classes:
        yield f"classes: {_classes(manifest)}"
        yield from _warn_of_empty_classes(manifest)
        yield from _warn_of_small_classes(manifest)
    if summary.sizes:
        yield f"images: {_sizes(summary, manifest.size)}"
    for reason, count in summary.skipped.items():
        yield f"skipped: {count:,} x {reason}"
    if summary.bad:
        yield f"left out: {len(summary.bad):,} unusable images: {_first_names(summary.bad, '; ')}"
    yield from summary.notes
    if summary.brightest_of_16_bits is not None:
        yield f"16-bit images: scaled to 8 bits; {_brightest(summary.brightest_of_16_bits)}"
    yield f"duplicates: {_duplicates(summary)}"
    if summary.largest_group > max(LARGE_GROUP, LARGE_GROUP_FRACTION * summary.images):
        yield (
            f"WARNING: {summary.largest_group:,} images are linked by such pairs, so all of them are held out or none. "
            "If they are not copies of each other, choose a smaller --near."
        )
    if manifest.classifier:
        yield from _classifier(manifest.classifier)
    if manifest.encoder:
        yield from _encoder(manifest.encoder)


def _first_names(names: list[str], separator: str = ", ") -> str:
    """Join the first names; the others are only counted."""
    text = separator.join(names[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    if more > 0:
        text += f"{separator}and {more:,} more"
    return text


def _classes(manifest: Manifest) -> str:
    """List the classes with their numbers of images, including held-out ones."""
    splits = [split.per_class or [] for name, split in manifest.splits.items() if name != "reference"]
    counts = [sum(split_counts) for split_counts in zip(*splits, strict=True)]
    texts = [f"{name} {count:,}" for name, count in zip(manifest.classes or [], counts, strict=True)]
    return _first_names(texts)


def _warn_of_empty_classes(manifest: Manifest) -> Iterator[str]:
    """Yield a warning if there are classes without training images."""
    per_class = manifest.splits["train"].per_class or []
    names = [name for name, count in zip(manifest.classes or [], per_class, strict=True) if count == 0]
    if names:
        yield f"WARNING: no training images of {_first_names(names)}"


def _warn_of_small_classes(manifest: Manifest) -> Iterator[str]:
    """Yield a warning of classes so small beside the largest that their folders may hold something else."""
    per_class = manifest.splits["train"].per_class or [0]
    limit = min(SMALL_CLASS, SMALL_CLASS_FRACTION * max(per_class))
    counts = zip(manifest.classes or [], per_class, strict=True)
    small = [f"{name} {count:,}" for name, count in counts if 0 < count < limit]
    if small:
        yield (
            f"WARNING: hardly any training images of {_first_names(small)}. If that is no class, prepare the folders "
            "of the others, or take all images with --flat"
        )


def _sizes(summary: SourceSummary, size: int) -> str:
    shapes = list(summary.sizes.items())
    sizes = [f"{count:,} of {shape}" for shape, count in shapes[:MAX_SIZES]]
    others = summary.other_sizes + sum(count for _, count in shapes[MAX_SIZES:])
    if others:
        sizes.append(f"{others:,} of other sizes")
    changes = f"{summary.cropped:,} cropped to their centre square, {summary.resized:,} resized to {size}x{size}"
    return f"{', '.join(sizes)}; {changes}"


def _brightest(value: int) -> str:
    if value >= DARK_BELOW:
        return f"the largest value is {value} of 255"
    return f"the largest value is only {value} of 255: if they use fewer than 16 bits, rescale them to 16 first"


def _duplicates(summary: SourceSummary) -> str:
    text = f"{summary.equal:,} images equal an earlier one"
    if summary.near_limit:
        text += f", {summary.near:,} are near others (mean difference of at most {summary.near_limit:g} of 255)"
    if summary.beside_test:
        return f"{text}; {summary.beside_test:,} duplicates of the source's own test images are not trained on"
    return f"{text}; duplicates of each other are on one side of the split"


def _classifier(classifier: ClassifierRecord) -> Iterator[str]:
    yield (
        f"classifier: {classifier.accuracy:.1%} accuracy on the held-out images; "
        f"always predicting the largest class gives {classifier.baseline:.1%}"
    )
    if not classifier.better_than_chance:
        use = "scores use it all the same" if classifier.usable else "scores do not use it"
        yield f"WARNING: the classifier is no better than always predicting the largest class; {use}. Check the labels."


def _encoder(encoder: EncoderRecord) -> Iterator[str]:
    ratios = ", ".join(f"{name} {ratio:.1f}" for name, ratio in encoder.degradations.items())
    yield (
        "contrastive: trained without labels; times as far from the training images as the held-out images are: "
        f"{ratios}"
    )
    if encoder.unseen:
        yield f"WARNING: it does not see {' and '.join(encoder.unseen)}, so scores do not use it."
