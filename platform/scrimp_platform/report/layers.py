"""The layers of a sparse network, as its repeat has written them to `layers.csv`."""

import csv
from dataclasses import dataclass

from scrimp_platform.store import RepeatFolder


@dataclass(frozen=True)
class Layer:
    """One layer: its share of weights that are not masked, and its share of the FLOPs."""

    name: str
    shape: str
    masked: bool
    density: float
    flops_share: float


def read_layers(files: RepeatFolder) -> list[Layer]:
    """Return the layers in the network's order; none if its recipe is not sparse, or the file is damaged."""
    try:
        with files.layers.open(newline="") as file:
            return [_layer(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        return []


def _layer(row: dict[str, str]) -> Layer:
    shares = [float(row[name]) for name in ("density", "flops_share")]
    return Layer(row["name"], row["shape"], row["masked"] == "True", *shares)
