"""Scores per class of the leading trials: which classes a recipe does well, and which it does badly."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import posterior
from scrimp_platform.search.stats import Summary
from scrimp_trainers.common.metrics_log import MetricsRow


@dataclass(frozen=True)
class ClassScores:
    """The scores per class, summarised over the repeats at the last rung."""

    name: str
    """Name of the score: `fid`, `fd_classifier`."""
    classes: list[str]
    """Names of the classes, or their numbers if the dataset is gone."""
    trials: dict[int, list[Summary]]
    """For each trial, the best first, one summary per class."""
    means: dict[int, Summary]
    """For each trial, the summary of the mean over the classes."""


def class_scores(
    rows: Sequence[TrialRow], numbers: Collection[int], classes: Sequence[str] | None
) -> ClassScores | None:
    """Return the scores per class of the trials with these numbers; None if they were not scored per class."""
    lines_by_trial = {row.number: _last_lines(row) for row in rows if row.number in numbers}
    columns: set[str] = set()
    for lines in lines_by_trial.values():
        columns.update(*(line.scores for line in lines))
    match = _first_match(r"(fid\w*|fd_\w+)_class_mean", sorted(columns))
    if match is None:
        return None

    mean_column = match[0]
    name = match[1]
    possible_columns = [f"{name}_class_{i}" for i in range(len(columns))]
    class_columns = [column for column in possible_columns if column in columns]
    if not classes or len(classes) != len(class_columns):
        classes = [str(i) for i in range(len(class_columns))]

    scored = {number: lines for number, lines in lines_by_trial.items() if any(mean_column in o.scores for o in lines)}
    by_class = [_summaries(scored.values(), column) for column in class_columns]
    trials = {number: [summaries[place] for summaries in by_class] for place, number in enumerate(scored)}
    means = dict(zip(scored, _summaries(scored.values(), mean_column), strict=True))
    return ClassScores(name, list(classes), trials, means)


def _first_match(pattern: str, names: Sequence[str]) -> re.Match[str] | None:
    for name in names:
        match = re.fullmatch(pattern, name)
        if match:
            return match
    return None


def _last_lines(row: TrialRow) -> list[MetricsRow]:
    """Return the scores of a trial's repeats at the last rung; empty if it was not trained to the end."""
    if not row.finished:
        return []
    return [repeat.rungs[row.kimg] for repeat in row.counted]


def _summaries(trials: Iterable[Sequence[MetricsRow]], name: str) -> list[Summary]:
    """Summarise a score of each trial over its repeats, as the race does; lower is better."""
    samples: list[list[float]] = []
    for lines in trials:
        values = [line.value(name) for line in lines]
        samples.append([value for value in values if math.isfinite(value)])
    return posterior.of_scores(samples, "minimize").summaries
