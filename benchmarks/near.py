"""`python -m benchmarks.near SOURCE...`: what `--near` finds in datasets and what it joins wrongly; `--time`: its cost.

Copies are made of real images, so it is known that they are copies. Images of different classes are no copies, so what
joins these is wrong; without classes any two images count as different.
"""

import io
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from rich.table import Table

from benchmarks.measure import console, machine
from scrimp_trainers.data.duplicates import find_duplicates
from scrimp_trainers.data.options import NEAR_IMAGES, Options
from scrimp_trainers.data.reading import read_images
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.subsets import choose_subsets

NEARS = (0, 2, 4, 8, 12, 16)
SEED = 0
PAIRED = 3000
"""Images of a source of which all pairs are compared."""
COPIED = 1000
"""Of these, images of which copies are made."""


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return copy


def _brighter(by: int) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        return Image.fromarray((np.asarray(image, dtype=np.int16) + by).clip(0, 255).astype(np.uint8))

    return copy


def _shifted(image: Image.Image) -> Image.Image:
    """Move an image right by one pixel; its left edge is repeated."""
    pixels = np.asarray(image)
    return Image.fromarray(np.concatenate([pixels[:, :1], pixels[:, :-1]], axis=1))


def _resized(image: Image.Image) -> Image.Image:
    """Make an image half as large, and as large as before."""
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": _jpeg(90),
    "JPEG 75": _jpeg(75),
    "+4": _brighter(4),
    "-4": _brighter(-4),
    "shift": _shifted,
    "half size": _resized,
}
"""How copies are made."""


@dataclass(frozen=True)
class Row:
    """What one value of `--near` does to a dataset. All but the counts are shares."""

    near: float
    grouped: float
    """Images in a group of more than one."""
    largest: float
    """Images in the largest group."""
    train: int
    held_out: int
    """Images on each side of the split."""
    wrong_pairs: float
    """Pairs of different images that are near."""
    wrong_images: float
    """Images with such a pair."""
    found: dict[str, float]
    """Copies that are near their original, by how they are made."""


@dataclass(frozen=True)
class Found:
    """What is measured of a dataset."""

    source: str
    images: int
    shape: list[int]
    classes: int
    rows: list[Row] = field(default_factory=list)


def measure(source: str, size: int | None, most: int) -> Found:
    """Measure what each value of `--near` does to a dataset."""
    pixels, labels, classes = _read(source, size)
    random = np.random.default_rng(SEED)
    rows = np.sort(random.permutation(len(pixels))[:most])
    pixels = pixels[rows]
    labels = None if labels is None else labels[rows]
    paired = random.permutation(len(pixels))[:PAIRED]
    kinds = paired if labels is None else labels[paired]
    wrong = _differences(pixels[paired])
    wrong[kinds[:, None] == kinds] = np.inf

    copied = pixels[paired[:COPIED]]
    apart = {name: _apart(copied, copy) for name, copy in COPIES.items()}
    found = Found(Path(source).name, len(pixels), list(pixels.shape[1:]), len(classes or ()))
    for near in NEARS:
        found.rows.append(_row(near, pixels, labels, wrong, apart))
    return found


def _read(source: str, size: int | None) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """Return a source's images as `scrimp prepare` makes them, their labels, and the names of the classes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "part" / "scratch"
        scratch.mkdir(parents=True)
        part = read_images({"train": open_source(source, scratch)}, scratch, Options(size=size), None)["train"]
        return np.array(part.pixels), part.labels, part.source.classes


def _differences(pixels: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of all pairs of images."""
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
    return (torch.cdist(flat, flat, p=1) / flat.shape[1]).numpy()


def _apart(pixels: np.ndarray, copy: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return the mean absolute difference of each image and its copy."""
    copies = np.stack([np.asarray(copy(Image.fromarray(image))) for image in pixels])
    return np.abs(copies.astype(np.int16) - pixels).reshape(len(pixels), -1).mean(axis=1)


def _row(
    near: float, pixels: np.ndarray, labels: np.ndarray | None, wrong: np.ndarray, apart: dict[str, np.ndarray]
) -> Row:
    repeats = find_duplicates(pixels, near)
    members = np.bincount(repeats.group)[repeats.group]
    train, held_out = choose_subsets(len(pixels), labels, None, seed=SEED, duplicates=repeats)
    is_near = wrong <= near
    return Row(
        near,
        float((members > 1).mean()),
        repeats.largest / len(pixels),
        len(train),
        len(held_out),
        float(is_near.sum() / np.isfinite(wrong).sum()),
        float(is_near.any(axis=1).mean()),
        {name: float((differences <= near).mean()) for name, differences in apart.items()},
    )


def show(found: Found) -> None:
    """Print what was measured of a dataset."""
    shape = "x".join(map(str, found.shape))
    classes = f"{found.classes} classes" if found.classes else "no classes"
    table = Table("near", title=f"{found.source}: {found.images:,} images of {shape}, {classes}", title_justify="left")
    heads = ("in a group", "largest group", "train", "held out", "wrong pairs, a million", "images with one")
    for head in (*heads, *COPIES):
        table.add_column(head, justify="right")
    for row in found.rows:
        table.add_row(
            f"{row.near:g}",
            f"{row.grouped:.2%}",
            f"{row.largest:.2%}",
            f"{row.train:,}",
            f"{row.held_out:,}",
            f"{row.wrong_pairs * 1e6:,.2f}",
            f"{row.wrong_images:.2%}",
            *(f"{share:.1%}" for share in row.found.values()),
        )
    console.print(table, "")


# --- what the search costs

SIDE = 64
TIMED = 100_000
COPY_SHARE = 0.05
IN_CLUSTER = 100
CHUNK = 1000


@dataclass(frozen=True)
class Cost:
    """What a search cost."""

    images: str
    count: int
    near: float
    seconds: float
    cpu_seconds: float
    """Of the process, which other processes on the machine do not lengthen."""
    peak_gib: float
    """Memory of the process at its highest, less what it had before; pages of the pixels' file included."""
    grouped: float
    largest: float


def smooth(random: np.random.Generator, count: int) -> np.ndarray:
    """Make soft shapes: 8x8 random colours, enlarged."""
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in coarse]
    )


def with_copies(random: np.random.Generator, count: int) -> np.ndarray:
    """Make smooth images, the last of which are the first ones again with grain."""
    copies = int(COPY_SHARE * count)
    images = smooth(random, count - copies)
    return np.concatenate([images, _grainy(random, images[:copies], 6)])


def clustered(random: np.random.Generator, count: int) -> np.ndarray:
    """Make clusters of images whose coarse shape is the same, near each other or not quite."""
    centres = smooth(random, max(1, count // IN_CLUSTER))
    images = np.repeat(centres, IN_CLUSTER, axis=0)[:count]
    return _grainy(random, images, 16)


def _grainy(random: np.random.Generator, images: np.ndarray, most: int) -> np.ndarray:
    """Add grain, of a strength that is drawn for each image."""
    out = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        strength = random.uniform(0, most, (len(part), 1, 1, 1))
        grain = random.standard_normal(part.shape, dtype=np.float32) * strength
        out[start : start + CHUNK] = np.clip(part + grain, 0, 255).astype(np.uint8)
    return out


MADE = {"smooth, 5% copies": with_copies, "clusters of 100": clustered}


def cost(name: str, count: int, near: float) -> Cost:
    """Search among images in a file, as `scrimp prepare` does; run it in a process of its own, for its memory."""
    with tempfile.NamedTemporaryFile() as file:
        images = MADE[name](np.random.default_rng(SEED), count)
        Path(file.name).write_bytes(images.data)
        shape = images.shape
        del images
        pixels = np.memmap(file.name, np.uint8, "r", shape=shape)
        _forget_peak()
        before = _memory("VmRSS")
        began = time.perf_counter()
        cpu = time.process_time()
        repeats = find_duplicates(pixels, near)
        cpu = time.process_time() - cpu
        seconds = time.perf_counter() - began
        peak = _memory("VmHWM") - before
    members = np.bincount(repeats.group)[repeats.group]
    return Cost(name, count, near, seconds, cpu, peak / 2**20, float((members > 1).mean()), repeats.largest / count)


def _forget_peak() -> None:
    """Begin anew to record how much memory this process has had at most."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(key: str) -> int:
    """Return a size that Linux has of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def show_costs(costs: list[Cost]) -> None:
    """Print what searches cost."""
    title = f"The search among {costs[0].count:,} images of {SIDE}x{SIDE}x3, near {costs[0].near:g}"
    table = Table(
        "images", "seconds", "of CPU", "peak memory", "in a group", "largest group", title=title, title_justify="left"
    )
    for one in costs:
        table.add_row(
            one.images,
            f"{one.seconds:,.0f}",
            f"{one.cpu_seconds:,.0f}",
            f"{one.peak_gib:.1f} GiB",
            f"{one.grouped:.1%}",
            f"{one.largest:.2%}",
        )
    console.print(table, "")


@click.command()
@click.argument("sources", nargs=-1)
@click.option("--size", type=int, help="Height and width, as for `scrimp prepare`.")
@click.option("--most", default=10_000, show_default=True, help="Images of each, drawn at random.")
@click.option("--time", "timed", is_flag=True, help="Time the search among made-up images, too.")
@click.option("--count", default=TIMED, show_default=True, help="How many of these.")
@click.option("--near", default=NEAR_IMAGES, show_default=True, help="For the timing.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the numbers to this file, too.")
def main(
    sources: tuple[str, ...], size: int | None, most: int, timed: bool, count: int, near: float, out: Path | None
) -> None:
    """Measure what `--near` finds in SOURCES, which `scrimp prepare` reads, and what it joins wrongly."""
    console.print(f"python -m benchmarks.near {shlex.join(sys.argv[1:])}\n{machine(torch.get_num_threads())}\n")
    found, costs = [], []
    for source in sources:
        found.append(measure(source, size, most))
        show(found[-1])
    for name in MADE if timed else ():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            costs.append(pool.submit(cost, name, count, near).result())
    if costs:
        show_costs(costs)
    if out is not None:
        numbers = {
            "machine": machine(torch.get_num_threads()),
            "datasets": [asdict(one) for one in found],
            "costs": [asdict(one) for one in costs],
        }
        out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.near")
