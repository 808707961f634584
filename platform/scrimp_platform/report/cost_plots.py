"""The plots of what a sweep cost, and of how sparse its networks are."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from scrimp_platform.report import formatting
from scrimp_platform.report.figures import COLOURS, GREY, Point, blank, dots
from scrimp_platform.report.hours import NodeWork, PhaseHours
from scrimp_platform.report.layers import Layer


def phase_hours(phases: Sequence[PhaseHours]) -> go.Figure:
    """Plot the device-hours of each phase as a bar of training, scoring and the rest."""
    longest = max((own.total for own in phases), default=0.0)
    unit, factor = ("hours", 1) if longest >= 1.5 else ("minutes", 60)
    figure = blank(f"device-{unit}", "")
    names = [own.phase for own in phases]
    parts = {
        "training": (COLOURS[0], [own.training for own in phases]),
        "sampling and scoring": (COLOURS[4], [own.scoring for own in phases]),
        "the rest": (GREY, [own.other for own in phases]),
    }
    for part, (colour, hours) in parts.items():
        if not any(hours):
            continue
        texts = [f"{name}, {part}: {formatting.duration(value)}" for name, value in zip(names, hours, strict=True)]
        figure.add_bar(
            x=[factor * value for value in hours],
            y=names,
            orientation="h",
            marker_color=colour,
            name=part,
            hovertext=texts,
            hoverinfo="text",
            showlegend=True,
            width=0.55,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticksuffix="  ")
    return figure.update_layout(barmode="stack", legend_traceorder="normal", height=150 + 46 * len(phases))


def node_work(work: NodeWork) -> go.Figure:
    """Plot how many repeats each node has worked at over time, as a row of colours a node."""
    longest = work.hours[-1]
    unit, factor = ("hours", 1) if longest >= 1.5 else ("minutes", 60)
    figure = blank(f"{unit} since the first start", "")
    figure.add_heatmap(
        x=[factor * hour for hour in work.hours],
        y=[html.escape(node) for node in work.nodes],
        z=[[round(count, 3) for count in own] for own in work.repeats],
        zmin=0,
        zmax=max(max(own) for own in work.repeats),
        colorscale=[[0, "rgba(0, 114, 178, 0.06)"], [1, COLOURS[0]]],
        colorbar={"title": {"text": "repeats", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"%{{y}}, %{{x:.3g}} {unit}: %{{z:.2g}} repeats<extra></extra>",
    )
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticksuffix="  ")
    return figure.update_layout(height=max(240, 130 + 22 * len(work.nodes)))


def layer_densities(layers: Mapping[int, Sequence[Layer]], colours: Mapping[int, str]) -> go.Figure:
    """Plot the density of each layer of sparse trials, in the order of the network; layers without a mask as rings."""
    figure = blank("layer, in the order of the network", "share of weights that are kept")
    for number, own in layers.items():
        masked: list[Point] = []
        dense: list[Point] = []
        for place, layer in enumerate(own, 1):
            text = f"trial {number}, {layer.name} ({layer.shape}): density {layer.density:.3g}"
            text += f", {layer.flops_share:.1%} of the FLOPs"
            points = masked if layer.masked else dense
            points.append((place, layer.density, text))
        dots(figure, masked, colours[number], name=f"trial {number}", opacity=0.8)
        dots(figure, dense, colours[number], "circle-open", name=f"trial {number}, not masked", opacity=0.8)
    return figure.update_yaxes(range=[-0.03, 1.06], tickformat=".0%")
