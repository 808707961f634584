"""What a person sees in the terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scrimp_platform import estimate
from scrimp_platform.cluster import Placement
from scrimp_platform.estimate import Speed
from scrimp_platform.plan import Plan
from scrimp_platform.report import leaderboard, words
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Range, Space
from scrimp_trainers.data.manifest import Manifest

console = Console(highlight=False)


class Log:
    """Prints a sweep's decisions with the time since its start, and appends them to its log file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()

    def __call__(self, decision: str) -> None:
        """Print and append one decision."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(decision)}", soft_wrap=True)
        with self._path.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {decision}\n")


def show_plan(the_plan: Plan, placement: Placement, speed: Speed | None) -> None:
    """Print what is searched, what will run where, for how long and on how much disk."""
    space, budget = the_plan.space, the_plan.space.budget
    facts = the_plan.manifest
    rungs = ", ".join(f"{rung:g}" for rung in budget.rungs_kimg)
    colours, classes = ("grey", "RGB")[facts.channels // 3], len(facts.classes or ())
    rows = {
        "sweep": f"{the_plan.folder.path}{' (goes on)' if the_plan.resumed else ''}",
        "dataset": f"{facts.name}: {facts.splits['train'].count} images of {facts.size}x{facts.size}, "
        f"{colours}, {classes} classes, content {facts.content_hash[:12]}",
        "recipe": f"{space.recipe}, up to {budget.rungs_kimg[-1]:g} kimg",
        "search": "\n".join(f"{path}  {describe(span)}" for path, span in space.search.items()),
        "objective": ", ".join(f"{direction} {name}" for name, direction in space.objectives.items()),
        "budget": f"{budget.trials} trials; at rungs of {rungs} kimg the best 1/{budget.reduction:g} go on;\n"
        f"then {min(budget.leaders, budget.trials)} leaders race for up to {budget.repeats} repeats each",
        "runs on": placement.describe(),
    }
    if speed:
        cost = estimate.estimate(the_plan, placement.places, speed)
        rows["will take"] = (
            f"about {words.duration(cost.hours)} and {cost.bytes / 2**20:,.0f} MiB "
            f"for {cost.first_repeats} + at most {cost.race_repeats} repeats, {cost.kimg:,.0f} kimg"
        )
    grid = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        grid.add_row(f"[bold]{name}[/bold]", escape(text))
    console.print(grid, "")


def describe(span: Range) -> str:
    """Say in words what a range allows."""
    if span.choice:
        text = "one of " + ", ".join(str(value) for value in span.choice)
    elif span.int:
        text = f"whole numbers {span.int[0]} to {span.int[1]}"
    else:
        low, high = span.uniform or span.loguniform or (0.0, 0.0)
        text = f"{low:g} to {high:g}" + (", log scale" if span.loguniform else "")
    conditions = [f"{path} is {' or '.join(map(str, values))}" for path, values in span.when.items()]
    return text + (f" when {' and '.join(conditions)}" if conditions else "")


def show_result(folder: SweepFolder, rows: Sequence[leaderboard.Row], space: Space, reason: str) -> None:
    """Print the leaderboard, the verdict and where everything lies."""
    console.print("", leaderboard.table(rows, space, console.width), leaderboard.verdict(rows, space), "", sep="\n")
    if reason != "complete":
        say(f"Not complete: {reason}. The sweep's command goes on from here.")
    say(f"report       {folder.report}")
    if folder.best_recipe.exists():
        say(f"best recipe  {folder.best_recipe}")


def show_space(space: Space) -> None:
    """Print a space as a table: each field, its range, and the value of the recipe that it starts from."""
    base = space.base().model_dump()
    table = Table(
        "field", "range", f"in {space.recipe}", title=escape(space.about), title_justify="left", box=SIMPLE_HEAD
    )
    for path, span in space.search.items():
        value: Any = base
        for name in path.split("."):
            value = value[name]
        table.add_row(path, escape(describe(span)), escape(str(value)))
    console.print(table)


def show_list(entries: Mapping[str, str]) -> None:
    """Print names, each with what it is."""
    table = Table.grid(padding=(0, 2))
    for name, about in entries.items():
        table.add_row(f"[bold]{name}[/bold]", escape(about))
    console.print(table)


def show_values(values: Mapping[str, Any]) -> None:
    """Print names with their values."""
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, words.number(value))
    console.print(table)


def say(text: str) -> None:
    """Print a line as it is, unbroken, so that paths can be copied."""
    console.print(text, soft_wrap=True, markup=False)


def show_dataset(folder: Path, facts: Manifest) -> None:
    """Print what was prepared."""
    splits = ", ".join(f"{split.count:,} {name}" for name, split in facts.splits.items())
    classes = f"{len(facts.classes)} classes" if facts.classes else "no classes"
    say(f"{folder}: {splits}; {facts.size}x{facts.size}x{facts.channels}, {classes}")
    if facts.classifier:
        say(f"classifier: {facts.classifier.accuracy:.1%} of the held-out images are right")
    say(f"content {facts.content_hash}")


@contextlib.contextmanager
def progress(unit: str = "images") -> Iterator[Callable[[float, float], None]]:
    """Show a bar with the time left; yields a function that takes how much is done and how much there is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(unit, total=None)

    def update(done: float, total: float) -> None:
        bar.start()  # not before there is something to show: a mistake then leaves its one line and nothing else
        bar.update(task, completed=round(done), total=round(total))

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
