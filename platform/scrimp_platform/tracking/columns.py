"""What MLflow's tables and charts show of a sweep and of its trials, beside what their repeats measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scrimp_platform.report import leaderboard
from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import records, stats
from scrimp_platform.search.records import Records, Repeat
from scrimp_platform.search.stats import Summary
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.metrics.names import COST

CURVE = "curve/"
"""Begins the names of a trial's curves over kimg; MLflow shows them in a section of their own."""
NOT_OF_SAMPLES = (*COST, "prepared_device_hours", "loss", "samples")
"""What is measured at a rung whatever the number of samples."""
SHOWN_TRIALS = 5
"""Trials in a sweep's description."""


@dataclass(frozen=True)
class Point:
    """Metrics of the sweep from the end of a repeat on."""

    ended: float
    """When that was, in Unix seconds."""
    gpu_minutes: int
    """The time that the devices had worked for the sweep by then: MLflow's axes of steps are whole numbers."""
    metrics: Mapping[str, float]


def shown(space: Space) -> list[str]:
    """Return the names of the metrics that the list of runs shows, in this order."""
    names = [f"{score}{part}" for score in space.objectives for part in ("_mean", "_ci_low", "_ci_high")]
    names += [f"{score}_mean" for score in space.constraints]
    return [*names, "probability_best", "repeats", "kimg", "gpu_hours", "parameters"]


def of_trial(row: TrialRow, space: Space) -> dict[str, float]:
    """Return the metrics of a trial: its scores with fresh seeds, by which it was chosen, and what it costs."""
    trial = row.trial
    last_rung = space.budget.rungs_kimg[-1]
    fresh = records.unbiased_repeats(trial, space, last_rung)
    judged = [repeat for repeat in trial.finished_repeats(last_rung) if repeat not in fresh]
    metrics: dict[str, float] = {}
    for name in [*space.objectives, *space.constraints]:
        summary = stats.summarize(records.finite_scores(fresh, name, last_rung))
        if row.fresh and name in row.summaries:  # by the model of the race
            summary = row.summaries[name]
        metrics |= _scores(name, summary)
        metrics[f"{name}_chosen_at"] = stats.summarize(records.finite_scores(judged, name, last_rung)).mean

    metrics |= {
        "kimg": row.kimg,
        "gpu_hours": row.gpu_hours,
        "parameters": row.parameters,
        "probability_best": row.probability_best,
    }
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return finite | {"repeats": float(sum(repeat.status == "finished" for repeat in trial.repeats))}


def name_at(name: str, kimg: float, space: Space) -> str:
    """Return the name of what is measured at a rung: a score of fewer samples than the last rung's is another one."""
    if space.is_scored_in_full(kimg) or name in NOT_OF_SAMPLES:
        return name
    return f"of_{space.samples_at(kimg)}_samples/{name}"


def with_names(line: MetricsRow, space: Space) -> MetricsRow:
    """Return a line of `metrics.jsonl` with the names that its scores have in MLflow."""
    if line.rung is None:
        return line
    return replace(line, scores={name_at(name, line.rung, space): value for name, value in line.scores.items()})


def mean_curves(row: TrialRow, space: Space) -> list[tuple[float, dict[str, float]]]:
    """Return the means of a trial's scores with their 95% intervals at each rung in kimg, over the repeats that count.

    Their names begin with `curve/`, which sets them apart from those of `of_trial`, whose steps are repeats.
    """
    points = []
    for rung in sorted({rung for repeat in row.counted for rung in repeat.rungs}):
        metrics: dict[str, float] = {}
        for name in [*space.objectives, *space.constraints]:
            summary = stats.summarize(records.finite_scores(row.counted, name, rung))
            metrics |= _scores(f"{CURVE}{name_at(name, rung, space)}", summary)
        points.append((rung, {name: value for name, value in metrics.items() if math.isfinite(value)}))
    return points


def of_sweep(known: Records, rows: Sequence[TrialRow], space: Space) -> dict[str, float]:
    """Return the metrics of a sweep: what it has done, and the scores of its recommended trial, or its leader."""
    ended = [work for work in [*known.repeats, *known.preparations] if not work.open]
    metrics = {
        "trials": float(len(rows)),
        "repeats": float(sum(repeat.status == "finished" for repeat in known.repeats)),
        "gpu_hours": sum(work.device_hours for work in ended),
    }
    best = leaderboard.best(rows)
    if best:
        metrics["best_trial"] = float(best.number)
        metrics["parameters"] = best.parameters
        metrics["probability_best"] = best.probability_best
        for name in space.objectives:
            metrics |= _scores(name, best.summaries[name])
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def best_so_far(known: Records, rows: Sequence[TrialRow], space: Space) -> list[Point]:
    """Return the best score of the search, by objective, at the end of each trial's first training to the last rung."""
    last_rung = space.budget.rungs_kimg[-1]
    infeasible = {row.number for row in rows if row.status == "infeasible"}
    best: dict[str, float] = {}
    hours = 0.0
    points = []
    for repeat in sorted((repeat for repeat in known.repeats if repeat.ended), key=_ended):
        hours += repeat.device_hours
        if repeat.repeat or repeat.trial in infeasible:
            continue
        for name, direction in space.objectives.items():
            score = repeat.score(name, last_rung)
            if math.isfinite(score):
                better = min if direction == "minimize" else max
                best[f"{name}_best_so_far"] = better(score, best.get(f"{name}_best_so_far", score))
        if best:
            points.append(Point(_ended(repeat), round(60 * hours), dict(best)))
    return points


def description(rows: Sequence[TrialRow], space: Space) -> str:
    """Return in Markdown what a sweep has found, for the head of its page."""
    ranked = [row for row in rows if row.finished][:SHOWN_TRIALS]
    if not ranked:
        return leaderboard.verdict(rows, space)
    names = [*space.objectives]
    lines = [
        leaderboard.verdict(rows, space),
        "",
        f"| trial | status | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for row in ranked:
        scores = [leaderboard.score_text(row, name) for name in names]
        lines.append(f"| {row.number} | {leaderboard.status_text(row)} | {' | '.join(scores)} |")
    lines += ["", "`report.html` among the artifacts has the plots. Steps of the charts here are GPU-minutes."]
    return "\n".join(lines)


def _scores(name: str, summary: Summary) -> dict[str, float]:
    return {f"{name}_mean": summary.mean, f"{name}_ci_low": summary.low, f"{name}_ci_high": summary.high}


def _ended(repeat: Repeat) -> float:
    return repeat.ended or 0.0
