"""The report's plots: one small function a figure, all in one style that suits light and dark pages."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from scrimp_platform.report import formatting
from scrimp_platform.report.classwise import ClassWise
from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import stats
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces.space import Range, Space

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, PALE, INK = "#8c9299", "rgba(140, 146, 153, 0.4)", "#80868b"
GOOD_TO_BAD = ["#0072B2", "#7fa6b5", "#E69F00"]

Point = tuple[Any, Any, str]
"""Abscissa, ordinate, what is said on hovering."""


def leaders(rows: Sequence[TrialRow]) -> dict[int, str]:
    """Give the raced trials, or without a race the three best, a colour each."""
    best = [row for row in rows if row.raced] or [row for row in rows if row.finished][:3]
    return {row.number: colour for row, colour in zip(best, COLOURS, strict=False)}


def history(trials: Sequence[Trial], space: Space, objective: str) -> go.Figure:
    """Show the first score of each trial in the order of the search, and the best so far."""
    last = space.budget.rungs_kimg[-1]
    whole: list[Point] = []
    stopped: list[Point] = []
    for trial in trials:
        for kimg, value in _scores(trial.repeats[0], objective)[-1:] if trial.repeats else []:
            point = (trial.number, value, f"trial {trial.number} at {kimg:g} kimg: {formatting.number(value)}")
            (whole if kimg == last else stopped).append(point)
    better = min if space.objectives[objective] == "minimize" else max
    best = [(number, better(value for _, value, _ in whole[: i + 1]), "") for i, (number, _, _) in enumerate(whole)]
    figure = _figure("trial", objective)
    _line(figure, best, COLOURS[0], 2, name="best so far", line_shape="hv", hoverinfo="skip")
    _dots(figure, whole, COLOURS[0], name=f"trained to {last:g} kimg")
    _dots(figure, stopped, GREY, "x-thin-open", name="stopped earlier")
    if len(trials) <= 10:
        figure.update_xaxes(dtick=1)
    return _view(figure, [value for _, value, _ in whole + stopped])


def over_kimg(trials: Sequence[Trial], rows: Sequence[TrialRow], objective: str) -> go.Figure:
    """Show every repeat's scores over training; the leaders in colour, with their mean and its 95% band."""
    figure, colours = _figure("thousands of images seen (kimg)", objective), leaders(rows)
    seen = []
    for trial in sorted(trials, key=lambda trial: trial.number in colours):
        for repeat in trial.repeats:
            points = [(kimg, value, _label(repeat, value)) for kimg, value in _scores(repeat, objective)]
            _line(figure, points, colours.get(trial.number, PALE), 1, mode="lines+markers", marker_size=4, opacity=0.7)
            seen += [value for _, value, _ in points]
    for row in rows:
        if row.number in colours:
            _mean(figure, row, objective, colours[row.number])
    return _view(figure, seen)


def _mean(figure: go.Figure, row: TrialRow, objective: str, colour: str) -> None:
    scores = [dict(_scores(repeat, objective)) for repeat in row.counted if repeat.status == "finished"]
    rungs = sorted({kimg for repeat in scores for kimg in repeat})
    means = [stats.summarize([repeat[kimg] for repeat in scores if kimg in repeat]) for kimg in rungs]
    if row.repeats > 1:
        edges = [(kimg, mean.low) for kimg, mean in zip(rungs, means, strict=True)]
        edges += [(kimg, mean.high) for kimg, mean in zip(rungs, means, strict=True)][::-1]
        x, y = zip(*edges, strict=True)
        band = {"fill": "toself", "fillcolor": _faint(colour), "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=x, y=y, mode="none", **band)
    points = [(kimg, mean.mean, "") for kimg, mean in zip(rungs, means, strict=True)]
    _line(figure, points, colour, 3, name=f"trial {row.number}", hoverinfo="skip")


def race(rows: Sequence[TrialRow], objective: str) -> go.Figure:
    """Show the raced trials' repeats, with means and 95% intervals."""
    raced, colours = [row for row in rows if row.raced], leaders(rows)
    figure = _figure(objective, "")
    for row in raced:
        name, summary, colour = f"trial {row.number}", row.summaries[objective], colours.get(row.number, GREY)
        half = {"type": "data", "array": [summary.high - summary.mean], "color": colour, "thickness": 2, "width": 7}
        mean = [(summary.mean, name, f"{name}: {formatting.interval(summary)}")]
        _dots(figure, mean, colour, "diamond", error_x=half)
        values = [(repeat, dict(_scores(repeat, objective)).get(row.kimg)) for repeat in row.counted]
        _dots(figure, [(v, name, _label(repeat, v)) for repeat, v in values if v is not None], colour, "circle-open")
        chose = row.chosen[objective]
        if math.isfinite(chose):
            _dots(figure, [(chose, name, f"{name} was chosen at {formatting.number(chose)}")], GREY, "x-thin-open")
    summaries = [row.summaries[objective] for row in raced]
    ends = [end for summary in summaries for end in (summary.low, summary.mean, summary.high)]
    ends += [row.chosen[objective] for row in raced]
    _view(figure, [end for end in ends if math.isfinite(end)], "x", log=False)
    figure.update_yaxes(range=[len(raced) - 0.5, -0.5], showgrid=False)
    return figure.update_layout(height=max(380, 120 + 44 * len(raced)))


def losses(curves: Mapping[int, Sequence[Sequence[Mapping[str, Any]]]], rows: Sequence[TrialRow]) -> go.Figure:
    """Show the training loss of the leaders' repeats, given the lines of their metrics."""
    figure, colours = _figure("thousands of images seen (kimg)", "training loss"), leaders(rows)
    seen = []
    for number, repeats in curves.items():
        for i, lines in enumerate(repeats):
            points = [(line["kimg"], line["loss"], "") for line in lines if _finite(line.get("loss"))]
            named = {"name": f"trial {number}"} if i == 0 else {}
            _line(figure, points, colours[number], 1.5, opacity=0.8, hoverinfo="x+y", **named)
            seen += [loss for _, loss, _ in points]
    return _view(figure, seen)


def parallel(rows: Sequence[TrialRow], space: Space, objective: str) -> go.Figure:
    """Show each trial as a line through its values; those trained to the end in colour, as far as their score."""
    names = formatting.short_names(space.search)
    done = sorted((row for row in rows if row.finished), key=lambda row: -row.rank)
    means = [row.summaries[objective].mean for row in done]
    low, high = min(means, default=0.0), max(means, default=1.0)
    figure = _figure("", "")
    for row in [*(row for row in rows if not row.finished), *done]:
        heights = [_height(span, row.trial.params.get(path)) for path, span in space.search.items()]
        colour, ends = PALE, []
        if row.finished:
            ends = [(row.summaries[objective].mean - low) / (high - low) if high > low else 0.5]
            worst = 1 - ends[0] if space.objectives[objective] == "maximize" else ends[0]
            colour = str(sample_colorscale(GOOD_TO_BAD, worst)[0])
        values = ", ".join(f"{names[path]} {formatting.number(value)}" for path, value in row.trial.params.items())
        text = f"trial {row.number}, {row.status}: {values}"
        points = [(i, height, text) for i, height in enumerate(heights + ends)]
        _line(figure, points, colour, 2.5 if row.finished else 1, mode="lines+markers", marker_size=5)
    for i, span in enumerate(space.search.values()):
        _axis(figure, i, _ticks(span))
    _axis(figure, len(names), [(0, formatting.number(low)), (1, formatting.number(high))] if high > low else [])
    titles = [html.escape(name) for name in [*names.values(), objective]]
    figure.update_xaxes(tickvals=list(range(len(titles))), ticktext=titles, side="top", showgrid=False)
    figure.update_xaxes(range=[-0.3, len(titles) - 0.7])
    figure.update_layout(margin={"l": 8, "r": 8, "b": 12})
    return figure.update_yaxes(visible=False, range=[-0.1, 1.1])


def _axis(figure: go.Figure, position: int, ticks: Sequence[tuple[float, str]]) -> None:
    figure.add_shape(type="line", x0=position, x1=position, y0=0, y1=1, line={"color": PALE, "width": 1}, layer="below")
    for height, text in ticks:
        beside = {0.0: {"yshift": -11}, 1.0: {"yshift": 11}}.get(height, {"xshift": 7, "xanchor": "left"})
        font = {"size": 11, "color": INK}
        figure.add_annotation(x=position, y=height, text=html.escape(text), font=font, showarrow=False, **beside)


def _ticks(span: Range) -> list[tuple[float, str]]:
    values = span.choice or span.uniform or span.loguniform or span.int or ()
    return [(_height(span, value) or 0.0, f"{value:g}" if _finite(value) else str(value)) for value in values]


def _height(span: Range, value: Any) -> float | None:
    """Return where a value lies in its range, from 0 to 1; none where the field was not searched."""
    if value is None:
        return None
    if span.choice:
        return span.choice.index(value) / (len(span.choice) - 1)
    low, high = span.uniform or span.loguniform or span.int or (0, 1)
    if span.loguniform or span.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def importances(shares: Mapping[str, float]) -> go.Figure:
    """Show how much each searched field matters."""
    names = formatting.short_names(shares)
    figure = _figure("share of what makes trials good", "")
    texts = [f"{share:.0%}" for share in shares.values()]
    bars = {"orientation": "h", "marker_color": COLOURS[0], "text": texts, "textposition": "outside", "width": 0.55}
    figure.add_bar(x=list(shares.values()), y=[html.escape(name) for name in names.values()], cliponaxis=False, **bars)
    figure.update_xaxes(tickformat=".0%", range=[0, 1.1 * max(shares.values(), default=1)])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticksuffix="  ")
    return figure.update_layout(height=130 + 34 * len(shares))


def class_wise(found: ClassWise, colours: Mapping[int, str]) -> go.Figure:
    """Show trials' scores within each class side by side, with 95% intervals over the repeats."""
    figure = _figure("class", f"{found.name} within the class")
    for number, summaries in found.trials.items():
        halves = [None if summary.n < 2 else summary.high - summary.mean for summary in summaries]
        pairs = zip(found.classes, summaries, strict=True)
        texts = [html.escape(f"trial {number}, {name}: {formatting.interval(summary)}") for name, summary in pairs]
        figure.add_bar(
            x=[html.escape(name) for name in found.classes],
            y=[summary.mean for summary in summaries],
            error_y={"type": "data", "array": halves, "color": INK, "thickness": 1.5, "width": 3},
            marker_color=colours[number],
            name=f"trial {number}",
            hovertext=texts,
            hoverinfo="text",
            showlegend=True,
        )
    figure.update_xaxes(type="category", showgrid=False)
    return figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06)


def tradeoff(rows: Sequence[TrialRow], space: Space, objective: str, other: str | None = None) -> go.Figure:
    """Show an objective against another, or against the time of a repeat, with the Pareto front of the two."""
    done = [row for row in rows if row.finished and row.status != "infeasible"]
    hours = max((row.gpu_hours for row in done), default=0.0)
    factor, unit = (60, "minutes") if hours < 1.5 else (1, "hours")
    costs = [row.summaries[other].mean if other else row.gpu_hours * factor for row in done]
    points = [
        (cost, row.summaries[objective].mean, f"trial {row.number}: {formatting.interval(row.summaries[objective])}")
        for row, cost in zip(done, costs, strict=True)
    ]
    ways: dict[str, stats.Direction] = {"x": space.objectives[other] if other else "minimize"}
    ways["y"] = space.objectives[objective]
    fronts = stats.fronts([{"x": x, "y": y} for x, y, _ in points], ways)
    front = sorted(point for point, number in zip(points, fronts, strict=True) if number == 0)
    step = "hv" if ways["x"] == "minimize" else "vh"
    figure = _figure(other or f"device-{unit} a repeat", objective)
    _line(figure, front, COLOURS[1], 1.5, name="Pareto front", line_dash="dot", line_shape=step, hoverinfo="skip")
    _dots(figure, [p for p, row in zip(points, done, strict=True) if row.raced], COLOURS[0], name="mean of repeats")
    single = [p for p, row in zip(points, done, strict=True) if not row.raced]
    _dots(figure, single, COLOURS[0], "circle-open", name="single repeat")
    _view(figure, [y for _, y, _ in points])
    return _view(figure, [x for x, _, _ in points], "x")


def _scores(repeat: Repeat, objective: str) -> list[tuple[float, float]]:
    """Return the rungs at which a repeat was scored, and its values there."""
    pairs = [(kimg, line.get(objective)) for kimg, line in sorted(repeat.scores.items())]
    return [(kimg, float(value)) for kimg, value in pairs if value is not None and _finite(value)]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _label(repeat: Repeat, value: float) -> str:
    return f"trial {repeat.trial}, repeat {repeat.repeat}: {formatting.number(value)}"


def _dots(figure: go.Figure, points: Sequence[Point], colour: str, symbol: str = "circle", **style: Any) -> None:
    marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"color": colour, "width": 2}}
    _trace(figure, points, mode="markers", marker=marker, **style)


def _line(figure: go.Figure, points: Sequence[Point], colour: str, width: float, **style: Any) -> None:
    _trace(figure, points, **{"mode": "lines", "line_color": colour, "line_width": width, **style})


def _trace(figure: go.Figure, points: Sequence[Point], **style: Any) -> None:
    if points:
        x, y, text = (list(part) for part in zip(*points, strict=True))
        given = {"hoverinfo": "text", "showlegend": "name" in style} | style
        figure.add_scatter(x=x, y=y, hovertext=[html.escape(line) for line in text], **given)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.14)"


def _figure(x: str, y: str) -> go.Figure:
    axis = {"gridcolor": "rgba(128, 134, 139, 0.18)", "zeroline": False, "automargin": True}
    title = {"font": {"size": 13}, "standoff": 10}
    return go.Figure(
        layout={
            "template": "none",
            "height": 380,
            "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "hovermode": "closest",
            "xaxis": {"title": {"text": html.escape(x), **title}, **axis},
            "yaxis": {"title": {"text": html.escape(y), **title}, **axis},
        }
    )


def _view(figure: go.Figure, values: Sequence[float], axis: str = "y", log: bool = True) -> go.Figure:
    """Show these values whole, whatever the bands around them need; on a log scale if they span more than 1:5."""
    if not values:
        return figure
    update = figure.update_yaxes if axis == "y" else figure.update_xaxes
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 5:
        low, high = math.log10(low), math.log10(high)
        ticks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
        update(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return update(range=[low - margin, high + margin])
