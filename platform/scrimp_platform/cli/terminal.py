"""What a person sees in the terminal."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scrimp_platform.cluster import Placement
from scrimp_platform.plan import Plan
from scrimp_platform.report import dataset, formatting, leaderboard
from scrimp_platform.search import estimate
from scrimp_platform.search.estimate import Speed
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Range, Space, value_of
from scrimp_trainers.common.errors import printable
from scrimp_trainers.data.manifest import Manifest

if TYPE_CHECKING:
    from scrimp_cluster.doctor import ClusterReport, NodeReport
    from scrimp_cluster.faults import Fault
    from scrimp_trainers.precompute.coreset import Scored

console = Console(highlight=False)

NODE_COLUMNS = (
    *("node", "", "GPUs", "free", "driver", "CUDA", "NCCL", "torch", "memory"),
    *("/tmp", "storage", "data", "clock"),  # noqa: S108
)
"""Headings of the doctor's table; those without any entry are left out."""


def show_plan(plan: Plan, placement: Placement, speed: Speed | None) -> None:
    """Print what is searched, what will run where, for how long and on how much disk."""
    space, facts = plan.space, plan.manifest
    colours, classes = ("grey", "RGB")[facts.channels // 3], len(facts.classes or ())
    rows = {
        "sweep": f"{plan.folder.path}{' (resumed)' if plan.resumed else ''}",
        "dataset": f"{facts.name}: {facts.splits['train'].count} images of {facts.size}x{facts.size}, "
        f"{colours}, {classes} classes, content {facts.content_hash[:12]}",
        "recipe": f"{space.recipe}, up to {space.budget.rungs_kimg[-1]:g} kimg",
        "search": "\n".join(
            f"{path}  {describe(span)}" + (f" when {condition(space, path)}" if span.when else "")
            for path, span in space.search.items()
        ),
        **_goals(space),
        "runs on": placement.describe(),
    }
    if speed:
        cost = estimate.estimate(plan, placement.places, speed)
        rows["will take"] = (
            f"about {formatting.duration(cost.hours)} and {cost.bytes / 2**20:,.0f} MiB "
            f"for {cost.first_repeats} + at most {cost.race_repeats} repeats, {cost.kimg:,.0f} kimg"
        )
    show_list(rows)
    console.print()


def describe(span: Range) -> str:
    """Say in words what a range allows."""
    if span.choice:
        return _either(span.choice)
    if span.int:
        steps = f" in steps of {span.step}" if span.step > 1 else ""
        return f"whole numbers {span.int[0]} to {span.int[1]}{steps}" + ", log scale" * span.log
    low, high = span.uniform or span.loguniform or (0.0, 0.0)
    return f"{low:g} to {high:g}" + (", log scale" if span.loguniform else "")


def condition(space: Space, path: str) -> str:
    """Say in words when a field is searched, naming those of its own section without it; empty where it always is."""
    section = path.rpartition(".")[0]
    parts = []
    for other, values in space.search[path].when.items():
        left = [value for value in space.search[other].choice or () if value not in values]
        name = other.removeprefix(f"{section}.")
        parts.append(f"{name} is not {_plain(left[0])}" if len(left) == 1 else f"{name} is {_either(values)}")
    return " and ".join(parts)


def show_result(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space, reason: str) -> None:
    """Print the leaderboard, the verdict and where everything lies."""
    console.print("", leaderboard.table(rows, space, console.width), leaderboard.verdict(rows, space), "", sep="\n")
    if reason != "complete":
        say(f"Not complete: {reason}. Run the same command again to resume.")
    say(f"report       {folder.report}")
    if folder.best_recipe.exists():
        say(f"best recipe  {folder.best_recipe}")


def show_ranking(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space) -> None:
    """Print the leaderboard by objectives and constraints that are not the sweep's own."""
    console.print("", leaderboard.table(rows, space, console.width), leaderboard.verdict(rows, space), "", sep="\n")
    goals = _goals(space)
    say(f"ranked by    {', '.join(goals[name] for name in ('objective', 'constraint') if name in goals)}")
    say("The sweep's own goals decided which trials were stopped and which got fresh seeds.")
    if first := leaderboard.best(rows):
        say(f"recipe       {folder.repeat(first.number, 0).recipe}")


def show_space(space: Space) -> None:
    """Print a space: each field with its range, condition, and value in the recipe and the paper; goals and budget."""
    base = space.base()
    rows = [
        (path, describe(span), condition(space, path), _plain(value_of(base, path)), span.paper or "")
        for path, span in space.search.items()
    ]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    columns = zip(("field", "range", "when", "recipe", "paper"), zip(*rows, strict=True), strict=True)
    shown = {heading: cells for heading, cells in columns if any(cells)}
    for heading in shown:
        table.add_column(heading, no_wrap=heading == "field")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(escape(cell) for cell in cells))
    console.print(escape(space.about), table)
    show_list({"recipe": space.recipe, **_goals(space)})


def _goals(space: Space) -> dict[str, str]:
    """Say what a space judges by and what it may spend."""
    budget = space.budget
    rungs = ", ".join(f"{rung:g}" for rung in budget.rungs_kimg)
    rows = {
        "objective": ", ".join(f"{direction} {name}" for name, direction in space.objectives.items()),
        "constraint": ", ".join(f"{name} {formatting.limit(bound)}" for name, bound in space.constraints.items()),
        "budget": f"{budget.trials} arms with {budget.repeats} repeats each, scored at {rungs} kimg"
        if space.arms
        else f"{budget.trials} trials; at rungs of {rungs} kimg the best 1/{budget.reduction:g} go on;\n"
        f"then {min(budget.leaders, budget.trials)} leaders race for up to {budget.repeats} repeats each",
    }
    return {name: text for name, text in rows.items() if text}


def _either(values: Iterable[Any]) -> str:
    *others, last = map(_plain, values)
    return f"{', '.join(others)} or {last}" if others else last


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_list(entries: Mapping[str, str]) -> None:
    """Print names, each with what it is."""
    table = Table.grid(padding=(0, 2))
    for name, about in entries.items():
        table.add_row(f"[bold]{name}[/bold]", escape(about))
    console.print(table)


def show_problems(problems: Sequence[str]) -> None:
    """Print a line for each record that is damaged or missing."""
    for problem in problems:
        say(f"damaged      {problem}")


def show_report(report: "ClusterReport") -> None:
    """Print what the doctor has seen: a row for each node, and a line for each fault."""
    rows = [_node_row(node_report) for node_report in report.nodes]
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold")
    shown = [heading for heading in NODE_COLUMNS if any(row.get(heading) for row in rows)]
    for heading in shown:
        table.add_column(heading, no_wrap=heading == "node", overflow="fold")
    for row in rows:
        table.add_row(*(escape(row.get(heading, "")) for heading in shown))
    console.print(table)
    show_faults(report.faults)


def show_faults(faults: Sequence["Fault"]) -> None:
    """Print a line for each fault, with its remedy."""
    for fault in faults:
        say(f"{'STOPS' if fault.stops else 'note '}  {fault}")


def _node_row(report: "NodeReport") -> dict[str, str]:
    """Return a node's row of the doctor's table, by heading; sizes are what is free."""
    facts = report.facts
    row = {"node": report.node.name, "": _verdict(report), "GPUs": f"{report.node.gpus or 'none'}"}
    if facts is None:
        return row

    row |= {
        "driver": ", ".join(sorted({gpu.driver for gpu in facts.gpus})),
        "CUDA": facts.cuda,
        "NCCL": facts.nccl,
        "torch": facts.versions["torch"].partition("+")[0],
        "memory": _gib(facts.memory),
        "/tmp": _gib(facts.tmp),  # noqa: S108
        "storage": "no" if facts.storage_error else _gib(facts.storage),
        "clock": f"{facts.clock:+.1f} s",
    }
    if facts.gpus:
        models = Counter(gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for gpu in facts.gpus)
        row["GPUs"] = ", ".join(f"{count} x {model}" for model, count in models.items())
        fullest = min(facts.gpus, key=lambda gpu: gpu.free / gpu.total)
        row["free"] = f"{fullest.free / 1024:.1f} of {fullest.total / 1024:.1f} GiB"
    if facts.nccl == "tried":
        row["NCCL"] = "fails" if facts.nccl_error else "ok"
    if facts.dataset:
        row["data"] = "seen" if facts.dataset.sha256 else "no"
    return row


def _verdict(report: "NodeReport") -> str:
    if report.unfit:
        return "unfit"
    return "usable" if report.faults else "ok"


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


def show_values(values: Mapping[str, Any]) -> None:
    """Print names with their values."""
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, formatting.number(value))
    console.print(table)


def say(text: str) -> None:
    """Print a line as it is, unbroken, so that paths can be copied."""
    console.print("\n".join(map(printable, text.split("\n"))), soft_wrap=True, markup=False)


def show_dataset(folder: Path, facts: Manifest) -> None:
    """Print what was prepared."""
    splits = ", ".join(f"{split.count:,} {name}" for name, split in facts.splits.items())
    classes = f"{len(facts.classes)} classes" if facts.classes else "no classes"
    say(f"{folder}: {splits}; {facts.size}x{facts.size}x{facts.channels}, {classes}")
    for line in dataset.lines(facts):
        say(line)
    say(f"content {facts.content_hash}")


def show_coreset(scored: "Scored") -> None:
    """Print how many images of each class are kept, with the mean scores of these and of the others."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("class")
    for heading in ("kept", "of", "mean score kept", "dropped"):
        table.add_column(heading, justify="right")
    for name, members in scored.classes.items():
        kept, values = scored.kept[members], scored.scores[members]
        means = [formatting.number(float(part.mean())) if len(part) else "" for part in (values[kept], values[~kept])]
        table.add_row(escape(name), f"{kept.sum():,}", f"{len(kept):,}", *means)
    console.print(table)


def show_layers(rows: Iterable[Mapping[str, str]]) -> None:
    """Print what is masked of each layer of a sparse network."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", pad_edge=False)
    for heading in ("layer", "shape", "density", "FLOPs"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        density = f"{float(row['density']):.1%}" if row["masked"] == "True" else "dense"
        table.add_row(escape(row["name"]), row["shape"], density, f"{float(row['flops_share']):.1%}")
    console.print(table)


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
