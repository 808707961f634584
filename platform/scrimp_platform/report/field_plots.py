"""The plots of the searched fields: one function per figure."""

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from scrimp_platform.report import formatting
from scrimp_platform.report.dependence import Dependence
from scrimp_platform.report.figures import (
    COLOURS,
    GOOD_TO_BAD,
    GREY,
    INK,
    PALE,
    PURPLE,
    Point,
    blank,
    dots,
    faint,
    joined,
    line,
    set_range,
    spread,
)
from scrimp_platform.report.plots import INFEASIBLE
from scrimp_platform.report.ranking import TrialRow
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space

MAX_LINES = 120
"""Trials whose searched fields are drawn."""
GRADES = 20
"""Colours from good to bad, but for one."""
MAX_TICKS = 300
"""Trials whose values are marked below an expected score."""


def parallel_coordinates(rows: Sequence[TrialRow], space: Space, objective: str) -> go.Figure:
    """Plot each trial as a line through its values, and those trained to the end in colour, with their scores.

    At most `MAX_LINES` trials are drawn: those trained to the end have half of the places or more.
    """
    names = formatting.short_names(space.search)
    finished = [row for row in rows if row.finished]
    unfinished = [row for row in rows if not row.finished]
    finished = spread(finished, max(MAX_LINES // 2, MAX_LINES - len(unfinished)))
    unfinished = spread(unfinished, MAX_LINES - len(finished))
    means = [row.summaries[objective].mean for row in finished]
    low = min(means, default=0.0)
    high = max(means, default=1.0)

    # The lines; the best trials are drawn last, on top of the others.
    finished.sort(key=lambda row: -row.rank)
    lines: dict[tuple[str, float, str], list[list[Point]]] = {}
    for row in unfinished + finished:
        heights = [_height(span, row.trial.params.get(path)) for path, span in space.search.items()]
        height = 0.5
        if row.finished and high > low:
            height = (row.summaries[objective].mean - low) / (high - low)
        if row.finished:
            heights.append(height)
        badness = 1 - height if space.objectives[objective] == "maximize" else height
        values = ", ".join(f"{names[path]} {formatting.number(value)}" for path, value in row.trial.params.items())
        text = f"trial {row.number}, {row.status}: {values}"
        points: list[Point] = [(i, height, text) for i, height in enumerate(heights)]
        lines.setdefault(_trial_style(row, badness), []).append(points)

    figure = blank("", "")
    for (colour, width, dash), alike in lines.items():
        line(figure, joined(alike), colour, width, mode="lines+markers", marker_size=5, line_dash=dash)

    # The axes: one per field, and the last for the score.
    for i, span in enumerate(space.search.values()):
        _vertical_axis(figure, i, _ticks(span))
    score_ticks = []
    if high > low:
        score_ticks = [(0, formatting.number(low)), (1, formatting.number(high))]
    _vertical_axis(figure, len(names), score_ticks)
    titles = [html.escape(name) for name in [*names.values(), objective]]
    figure.update_xaxes(tickvals=list(range(len(titles))), ticktext=titles, side="top", showgrid=False)
    figure.update_xaxes(range=[-0.3, len(titles) - 0.7])
    figure.update_layout(margin={"l": 8, "r": 8, "b": 12})
    return figure.update_yaxes(visible=False, range=[-0.1, 1.1])


def _trial_style(row: TrialRow, badness: float) -> tuple[str, float, str]:
    """Return the colour, width and dash of a trial's line; those of one style are drawn together."""
    if row.status == INFEASIBLE:
        return PURPLE, 1.5, "dot"
    if not row.finished:
        return PALE, 1, "solid"
    grade = round(badness * GRADES) / GRADES
    return str(sample_colorscale(GOOD_TO_BAD, grade)[0]), 2.5, "solid"


def _vertical_axis(figure: go.Figure, position: int, ticks: Sequence[tuple[float, str]]) -> None:
    figure.add_shape(type="line", x0=position, x1=position, y0=0, y1=1, line={"color": PALE, "width": 1}, layer="below")
    font = {"size": 11, "color": INK}
    for height, text in ticks:
        # The lowest tick is labelled below the axis, the highest one above it, and the others beside it.
        shift = {0.0: {"yshift": -11}, 1.0: {"yshift": 11}}.get(height, {"xshift": 7, "xanchor": "left"})
        figure.add_annotation(x=position, y=height, text=html.escape(text), font=font, showarrow=False, **shift)


def _ticks(span: Range) -> list[tuple[float, str]]:
    """Return the height and the label of each tick: all choices of a field, or the ends of its range."""
    ticks = []
    for value in span.choice or span.uniform or span.loguniform or span.int or ():
        label = f"{value:g}" if _is_finite(value) else str(value)
        ticks.append((_height(span, value) or 0.0, label))
    return ticks


def _height(span: Range, value: Any) -> float | None:
    """Return the position of a value in its range, from 0 to 1; None if the field was not searched."""
    if value is None:
        return None
    if span.choice:
        return span.choice.index(value) / (len(span.choice) - 1)
    low, high = span.uniform or span.loguniform or span.int or (0, 1)
    if span.loguniform or span.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def importance_bars(importances: Mapping[str, float]) -> go.Figure:
    """Plot the importance of each searched field."""
    shares = list(importances.values())
    names = [html.escape(name) for name in formatting.short_names(importances).values()]
    texts = [f"{share:.0%}" for share in shares]
    bars = {"orientation": "h", "marker_color": COLOURS[0], "text": texts, "textposition": "outside", "width": 0.55}

    figure = blank("importance", "")
    figure.add_bar(x=shares, y=names, cliponaxis=False, **bars)
    figure.update_xaxes(tickformat=".0%", range=[0, 1.1 * max(shares, default=1)])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticksuffix="  ")
    return figure.update_layout(height=130 + 34 * len(shares))


def partial_dependence(dependence: Dependence, span: Range, broken: Collection[int] = ()) -> go.Figure:
    """Plot the score that the model expects over the values of one field, with its 95% band.

    Below the values of a number is a tick for each trial; those of the numbers in `broken` violate a constraint.
    """
    figure = blank(dependence.path, dependence.objective)
    values = [html.escape(str(value)) for value in dependence.values] if span.choice else dependence.values
    points: list[Point] = []
    for value, mean, low, high in zip(values, dependence.means, dependence.lows, dependence.highs, strict=True):
        ends = f"{formatting.number(low)} to {formatting.number(high)}"
        points.append((value, mean, f"{formatting.number(value)}: {formatting.number(mean)} ({ends})"))

    if span.choice:
        above = [high - mean for mean, high in zip(dependence.means, dependence.highs, strict=True)]
        below = [mean - low for mean, low in zip(dependence.means, dependence.lows, strict=True)]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": COLOURS[0],
            "width": 7,
        }
        dots(figure, points, COLOURS[0], "diamond", error_y=bars)
        figure.update_xaxes(type="category", range=[-0.5, len(values) - 0.5])
    else:
        band = {"fill": "toself", "fillcolor": faint(COLOURS[0]), "hoverinfo": "skip", "showlegend": False}
        there_and_back = [*values, *reversed(values)]
        figure.add_scatter(x=there_and_back, y=dependence.lows + dependence.highs[::-1], mode="none", **band)
        line(figure, points, COLOURS[0], 2.5)
        set_range(figure, dependence.values, "x", log=bool(span.loguniform or span.log))

        # A tick on the lower edge for each trial, against an axis of its own.
        ticks: dict[bool, list[Point]] = {False: [], True: []}
        for number, value in spread(list(dependence.tried.items()), MAX_TICKS):
            ticks[number in broken].append((value, 0.015, ""))
        dots(figure, ticks[False], GREY, "line-ns-open", yaxis="y2", hoverinfo="skip")
        dots(figure, ticks[True], PURPLE, "line-ns-open", yaxis="y2", hoverinfo="skip", name=INFEASIBLE)
        figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    return set_range(figure, dependence.lows + dependence.highs)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
