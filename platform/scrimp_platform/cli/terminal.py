"""The output of the commands in the terminal."""

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scrimp_platform import arrangement, left, recommended
from scrimp_platform.cluster import AUTO, Placement
from scrimp_platform.plan import Plan
from scrimp_platform.report import dataset, formatting, leaderboard
from scrimp_platform.search import budget_changes, estimate, gain, resolution, steering
from scrimp_platform.search.estimate import Speed
from scrimp_platform.store import SweepFolder
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space, value_of
from scrimp_trainers.common.errors import printable
from scrimp_trainers.data.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    from scrimp_cluster.doctor import ClusterReport, NodeReport
    from scrimp_cluster.faults import Fault
    from scrimp_platform.search.replay import Replay, Replayed
    from scrimp_platform.tune import Tuned
    from scrimp_trainers.precompute.coreset import ScoredImages

console = Console(highlight=False)

NODE_COLUMNS = (
    *("node", "", "GPUs", "free", "driver", "CUDA", "NCCL", "torch", "memory"),
    *("/tmp", "storage", "data", "clock"),  # noqa: S108
)
"""Headings of the doctor's table; empty columns are left out."""


def show_plan(plan: Plan, placement: Placement, speed: Speed | None) -> None:
    """Print what is searched, where it runs, and how much time and disk space it takes."""
    space = plan.space
    rows = {
        "sweep": f"{plan.folder.path}{' (resumed)' if plan.resumed else ''}",
        "dataset": _describe_dataset(plan.manifest),
        "recipe": f"{space.recipe}, up to {space.budget.rungs_kimg[-1]:g} kimg",
        "search": _describe_search(space),
        **({"warm start": "\n".join(plan.warm_start.notes)} if plan.warm_start.notes else {}),
        **_describe_goals(space),
        "was set": budget_changes.describe(plan.limits_set),
        "waiting": "\n".join(request.text() for request in steering.waiting(plan.folder)),
        "race tells": _describe_resolution(plan),
        "runs on": placement.describe(),
        "measured": _describe_choice(plan, placement),
        "to measure": _describe_measuring(plan, placement),
    }
    needed = estimate.needed(space, space.budget.trials or estimate.DRAWS)
    if needed.proxies:
        rows["needs"] = _describe_needed(needed, space)
    remainder = left.of_resumed(plan, placement)
    if remainder:
        rows["left"] = remainder.text()
    if speed and (remainder is None or remainder.begun == 0):
        cost = estimate.estimate_sweep(plan, placement, speed)
        rows["will take"] = (
            f"about {formatting.duration(cost.hours)} and {cost.bytes / 2**20:,.0f} MiB "
            f"for {cost.first_repeats} + at most {cost.race_repeats} repeats, {cost.kimg:,.0f} kimg"
        )
    show_list({name: text for name, text in rows.items() if text})
    console.print()


def _describe_choice(plan: Plan, placement: Placement) -> str:
    """Say what was measured to choose the number of GPUs of a repeat; empty if nothing was."""
    choice = placement.choice
    if choice is None:
        return ""
    kimg = plan.space.budget.rungs_kimg[-1]
    texts = []
    for each in choice.arrangements:
        rate = each.problem or f"{formatting.number(each.kimg_an_hour / kimg)} repeats an hour"
        texts.append(f"{arrangement.name(each.gpus)}: {rate}")
    return f"on {choice.node}, without scores: {'; '.join(texts)}"


def _describe_measuring(plan: Plan, placement: Placement) -> str:
    """Say that the number of GPUs of a repeat is not chosen yet; empty if it is."""
    if plan.options.gpus_per_repeat != AUTO or placement.choice:
        return ""
    return "before the first repeat, with how many GPUs most finish; until then each is taken to have all of a node"


def _describe_resolution(plan: Plan) -> str:
    """Say which difference of two trials the race can tell; empty if it has no fresh seeds, or several objectives."""
    gap = resolution.smallest_gap(plan.space)
    if gap == math.inf or len(plan.space.objectives) > 1:
        return ""
    noise = resolution.seed_noise(plan.storage.sweeps(), plan.space, plan.manifest.content_hash)
    seeds = resolution.fresh_seeds(plan.space)
    if noise is None:
        return f"differences of {gap:.1f} seed deviations and more, with {seeds} fresh seeds each, in 4 of 5 cases"
    return (
        f"differences of {gap * noise.share:.1%} and more, with {seeds} fresh seeds each, in 4 of 5 cases:\n"
        f"seeds differ by {noise.share:.1%} in sweep {noise.sweep}"
    )


def _describe_needed(needed: estimate.Needed, space: Space) -> str:
    """Describe the references and proxies that are trained before the recipes that need them."""
    most = "" if space.arms else "up to "
    parts = [f"{most}{formatting.counted(needed.proxies, 'proxy', 'proxies')}"]
    if needed.references:
        parts.insert(0, formatting.counted(needed.references, "reference", "references"))
    among = "" if space.arms or space.budget.trials else f" for {estimate.DRAWS} trials"
    return (
        f"{' and '.join(parts)}{among}, {needed.kimg:,.0f} kimg, each trained once;\n"
        "their full cost is in the device_hours of every recipe that needs them"
    )


def _describe_dataset(manifest: Manifest) -> str:
    return f"{describe_items(manifest)}, content {manifest.content_hash[:12]}"


def describe_items(manifest: Manifest) -> str:
    """Say what a dataset is called, and how many items of which size and how many classes it has."""
    classes = len(manifest.classes or ())
    count = manifest.splits["train"].count
    if "images" in manifest.kinds:
        colours = ("grey", "RGB")[manifest.channels // 3]
        items = f"{count} images of {manifest.size}x{manifest.size}, {colours}"
    else:
        items = f"{count} {manifest.modality} of up to {manifest.size} points"
    return f"{manifest.name}: {items}, {classes} classes"


def _describe_search(space: Space) -> str:
    lines = []
    for path, span in space.search.items():
        line = f"{path}  {describe_range(span)}"
        if span.when:
            line += f" when {describe_condition(space, path)}"
        lines.append(line)
    return "\n".join(lines)


def describe_range(span: Range) -> str:
    """Describe in words the values that a range allows."""
    if span.choice:
        return _either(span.choice)
    if span.int:
        low, high = span.int
        text = f"whole numbers {low} to {high}"
        if span.step > 1:
            text += f" in steps of {span.step}"
        if span.log:
            text += ", log scale"
        return text

    low, high = span.uniform or span.loguniform or (0.0, 0.0)
    text = f"{low:g} to {high:g}"
    if span.loguniform:
        text += ", log scale"
    return text


def describe_condition(space: Space, path: str) -> str:
    """Describe in words when a field is searched; empty if it always is.

    Fields of the same section are named without the section.
    """
    section = path.rpartition(".")[0]
    parts = []
    for other, values in space.search[path].when.items():
        name = other.removeprefix(f"{section}.")
        excluded = [value for value in space.search[other].choice or () if value not in values]
        if len(excluded) == 1:
            parts.append(f"{name} is not {_plain(excluded[0])}")
        else:
            parts.append(f"{name} is {_either(values)}")
    return " and ".join(parts)


def show_result(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space, reason: str) -> None:
    """Print the leaderboard, the verdict and the paths of the results."""
    _show_leaderboard(rows, space)
    outlook = gain.of_more_trials([row.trial for row in rows], space, folder)
    if outlook:
        say(f"{outlook.text()}.\n")
    if reason != "complete":
        say(f"Not complete: {reason}. Run the same command again to resume.")
    say(f"report       {folder.report}")
    say(f"leaderboard  {folder.leaderboard}")
    if folder.best_recipe.exists():
        say(f"best recipe  {folder.best_recipe}")
    model = recommended.repeat_of(folder, rows, space)
    if model and model.files.model.exists():
        say(f"its model    {model.files.model}")
        say(f"sample it    {recommended.sample_command(folder)}")
        say(f"train on     {recommended.longer_command(folder, model, space)}")


def show_ranking(folder: SweepFolder, rows: Sequence[leaderboard.TrialRow], space: Space) -> None:
    """Print the leaderboard for other objectives and constraints than the sweep's own."""
    _show_leaderboard(rows, space)
    goals = _describe_goals(space)
    goal_texts = [goals[name] for name in ("objective", "constraint") if name in goals]
    say(f"ranked by    {', '.join(goal_texts)}")
    say("The sweep's own goals decided which trials were stopped and which got fresh seeds.")
    best = leaderboard.best(rows)
    if best:
        say(f"recipe       {folder.repeat(best.number, 0).recipe}")


def show_replay(folder: SweepFolder, replay: "Replay") -> None:
    """Print what a sweep did, what other methods would have done on its curves, and what that cannot tell."""
    sweep = replay.recording
    good = [f"{number:04d}" for number in sorted(sweep.good - {sweep.recommended})]
    hours = formatting.number(sweep.search_hours)
    say(f"sweep        {folder.path}")
    say(f"its search   {len(sweep.trials)} recipes, {sweep.scored} of them to the end, in {hours} device-hours")
    say(f"its race     {formatting.number(sweep.race_hours)} device-hours more; it is not replayed")
    say(f"good         {', '.join([f'{sweep.recommended:04d} (recommended)', *good])}")

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("method", "found", "hours", "recipes", "estimated", "recommends"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_row(
        "the sweep", "yes", f"at most {hours}", f"at most {len(sweep.trials)}", "0%", f"{sweep.recommended:04d}"
    )
    for own in replay.methods:
        table.add_row(*_replay_row(own))
    console.print(table)

    say(f"found        seeds that train a good recipe to the end within the {hours} device-hours of the sweep's search")
    say("hours        median device-hours until then; recipes: median number of recipes begun")
    say("estimated    share of its hours that is not recorded but estimated")
    say(f"recommends   the most frequent recommendation after {hours} device-hours, and of how many seeds")
    for limit in replay.limits:
        say(f"note         {limit}")


def _replay_row(own: "Replayed") -> list[str]:
    seeds = len(own.hours_by_seed)
    recommended, count = next(iter(own.recommended.items()))
    return [
        own.method,
        f"{own.found} of {seeds}",
        formatting.number(own.hours) if math.isfinite(own.hours) else "never",
        formatting.number(own.recipes) if math.isfinite(own.recipes) else "never",
        f"{own.estimated:.0%}",
        f"{'not known' if recommended is None else f'{recommended:04d}'}, {count} of {seeds}",
    ]


def _show_leaderboard(rows: Sequence[leaderboard.TrialRow], space: Space) -> None:
    table = leaderboard.table(rows, space, console.width)
    verdict = leaderboard.verdict(rows, space)
    console.print("", table, verdict, "", sep="\n")


def show_space(space: Space) -> None:
    """Print a space: its goals, its budget, and for each field the range, the condition and the default values."""
    base = space.base()
    rows = []
    for path, span in space.search.items():
        rows.append(
            {
                "field": path,
                "range": describe_range(span),
                "when": describe_condition(space, path),
                "recipe": _plain(value_of(base, path)),
                "paper": span.paper or "",
            }
        )

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    headings = [heading for heading in ("field", "range", "when", "recipe", "paper") if any(r[heading] for r in rows)]
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "field")
    for row in rows:
        table.add_row(*[escape(row[heading]) for heading in headings])
    console.print(escape(space.about), table)
    show_list({"recipe": space.recipe, **_describe_goals(space)})


def _describe_goals(space: Space) -> dict[str, str]:
    """Describe the objectives, the constraints and the budget of a space."""
    objectives = [f"{direction} {name}" for name, direction in space.objectives.items()]
    constraints = [f"{name} {formatting.bound(bound)}" for name, bound in space.constraints.items()]
    rows = {
        "objective": ", ".join(objectives),
        "constraint": ", ".join(constraints),
        "budget": _describe_budget(space),
    }
    return {name: text for name, text in rows.items() if text}


def _describe_budget(space: Space) -> str:
    budget = space.budget
    rungs = ", ".join(f"{rung:g}" for rung in budget.rungs_kimg) + " kimg"
    if not space.is_scored_in_full(0):
        rungs += f" ({space.samples_at(0):,} samples, {space.scoring.samples:,} at the last)"
    if space.arms:
        return f"{budget.trials} arms with {budget.repeats} repeats each, scored at {rungs}"
    trials = "trials"
    leaders = budget.leaders
    if budget.trials is not None:
        trials = f"{budget.trials} trials"
        leaders = min(leaders, budget.trials)
    hours = ""
    if budget.max_gpu_hours is not None:
        hours = f" within {budget.max_gpu_hours:g} GPU-hours, of which {budget.race_share:.0%} are kept for the race"
    if budget.until_gain is not None:
        hours += f", until {gain.AHEAD} more are expected to gain less than {budget.until_gain:.3g} of the score"
    return (
        f"{trials}{hours}; at rungs of {rungs} the best 1/{budget.reduction:g} continue;\n"
        f"then {leaders} leaders race for up to {budget.repeats} repeats each"
    )


def _either(values: Iterable[Any]) -> str:
    *others, last = map(_plain, values)
    return f"{', '.join(others)} or {last}" if others else last


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


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


def show_cluster_report(report: "ClusterReport") -> None:
    """Print the findings of the doctor: a row for each node, and a line for each fault."""
    rows = [_node_row(node_report) for node_report in report.nodes]
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold")
    headings = [heading for heading in NODE_COLUMNS if any(row.get(heading) for row in rows)]
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "node", overflow="fold")
    for row in rows:
        table.add_row(*[escape(row.get(heading, "")) for heading in headings])
    console.print(table)
    show_faults(report.faults)


def show_faults(faults: Sequence["Fault"]) -> None:
    """Print a line for each fault, with its remedy."""
    for fault in faults:
        say(f"{'STOPS' if fault.stops else 'note '}  {fault}")


def _node_row(report: "NodeReport") -> dict[str, str]:
    """Return a node's row of the doctor's table, by heading; memory and disk sizes are free space."""
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
