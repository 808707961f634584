"""Scores within the classes of the trials that lead: which classes a recipe is good at, and which it gives up."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import stats
from scrimp_platform.search.stats import Summary


@dataclass(frozen=True)
class ClassWise:
    """The scores within the classes, over the repeats at the last rung."""

    name: str
    """What was measured: `fid`, `fd_classifier`."""
    classes: list[str]
    """Names of the classes, or their numbers where the dataset is gone."""
    trials: dict[int, list[Summary]]
    """For each trial, the best first, one summary a class."""
    means: dict[int, Summary]
    """For each of them, that of the mean over the classes."""


def gather(rows: Sequence[TrialRow], chosen: Collection[int], classes: Sequence[str] | None) -> ClassWise | None:
    """Gather the scores of the chosen trials; none if they were not scored by class."""
    lines = {row.number: _last(row) for row in rows if row.number in chosen}
    names = {name for repeats in lines.values() for line in repeats for name in line}
    means = (re.fullmatch(r"(fid|fd_\w+)_class_mean", name) for name in sorted(names))
    found = next(filter(None, means), None)
    if found is None:
        return None
    mean, name = found[0], found[1]
    scored = {number: repeats for number, repeats in lines.items() if any(mean in line for line in repeats)}
    labels = [label for label in (f"{name}_class_{i}" for i in range(len(names))) if label in names]
    known = classes if classes and len(classes) == len(labels) else [str(i) for i in range(len(labels))]
    trials = {number: [_summary(repeats, label) for label in labels] for number, repeats in scored.items()}
    return ClassWise(name, list(known), trials, {number: _summary(repeats, mean) for number, repeats in scored.items()})


def _last(row: TrialRow) -> list[Mapping[str, Any]]:
    return [repeat.scores[row.kimg] for repeat in row.counted if row.finished]


def _summary(lines: Sequence[Mapping[str, Any]], name: str) -> Summary:
    values = [float(line[name]) for line in lines if name in line]
    return stats.summarize([value for value in values if math.isfinite(value)])
