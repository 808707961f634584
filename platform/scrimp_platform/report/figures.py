"""The style of the report's figures, for light and dark pages: colours, axes, and the marks that all plots draw."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import plotly.graph_objects as go

from scrimp_platform.search.stats import Summary

# The palette of Okabe and Ito, which colour-blind people can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8c9299"
PALE = "rgba(140, 146, 153, 0.4)"
INK = "#80868b"
PURPLE = "#7e57c2"
"""Of trials that violate a constraint."""
GOOD_TO_BAD = ["#0072B2", "#7fa6b5", "#E69F00"]

T = TypeVar("T")
Point = tuple[Any, Any, str]
"""x, y, and the text shown on hovering."""


def error_bars(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the lengths of error bars, which differ on the two sides; none where there is no interval."""
    above = [summary.high - summary.mean for summary in summaries]
    below = [summary.mean - summary.low for summary in summaries]
    lengths = {"array": above, "arrayminus": below}
    return {
        "type": "data",
        "symmetric": False,
        **{side: [value if math.isfinite(value) else None for value in values] for side, values in lengths.items()},
    }


def dots(figure: go.Figure, points: Sequence[Point], colour: str, symbol: str = "circle", **style: Any) -> None:
    """Draw points as markers."""
    marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"color": colour, "width": 2}}
    trace(figure, points, mode="markers", marker=marker, **style)


def line(figure: go.Figure, points: Sequence[Point], colour: str, width: float, **style: Any) -> None:
    """Draw points as a line; it has a gap where x and y are None."""
    trace(figure, points, **{"mode": "lines", "line_color": colour, "line_width": width, **style})


def trace(figure: go.Figure, points: Sequence[Point], **style: Any) -> None:
    """Draw points in a style of plotly's; a `name` gets an entry in the legend, and no points draw nothing."""
    if not points:
        return
    style = {"hoverinfo": "text", "showlegend": "name" in style} | style
    figure.add_scatter(
        x=[x for x, _, _ in points],
        y=[y for _, y, _ in points],
        hovertext=[html.escape(text) for _, _, text in points],
        **style,
    )


def faint(colour: str) -> str:
    """Return a colour, given as #rrggbb, with high transparency."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.14)"


def blank(x: str, y: str) -> go.Figure:
    """Return a figure with titled axes and nothing in it."""
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


def joined(lines: Iterable[Sequence[Point]]) -> list[Point]:
    """Return the points of several lines as those of one with gaps, which draws much faster."""
    points: list[Point] = []
    for own in lines:
        points += [*own, (None, None, "")]
    return points[:-1]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, evenly spread over their order, the first one among them."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def set_range(figure: go.Figure, values: Sequence[float], axis: str = "y", log: bool = True) -> go.Figure:
    """Set the range of an axis to these values, whatever the bands around them need.

    The scale is logarithmic if `log` allows it and the values span more than a factor of 5.
    """
    if not values:
        return figure
    update = figure.update_yaxes if axis == "y" else figure.update_xaxes
    low = min(values)
    high = max(values)
    if log and low > 0 and high / low > 5:
        low = math.log10(low)
        high = math.log10(high)
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        update(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return update(range=[low - margin, high + margin])
