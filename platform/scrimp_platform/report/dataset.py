"""What `scrimp prepare` understood of its source, in words."""

from collections.abc import Iterator

from scrimp_trainers.data.manifest import Classifier, Manifest, Summary

MOST_NAMED = 20
"""Classes and unusable images that are named."""
LARGE_GROUP, LARGE_SHARE = 20, 0.01
"""A group of near images with more than both is pointed out."""
DARK = 64
"""Scaled 16-bit images whose largest value is below this probably hold fewer bits."""


def lines(facts: Manifest) -> Iterator[str]:
    """Yield what a person should check, a line each."""
    summary = facts.summary
    if facts.classes:
        yield f"classes: {_classes(facts)}"
        yield from _untrained(facts)
    if summary.sizes:
        yield f"images: {_sizes(summary, facts.size)}"
    for reason, count in summary.skipped.items():
        yield f"skipped: {count:,} x {reason}"
    if summary.bad:
        yield f"left out: {len(summary.bad):,} unusable images: {_some(summary.bad, '; ')}"
    yield from summary.notes
    if summary.brightest_of_16_bits is not None:
        yield f"16-bit images: scaled to 8 bits; {_brightest(summary.brightest_of_16_bits)}"
    yield f"duplicates: {_duplicates(summary)}"
    if summary.largest_group > max(LARGE_GROUP, LARGE_SHARE * summary.images):
        yield (
            f"WARNING: {summary.largest_group:,} images are linked by such pairs, so all of them are held out or none. "
            "If they are not copies of each other, choose a smaller --near."
        )
    if facts.classifier:
        yield from _classifier(facts.classifier)


def _some(names: list[str], separator: str = ", ") -> str:
    more = len(names) - MOST_NAMED
    return separator.join(names[:MOST_NAMED]) + (f"{separator}and {more:,} more" if more > 0 else "")


def _classes(facts: Manifest) -> str:
    """Name the classes with their images, those held out included."""
    own = [split.per_class or [] for name, split in facts.splits.items() if name != "reference"]
    counts = [sum(column) for column in zip(*own, strict=True)]
    return _some([f"{name} {count:,}" for name, count in zip(facts.classes or [], counts, strict=True)])


def _untrained(facts: Manifest) -> Iterator[str]:
    """Point out classes of which no image is trained on."""
    per_class = facts.splits["train"].per_class or []
    names = [name for name, count in zip(facts.classes or [], per_class, strict=True) if count == 0]
    if names:
        yield f"WARNING: no training images of {_some(names)}"


def _sizes(summary: Summary, size: int) -> str:
    sizes = [f"{count:,} of {shape}" for shape, count in summary.sizes.items()]
    if summary.other_sizes:
        sizes.append(f"{summary.other_sizes:,} of other sizes")
    done = f"{summary.cropped:,} cropped to their centre square, {summary.resized:,} resized to {size}x{size}"
    return f"{', '.join(sizes)}; {done}"


def _brightest(value: int) -> str:
    if value >= DARK:
        return f"the largest value is {value} of 255"
    return f"the largest value is only {value} of 255: if they hold fewer bits, spread them over all 16 first"


def _duplicates(summary: Summary) -> str:
    text = f"{summary.equal:,} images equal an earlier one"
    if summary.near_limit:
        text += f", {summary.near:,} are near others (mean difference of at most {summary.near_limit:g} of 255)"
    if summary.beside_test:
        return f"{text}; {summary.beside_test:,} that repeat the source's own test images are not trained on"
    return f"{text}; those that repeat each other are on one side of the split"


def _classifier(classifier: Classifier) -> Iterator[str]:
    yield (
        f"classifier: {classifier.accuracy:.1%} of the held-out images are right; "
        f"{classifier.baseline:.1%} would be if it always named the largest class"
    )
    if not classifier.better_than_chance:
        use = "scores use it all the same" if classifier.usable else "scores do not use it"
        yield f"WARNING: the classifier is no better than always naming the largest class; {use}. Check the labels."
