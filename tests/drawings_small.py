"""Pen drawings made up for tests: circles and zigzags, as Quick, Draw! has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.recipe.recipe import Recipe

SMALL: dict[str, Any] = {
    "codec": {"kind": "strokes"},
    "network": {"kind": "gru", "width": 16, "layers": 2},
    "diffusion": {"kind": "ddpm", "timesteps": 50, "beta_start": 0.002, "beta_end": 0.4},
    "optimizer": {"kind": "adamw", "lr": 5e-3, "warmup_kimg": 0, "weight_decay": 0.01},
    "ema": {"halflife_kimg": 0},
    "training": {"kimg": 0.08, "batch_size": 16},
    "sampler": {"kind": "ancestral", "steps": 10},
}


def circle(random: np.random.Generator) -> list[np.ndarray]:
    """Return a circle, and a line through it."""
    angles = np.linspace(0, 2 * np.pi * random.uniform(0.7, 1), 30)
    radius = random.uniform(20, 100)
    round_ = np.stack([np.cos(angles), np.sin(angles)], 1) * radius + 120
    return [round_, np.array([[120.0, 120.0], [120.0 + radius, random.uniform(20, 220)]])]


def zigzag(random: np.random.Generator) -> list[np.ndarray]:
    """Return one stroke that goes up and down."""
    count = int(random.integers(4, 9))
    x = np.linspace(10, 200, count)
    return [np.stack([x, np.where(np.arange(count) % 2, 40.0, random.uniform(80, 200))], 1)]


def drawings(count: int, seed: int = 0) -> list[tuple[str, list[np.ndarray]]]:
    """Return drawings with their words, the two in turn."""
    random = np.random.default_rng(seed)
    shapes = (("circle", circle), ("zigzag", zigzag))
    return [(word, draw(random)) for word, draw in (shapes[i % 2] for i in range(count))]


def write_ndjson(path: Path, count: int, *, times: bool = False, words: bool = True) -> Path:
    """Write drawings as Quick, Draw! does: simplified, or raw with the time of each point."""
    lines = []
    for word, strokes in drawings(count):
        axes = [[stroke[:, 0].tolist(), stroke[:, 1].tolist()] for stroke in strokes]
        if times:
            axes = [[*stroke, [17 * i for i in range(len(stroke[0]))]] for stroke in axes]
        lines.append(json.dumps(({"word": word} if words else {}) | {"recognized": True, "drawing": axes}))
    path.write_text("\n".join(lines) + "\n")
    return path


def small_drawings(folder: Path, count: int = 80, **options: object) -> Manifest:
    """Prepare a dataset of drawings in `folder / "data"`."""
    source = write_ndjson(folder / "drawings.ndjson", count)
    return prepare(str(source), folder / "data", Options(**{"classifier": False, "near": 0, **options}))  # type: ignore[arg-type]


def recipe_of(**values: object) -> Recipe:
    """Return a recipe of a small GRU with `values`, in which `__` stands for a dot."""
    return Recipe.model_validate(SMALL).replace({name.replace("__", "."): value for name, value in values.items()})
