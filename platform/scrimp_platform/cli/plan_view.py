"""A plan and a space, as they are printed before a sweep."""

import math
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scrimp_platform import arrangement, left
from scrimp_platform.cli import terminal
from scrimp_platform.cluster import AUTO, Placement
from scrimp_platform.plan import Plan
from scrimp_platform.report import formatting
from scrimp_platform.search import budget_changes, estimate, gain, resolution, steering
from scrimp_platform.search.estimate import Speed
from scrimp_spaces.ranges import Range
from scrimp_spaces.space import Space, value_of
from scrimp_trainers.data.manifest import Manifest


def show_plan(plan: Plan, placement: Placement, speed: Speed | None) -> None:
    """Print what is searched, where it runs, and how much time and disk space it takes."""
    space = plan.space
    rows = {
        "sweep": f"{plan.folder.path}{' (resumed)' if plan.resumed else ''}",
        "dataset": _describe_dataset(plan.manifest),
        "recipe": f"{space.recipe}, up to {space.budget.rungs_kimg[-1]:g} kimg",
        "search": _describe_search(space),
        **({"warm start": "\n".join(plan.warm_start.notes)} if plan.warm_start.notes else {}),
        **describe_goals(space),
        "was set": budget_changes.describe(plan.limits_set),
        "waiting": "\n".join(steering.waiting(plan.folder)),
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
    terminal.show_list({name: text for name, text in rows.items() if text})
    terminal.console.print()


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
    terminal.console.print(escape(space.about), table)
    terminal.show_list({"recipe": space.recipe, **describe_goals(space)})


def describe_goals(space: Space) -> dict[str, str]:
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
