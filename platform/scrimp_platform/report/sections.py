"""The plots of the report by section, each with a title and a caption."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup

from scrimp_platform.report import cost_plots, dependence, field_plots, hours, importance, plots
from scrimp_platform.report.classwise import ClassScores
from scrimp_platform.report.layers import read_layers
from scrimp_platform.report.ranking import TrialRow, typical_repeat
from scrimp_platform.report.scale import Scale
from scrimp_platform.search.records import Records, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log

NOT_SCORED = "Nothing has been scored yet."


@dataclass(frozen=True)
class Plot:
    """A figure with its title and caption; a figure without data has only a note."""

    title: str
    caption: str
    body: Markup | None
    wide: bool = False


def race(rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    """Return the plots of the race, and of what the trials trained to the end cost and achieve."""
    missing = "No trial has a finished repeat with a fresh seed yet."
    caption = (
        "Rings are repeats with fresh seeds, diamonds the trials' means with 95% intervals. A mean is drawn towards "
        "that of all, so it is not the middle of the rings. A cross is the score by which the search chose the trial: "
        "it is biased, and counts in no mean. A trial leaves the race when it is almost certainly not the best."
    )
    fresh = sum(row.fresh for row in rows)
    if fresh > plots.MAX_RACED:
        caption += f" Shown are the best {plots.MAX_RACED} of {fresh}."
    raced = {name: plots.raced_trials(rows, name) for name in space.objectives}
    result = [make_plot(f"{name} of the raced trials", caption, figure, missing) for name, figure in raced.items()]

    first, *others = space.objectives
    missing = "No trial has been trained to the end yet."
    front = "On the front are trials that are beaten in both by none that keeps the constraints."
    if not space.constraints:
        front = "On the front no trial is beaten in both."
    tradeoffs = {other: plots.tradeoff(rows, space, first, other) for other in others}
    result += [make_plot(f"{first} against {other}", front, figure, missing) for other, figure in tradeoffs.items()]
    caption = f"The time of a repeat and its score. {front}"
    result.append(make_plot(f"{first} against time", caption, plots.tradeoff(rows, space, first), missing))
    return result


def by_class(scores: ClassScores | None, rows: Sequence[TrialRow]) -> list[Plot]:
    """Return the plot of the scores within classes; none if there are no such scores."""
    if scores is None:
        return []
    caption = (
        "Lower is better; with 95% intervals by the model of the race. Fewer images make a distance larger: compare "
        "these with each other, not with the score of all classes together."
    )
    figure = plots.class_bars(scores, plots.leader_colours(rows))
    return [make_plot(f"{scores.name} by class", caption, figure, NOT_SCORED, wide=True)]


def training(
    folder: SweepFolder, trials: Sequence[Trial], rows: Sequence[TrialRow], space: Space, scales: Sequence[Scale]
) -> list[Plot]:
    """Return the plots over kimg: scores of all trials beside those of real images, and losses of the leaders."""
    leaders = plots.leader_colours(rows)
    caption = (
        "One thin line per repeat; other trials are grey. Thick: mean of the repeats that count, with its 95% band "
        "where there are enough seeds."
    )
    others = len(trials) - len(leaders)
    if others > plots.MAX_CURVES:
        caption += f" Of the {others:,} other trials {plots.MAX_CURVES} are drawn."
    result = []
    for name in space.objectives:
        real = {mark.short: mark.value for scale in scales if scale.name == name for mark in scale.real}
        figure = plots.learning_curves(trials, rows, space, name, real)
        result.append(make_plot(f"{name} over training", caption, figure, NOT_SCORED))
        fewer = space.samples_at(0)
        if fewer < space.scoring.samples:
            figure = plots.learning_curves(trials, rows, space, name, samples=fewer)
            own = f"{caption} Scores of so few samples are compared with each other, and with no others."
            result.append(make_plot(f"{name} of {fewer:,} samples over training", own, figure, NOT_SCORED))

    curves = {}
    for row in rows:
        if row.number in leaders:
            files = [folder.repeat(row.number, repeat.repeat) for repeat in row.trial.repeats]
            curves[row.number] = [metrics_log.read_rows(repeat_files.metrics) for repeat_files in files]
    caption = "All repeats of the leading trials."
    result.append(make_plot("Training loss", caption, plots.training_loss(curves, rows), "No leader yet."))
    return result


def cost(known: Records) -> list[Plot]:
    """Return the plots of where the device-hours went: by phase, and by node over time."""
    caption = (
        "Training is the images up to the last rung at the speed before each rung; sampling and scoring is the other "
        "time until then. The rest is starting, loading, and what was trained after a last rung or lost."
    )
    figure = cost_plots.phase_hours(hours.by_phase(known))
    result = [make_plot("Device-hours by phase", caption, figure, "Nothing has been trained yet.")]

    work = hours.by_node([*known.repeats, *known.preparations])
    if work is None:
        missing = "No record says yet when and where repeats were trained."
        return [*result, Plot("Nodes at work", missing, None)]
    caption = f"Repeats at work on each node. On average a node has worked for {work.share:.0%} of the time."
    if len(work.nodes) == hours.MAX_NODES:
        caption += f" Shown are the {hours.MAX_NODES} that have worked longest."
    return [*result, make_plot("Nodes at work", caption, cost_plots.node_work(work), "")]


def layers(folder: SweepFolder, rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    """Return the plot of the densities of the leaders' layers; none if no leader is sparse."""
    colours = plots.leader_colours(rows)
    densities = {}
    for row in rows:
        if row.number in colours:
            typical = typical_repeat(row, space)
            densities[row.number] = read_layers(folder.repeat(row.number, typical.repeat))
    sparse = {number: own for number, own in densities.items() if own}
    if not sparse:
        return []
    caption = "Of the leading trials that are sparse, at the end of training. Rings are layers without a mask."
    return [make_plot("Density by layer", caption, cost_plots.layer_densities(sparse, colours), "", wide=True)]


def search(trials: Sequence[Trial], rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    """Return the plots of the search: scores by trial, and how they depend on the fields."""
    stopped = "Scores of trials that were stopped are those of an earlier rung."
    if not space.is_scored_in_full(0):
        stopped = "Trials that were stopped are not drawn: their scores are of fewer samples."
    caption = f"The first repeat of each trial. {stopped}"
    histories = {name: plots.history(trials, rows, space, name) for name in space.objectives}
    result = [make_plot(f"{name} by trial", caption, figure, NOT_SCORED) for name, figure in histories.items()]

    title = "Field importance"
    importances = importance.field_importances(trials, space)
    if isinstance(importances, str):
        result.append(Plot(title, importances, None))
    else:
        caption = "Optuna's PED-ANOVA over all trials that have a score. With few trials it is only a hint."
        result.append(make_plot(title, caption, field_plots.importance_bars(importances), NOT_SCORED))
        result += dependences(trials, space, list(importances), plots.infeasible(rows))

    caption = "One line per trial: blue is good, orange is worse, pale grey was not trained to the end."
    if space.constraints:
        caption += " Violet and dotted is infeasible."
    if len(trials) > field_plots.MAX_LINES:
        caption += f" Of {len(trials):,} trials {field_plots.MAX_LINES} are drawn, the best one among them."
    first = next(iter(space.objectives))
    figure = field_plots.parallel_coordinates(rows, space, first)
    result.append(make_plot("Searched fields", caption, figure, NOT_SCORED, wide=True))
    return result


def dependences(
    trials: Sequence[Trial], space: Space, fields: Sequence[str], infeasible: Collection[int] = ()
) -> list[Plot]:
    """Return how the score depends on the most important fields."""
    if space.arms:
        return [Plot("Score by field", "Left out: arms are compared as they are.", None)]
    caption = (
        "What the curve model expects at the last rung if this field alone changes, averaged over the trials' other "
        "fields, with a 95% band for how sure it is. Ticks are the trials; far from them it is a guess. The model "
        "levels scores much worse than the median, so bad values look better than they are."
    )
    result = []
    for own in dependence.dependences(trials, space, fields):
        figure = field_plots.partial_dependence(own, space.search[own.path], infeasible)
        result.append(make_plot(f"{own.objective} by {own.path}", caption, figure, ""))
    return result


def make_plot(title: str, caption: str, figure: go.Figure, missing: str, wide: bool = False) -> Plot:
    """Return a figure as a part of the page; one without data as the note `missing`."""
    if not figure.data:
        return Plot(title, missing, None)
    config = {"displayModeBar": False, "responsive": True}
    name = re.sub(r"\W+", "-", title)
    body = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return Plot(title, caption, Markup(body), wide)  # noqa: S704 - plotly escapes what is in the figure
