"""The plots of scores: one function per figure. Those of the searched fields are in `field_plots.py`."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from scrimp_platform.report import formatting
from scrimp_platform.report.classwise import ClassScores
from scrimp_platform.report.figures import (
    COLOURS,
    GREY,
    INK,
    PALE,
    PURPLE,
    Point,
    blank,
    dots,
    error_bars,
    faint,
    joined,
    line,
    set_range,
    spread,
)
from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import posterior, records, stats
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.stats import Direction
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow

MIN_FREEDOM = 3
"""Degrees of freedom of the noise from which on a mean's band is drawn: with fewer it may be wider than the plot."""
MAX_CURVES = 200
"""Trials other than the leaders whose learning curves are drawn."""
MAX_RACED = 30
"""Trials of the race that are drawn, the best ones."""
FAR_BELOW = 30
"""A level is not drawn if the lowest score is more than so many times as high."""
INFEASIBLE = "infeasible"
"""The status, and the name in the legends, of trials that violate a constraint."""


def leader_colours(rows: Sequence[TrialRow]) -> dict[int, str]:
    """Return a colour for each raced trial, or if there was no race, for the three best."""
    leaders = [row for row in rows if row.raced]
    if not leaders:
        leaders = [row for row in rows if row.finished][:3]
    return {row.number: colour for row, colour in zip(leaders, COLOURS, strict=False)}


def infeasible(rows: Sequence[TrialRow]) -> set[int]:
    """Return the numbers of the trials that violate a constraint."""
    return {row.number for row in rows if row.status == INFEASIBLE}


def history(trials: Sequence[Trial], rows: Sequence[TrialRow], space: Space, objective: str) -> go.Figure:
    """Plot the score of each trial's first repeat in the order of the search, and the best so far.

    A trial that was stopped where fewer samples are scored than at the last rung is not drawn.
    """
    last_rung = space.budget.rungs_kimg[-1]
    broken_numbers = infeasible(rows)
    complete: list[Point] = []
    broken: list[Point] = []
    stopped: list[Point] = []
    for trial in trials:
        scores = _scores(trial.repeats[0], objective) if trial.repeats else []
        if not scores:
            continue
        kimg, value = scores[-1]
        if not space.is_scored_in_full(kimg):
            continue
        points = stopped
        if trial.number in broken_numbers:
            points = broken
        elif kimg == last_rung:
            points = complete
        points.append((trial.number, value, f"trial {trial.number} at {kimg:g} kimg: {formatting.number(value)}"))

    better = min if space.objectives[objective] == "minimize" else max
    best_values = itertools.accumulate((value for _, value, _ in complete), better)
    best = [(point[0], value, "") for point, value in zip(complete, best_values, strict=True)]

    figure = blank("trial", objective)
    line(figure, best, COLOURS[0], 2, name="best so far", line_shape="hv", hoverinfo="skip")
    dots(figure, complete, COLOURS[0], name=f"trained to {last_rung:g} kimg")
    dots(figure, broken, PURPLE, "square-open", name=INFEASIBLE)
    dots(figure, stopped, GREY, "x-thin-open", name="stopped earlier")
    if len(trials) <= 10:
        figure.update_xaxes(dtick=1)
    return set_range(figure, [value for _, value, _ in complete + broken + stopped])


def learning_curves(
    trials: Sequence[Trial],
    rows: Sequence[TrialRow],
    space: Space,
    objective: str,
    real: Mapping[str, float] | None = None,
    samples: int | None = None,
) -> go.Figure:
    """Plot the scores of all repeats over training; leaders in colour, with their mean and its 95% band.

    Of the other trials at most `MAX_CURVES` are drawn. `real` holds scores of real images, which are drawn as levels.
    Only the rungs are drawn that score so many samples, by default as many as the last one.
    """
    samples = samples or space.scoring.samples
    figure = blank("thousands of images seen (kimg)", objective)
    colours = leader_colours(rows)
    broken = infeasible(rows)
    others = spread([trial for trial in trials if trial.number not in colours], MAX_CURVES)
    values: list[float] = []

    def draw(drawn: Sequence[Trial], colour: str, **style: Any) -> None:
        """Draw the curves of all repeats of these trials as one line with gaps."""
        curves: list[list[Point]] = []
        for repeat in (repeat for trial in drawn for repeat in trial.repeats):
            scores = [point for point in _scores(repeat, objective) if space.samples_at(point[0]) == samples]
            curves.append([(kimg, value, _label(repeat, value)) for kimg, value in scores])
            values.extend(value for _, value, _ in curves[-1])
        line(figure, joined(filter(None, curves)), colour, 1, mode="lines+markers", marker_size=4, opacity=0.7, **style)

    # The leaders are drawn last, on top of the others.
    draw([trial for trial in others if trial.number not in broken], PALE)
    draw([trial for trial in others if trial.number in broken], PURPLE, name=INFEASIBLE, line_dash="dot")
    for trial in trials:
        if trial.number in colours:
            dash = "dot" if trial.number in broken else "solid"
            draw([trial], colours[trial.number], line_dash=dash)
    leaders = [row for row in rows if row.number in colours]
    rungs = [kimg for trial in trials for repeat in trial.repeats for kimg in repeat.rungs]
    rungs = sorted({kimg for kimg in rungs if space.samples_at(kimg) == samples})
    _means_with_bands(figure, leaders, rungs, objective, space.objectives[objective], colours)
    if values and real:
        # A level far below all scores would only squeeze these.
        levels = {what: level for what, level in real.items() if level > min(values) / FAR_BELOW}
        _draw_levels(figure, levels, (min(rungs), max(rungs)))
        values += levels.values()
    return set_range(figure, values)


def _draw_levels(figure: go.Figure, levels: Mapping[str, float], ends: tuple[float, float]) -> None:
    """Draw horizontal lines, each with its name in the legend."""
    for (what, level), dash in zip(levels.items(), ("dash", "dot"), strict=False):
        points = [(end, level, f"{what}: {formatting.number(level)}") for end in ends]
        line(figure, points, INK, 1.5, name=what, line_dash=dash)


def _means_with_bands(
    figure: go.Figure,
    rows: Sequence[TrialRow],
    rungs: Sequence[float],
    objective: str,
    direction: Direction,
    colours: Mapping[int, str],
) -> None:
    """Draw the mean of each trial's counted repeats over these rungs, with a band where it says something."""
    finished = [[repeat for repeat in row.counted if repeat.status == "finished"] for row in rows]
    by_rung = {}
    for kimg in rungs:
        samples = [records.finite_scores(repeats, objective, kimg) for repeats in finished]
        by_rung[kimg] = posterior.of_scores(samples, direction)
    has_bands = all(own.freedom >= MIN_FREEDOM for own in by_rung.values())

    for place, row in enumerate(rows):
        summaries = {kimg: own.summaries[place] for kimg, own in by_rung.items() if own.summaries[place].n}
        colour = colours[row.number]
        if has_bands and row.repeat_count > 1:
            # The outline of the band: along the lower ends of the intervals, and back along the upper ends.
            lows = [summary.low for summary in summaries.values()]
            highs = [summary.high for summary in summaries.values()]
            band = {"fill": "toself", "fillcolor": faint(colour), "hoverinfo": "skip", "showlegend": False}
            there_and_back = [*summaries, *reversed(summaries)]
            figure.add_scatter(x=there_and_back, y=lows + highs[::-1], mode="none", **band)
        points = [(kimg, summary.mean, "") for kimg, summary in summaries.items()]
        line(figure, points, colour, 3, name=_name(row), hoverinfo="skip")


def raced_trials(rows: Sequence[TrialRow], objective: str) -> go.Figure:
    """Plot the repeats of the best raced trials, with means and 95% intervals.

    Trials that got fresh seeds and violate a constraint come last.
    """
    raced = [row for row in rows if row.fresh][:MAX_RACED]
    colours = leader_colours(rows) | dict.fromkeys(infeasible(raced), PURPLE)
    figure = blank(objective, "")
    ends: list[float] = []
    for row in raced:
        name = _name(row)
        colour = colours.get(row.number, GREY)

        summary = row.summaries[objective]
        ends += [summary.low, summary.mean, summary.high]
        bars = {"color": colour, "thickness": 2, "width": 7, **error_bars([summary])}
        mean = (summary.mean, name, f"{name}: {formatting.interval(summary)}")
        dots(figure, [mean], colour, "diamond", error_x=bars)

        repeats: list[Point] = []
        for repeat in row.counted:
            value = dict(_scores(repeat, objective)).get(row.kimg)
            if value is not None:
                repeats.append((value, name, _label(repeat, value)))
        dots(figure, repeats, colour, "circle-open")

        chosen_at = row.chosen_at[objective]
        ends.append(chosen_at)
        if math.isfinite(chosen_at):
            point = (chosen_at, name, f"{name} was chosen at {formatting.number(chosen_at)}")
            dots(figure, [point], GREY, "x-thin-open")

    set_range(figure, [end for end in ends if math.isfinite(end)], "x", log=False)
    figure.update_yaxes(range=[len(raced) - 0.5, -0.5], showgrid=False)
    return figure.update_layout(height=max(380, 120 + 44 * len(raced)))


def training_loss(curves: Mapping[int, Sequence[Sequence[MetricsRow]]], rows: Sequence[TrialRow]) -> go.Figure:
    """Plot the training loss of the leaders' repeats.

    `curves` holds the rows of `metrics.jsonl` of each repeat, by trial number.
    """
    figure = blank("thousands of images seen (kimg)", "training loss")
    colours = leader_colours(rows)
    names = {row.number: _name(row) for row in rows}
    values: list[float] = []
    for number, repeats in curves.items():
        losses: list[list[Point]] = []
        for own in repeats:
            losses.append([(each.kimg, each.loss, "") for each in own if math.isfinite(each.loss)])
            values += [loss for _, loss, _ in losses[-1]]
        line(figure, joined(losses), colours[number], 1.5, opacity=0.8, hoverinfo="x+y", name=names[number])
    return set_range(figure, values)


def class_bars(scores: ClassScores, colours: Mapping[int, str]) -> go.Figure:
    """Plot the scores of the trials for each class side by side, with 95% intervals over the repeats."""
    figure = blank("class", f"{scores.name} within the class")
    classes = [html.escape(name) for name in scores.classes]
    for number, summaries in scores.trials.items():
        texts: list[str] = []
        for name, summary in zip(scores.classes, summaries, strict=True):
            texts.append(html.escape(f"trial {number}, {name}: {formatting.interval(summary)}"))
        figure.add_bar(
            x=classes,
            y=[summary.mean for summary in summaries],
            error_y={"color": INK, "thickness": 1.5, "width": 3, **error_bars(summaries)},
            marker_color=colours[number],
            name=f"trial {number}",
            hovertext=texts,
            hoverinfo="text",
            showlegend=True,
        )
    figure.update_xaxes(type="category", showgrid=False)
    return figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06)


def tradeoff(rows: Sequence[TrialRow], space: Space, objective: str, other: str | None = None) -> go.Figure:
    """Plot an objective against another one, or against the time of a repeat, with the Pareto front of the two.

    On the front are trials that keep the constraints.
    """
    finished = [row for row in rows if row.finished]
    max_hours = max((row.gpu_hours for row in finished), default=0.0)
    factor = 1
    unit = "hours"
    if max_hours < 1.5:
        factor = 60
        unit = "minutes"

    means: list[Point] = []
    singles: list[Point] = []
    broken: list[Point] = []
    for row in finished:
        x = row.summaries[other].mean if other else row.gpu_hours * factor
        summary = row.summaries[objective]
        points = means if row.raced else singles
        if row.status == INFEASIBLE:
            points = broken
        points.append((x, summary.mean, f"{_name(row)}: {formatting.interval(summary)}"))

    directions: dict[str, Direction] = {"x": "minimize", "y": space.objectives[objective]}
    if other:
        directions["x"] = space.objectives[other]
    feasible = means + singles
    fronts = stats.fronts([{"x": x, "y": y} for x, y, _ in feasible], directions)
    front = sorted(point for point, number in zip(feasible, fronts, strict=True) if number == 0)

    figure = blank(other or f"device-{unit} a repeat", objective)
    step = "hv" if directions["x"] == "minimize" else "vh"
    line(figure, front, COLOURS[1], 1.5, name="Pareto front", line_dash="dot", line_shape=step, hoverinfo="skip")
    dots(figure, means, COLOURS[0], name="mean of repeats")
    dots(figure, singles, COLOURS[0], "circle-open", name="single repeat")
    dots(figure, broken, PURPLE, "square-open", name=INFEASIBLE)
    set_range(figure, [y for _, y, _ in feasible + broken])
    return set_range(figure, [x for x, _, _ in feasible + broken], "x")


def _scores(repeat: Repeat, objective: str) -> list[tuple[float, float]]:
    """Return the rungs at which a repeat was scored, each with its score; non-finite scores are left out."""
    scores = [(kimg, repeat.score(objective, kimg)) for kimg in sorted(repeat.rungs)]
    return [(kimg, value) for kimg, value in scores if math.isfinite(value)]


def _name(row: TrialRow) -> str:
    return f"trial {row.number} ({INFEASIBLE})" if row.status == INFEASIBLE else f"trial {row.number}"


def _label(repeat: Repeat, value: float) -> str:
    return f"trial {repeat.trial}, repeat {repeat.repeat}: {formatting.number(value)}"
