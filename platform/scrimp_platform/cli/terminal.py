"""What every view prints with, and the output of commands that need no view of their own."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scrimp_platform.report import dataset, formatting
from scrimp_trainers.common.errors import printable
from scrimp_trainers.data.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    from scrimp_platform.tune import Tuned
    from scrimp_trainers.precompute.coreset import ScoredImages

console = Console(highlight=False)


def show_list(entries: Mapping[str, str]) -> None:
    """Print names, each with its description."""
    console.print(list_table(entries))


def list_table(entries: Mapping[str, str]) -> Table:
    """Lay out names, each with its description."""
    table = Table.grid(padding=(0, 2))
    for name, about in entries.items():
        table.add_row(f"[bold]{name}[/bold]", escape(about))
    return table


def show_problems(problems: Sequence[str]) -> None:
    """Print a line for each damaged or missing record."""
    for problem in problems:
        say(f"damaged      {problem}")


def show_values(values: Mapping[str, Any]) -> None:
    """Print names with their values."""
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, formatting.number(value))
    console.print(table)


def say(text: str) -> None:
    """Print a message without markup or line breaks, so that paths can be copied."""
    lines = [printable(line) for line in text.split("\n")]
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def pass_on(line: str) -> None:
    """Print what another process of Scrimp has printed, unchanged; in a terminal above a live table."""
    if console.is_terminal:
        text = line.rstrip("\n")
        console.print(Text.from_ansi(text, end=""), soft_wrap=True, end=line[len(text) :])
    else:
        sys.stdout.write(line)
        sys.stdout.flush()


def show_dataset(folder: Path, manifest: Manifest) -> None:
    """Print a summary of a prepared dataset."""
    splits = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    classes = f"{len(manifest.classes)} classes" if manifest.classes else "no classes"
    say(f"{folder}: {splits}; {_shape(manifest)}, {classes}")
    for line in dataset.summary_lines(manifest):
        say(line)
    say(f"content {manifest.content_hash}")


def _shape(manifest: Manifest) -> str:
    """Say how large a dataset's items are."""
    if "images" in manifest.kinds:
        return f"{manifest.size}x{manifest.size}x{manifest.channels}"
    return f"{manifest.modality} of up to {manifest.size} points"


def show_coreset(scored: "ScoredImages") -> None:
    """Print how many images of each class are kept, and the mean scores of the kept and the dropped ones."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("class")
    for heading in ("kept", "of", "mean score kept", "dropped"):
        table.add_column(heading, justify="right")
    for name, members in scored.classes.items():
        kept = scored.kept[members]
        scores = scored.scores[members]
        table.add_row(escape(name), f"{kept.sum():,}", f"{len(kept):,}", _mean(scores[kept]), _mean(scores[~kept]))
    console.print(table)


def _mean(scores: "np.ndarray") -> str:
    if len(scores) == 0:
        return ""
    return formatting.number(float(scores.mean()))


def show_tuned(tuned: "Tuned") -> None:
    """Print the score of each setting, the chosen one marked, and the scores before and after by other samples."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False)
    for heading in ("width", "guidance", "steps", "NFE", tuned.score):
        table.add_column(heading, justify="right")
    for candidate in tuned.candidates:
        setting = candidate.setting
        width = "as trained" if setting.width is None else f"{setting.width:g}"
        cells = [width, f"{setting.guidance:g}", str(setting.steps), str(candidate.nfe)]
        style = "bold" if setting == tuned.chosen else None
        table.add_row(*cells, formatting.number(candidate.score), style=style)
    console.print(table)

    after = formatting.number(tuned.values[tuned.score])
    before = formatting.number(tuned.values_before[tuned.score])
    say(f"chosen: {tuned.chosen.describe()}; by other samples {tuned.score} {after}, as trained {before}")


def show_layers(rows: Iterable[Mapping[str, str]]) -> None:
    """Print the density and the share of FLOPs of each layer of a sparse network."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False)
    for heading in ("layer", "shape", "density", "FLOPs"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        density = "dense"
        if row["masked"] == "True":
            density = f"{float(row['density']):.1%}"
        flops = f"{float(row['flops_share']):.1%}"
        table.add_row(escape(row["name"]), row["shape"], density, flops)
    console.print(table)


@contextlib.contextmanager
def progress(unit: str = "images") -> Iterator[Callable[[float, float], None]]:
    """Show a progress bar with the time left; yields a function that takes the amount done and the total."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(unit, total=None)

    def update(done: float, total: float) -> None:
        # The bar starts with the first update, so that a user error prints its one line and nothing else.
        bar.start()
        bar.update(task, completed=round(done), total=round(total))

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
