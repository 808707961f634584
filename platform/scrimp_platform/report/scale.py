"""What a Fréchet distance of a sweep means: how far apart real images are by the same measure, beside the scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scrimp_platform.report import formatting
from scrimp_platform.report.ranking import TrialRow
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics.names import in_full, named, real_name
from scrimp_trainers.recipe.scoring import Scoring

NOT_MEASURED = (
    "How far apart real images are was not recorded: the sweep was scored before Scrimp measured it. "
    "scrimp evaluate measures it for a model."
)

WORDS = {
    "classifier": "a small classifier that was trained on this dataset's labels when it was prepared",
    "contrastive": "a small network that was trained on this dataset without labels when it was prepared",
    "inception": "Inception-v3, as FID is defined",
}
"""What extractors are, in words; others bear a name that says it."""

REAL_WORDS = {
    "real": ("real against real", "real against real: reference images against other reference images"),
    "holdout": ("held-out images", "held-out images against the reference images"),
}
"""The distances of real images, in short and in words."""


@dataclass(frozen=True)
class Mark:
    """One distance, and the images that it was measured on."""

    short: str
    what: str
    text: str
    images: str
    value: float


@dataclass(frozen=True)
class Scale:
    """The scale of one score."""

    name: str
    about: str
    real: list[Mark]
    """Distances of real images; empty if they were not recorded."""
    trials: list[Mark]
    """Distances of samples."""


def scales(rows: Sequence[TrialRow], space: Space, manifest: Manifest | None) -> list[Scale]:
    """Return the scale of each Fréchet distance among the objectives; nothing before the first score."""
    scored = _first_scored(rows)
    if scored is None:
        return []
    measured = []
    for scoring in space.scoring.each:
        name = named("fd", scoring.extractor)
        if space.scoring.further:
            name = in_full(name, scoring.extractor)
        if name in space.objectives:
            measured.append(
                Scale(
                    name, about(name, scoring, manifest), _real(scoring, space, scored, manifest), _trials(rows, name)
                )
            )
    return measured


def _first_scored(rows: Iterable[TrialRow]) -> MetricsRow | None:
    """Return the scores of the best trial that has some: what they say of real images is the same in all."""
    lasts = (repeat.last for row in rows for repeat in row.counted)
    return next((last for last in lasts if last and last.scores), None)


def about(name: str, scoring: Scoring, manifest: Manifest | None) -> str:
    """Say what the distance is, and with what it can be compared."""
    features = WORDS.get(scoring.extractor, f"the feature extractor {scoring.extractor}")
    if scoring.extractor == "classifier" and manifest and manifest.classifier:
        features += f" ({manifest.classifier.accuracy:.0%} right on images that it has not seen)"
    text = (
        f"{name} is the Fréchet distance between samples and reference images: how much the means and covariances of "
        f"their features differ. The features are those of {features}. Lower is better, and 0 would mean that both "
        "agree. "
    )
    if scoring.extractor != "inception":
        text += "It is not FID. "
    text += (
        f"It can be compared only where dataset, extractor and number of samples ({scoring.samples:,}) are the same: "
        "of fewer images it comes out larger. A score near those of real images is as good as it can tell."
    )
    return text


def _real(scoring: Scoring, space: Space, scored: MetricsRow, manifest: Manifest | None) -> list[Mark]:
    """Return the distances of real images that the scores of a repeat contain."""
    values = {}
    for which in REAL_WORDS:
        name = real_name(scoring.extractor, which)
        values[which] = scored.value(in_full(name, scoring.extractor) if space.scoring.further else name)
    return real_marks(scoring.samples, values, scored.value("reference_samples"), manifest)


def real_marks(
    samples: int, values: Mapping[str, float], reference_samples: float, manifest: Manifest | None
) -> list[Mark]:
    """Return the marks of distances of real images, measured as so many samples are.

    Parameters
    ----------
    values
        The distances, `real` and `holdout`; one that is not known is missing or NaN.
    reference_samples
        Images in the reference set.
    """
    total = reference_samples
    part = min(samples, int(total) // 2) if math.isfinite(total) else 0
    held_out = manifest.splits.get("holdout") if manifest else None
    images = {
        "real": f"{part:,} at random against the {int(total) - part:,} others" if part else "",
        "holdout": f"{min(samples, held_out.count):,} against {int(total):,}" if held_out and part else "",
    }
    marks = []
    for which, (short, what) in REAL_WORDS.items():
        value = values.get(which, math.nan)
        if math.isfinite(value):
            marks.append(Mark(short, what, formatting.number(value), images[which], value))
    return marks


def _trials(rows: Sequence[TrialRow], name: str) -> list[Mark]:
    """Return the means of the first trial and of the last one that was trained to the end."""
    finished = [row for row in rows if row.finished and math.isfinite(row.summaries[name].mean)]
    if not finished:
        return []
    by_place = {"first on the leaderboard": finished[0]}
    if len(finished) > 1:
        by_place["the worst that was trained to the end"] = max(finished, key=lambda row: row.summaries[name].mean)
    marks = []
    for what, row in by_place.items():
        summary = row.summaries[name]
        last = row.counted[0].last
        samples = last.value("samples") if last else math.nan
        images = f"{samples:,.0f} samples against the reference" if math.isfinite(samples) else ""
        trial = f"trial {row.number}"
        marks.append(Mark(trial, f"{trial}, {what}", formatting.interval(summary), images, summary.mean))
    return marks
