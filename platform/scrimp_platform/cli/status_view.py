"""The status of sweeps, printed in the terminal."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scrimp_platform.cli import terminal
from scrimp_platform.cli.status import SweepStatus, lock_node
from scrimp_platform.report import formatting, leaderboard
from scrimp_platform.search import estimate, gain
from scrimp_platform.search.records import RepeatStatus


def show_storage(unfinished: Sequence[SweepStatus], complete: Sequence[str], problems: Sequence[str] = ()) -> None:
    """Print the status of each unfinished sweep, the names of the complete ones, and which cannot be read."""
    for sweep in unfinished:
        show_sweep(sweep)
    if complete:
        terminal.say(f"complete: {', '.join(complete)}")
    terminal.show_problems(problems)


def show_sweep(sweep: SweepStatus) -> None:
    """Print what a sweep has done and has left to do, its best trial so far, and its running repeats."""
    description = sweep.description
    started = time.strftime("%d %b %H:%M", time.localtime(description["started"]))
    rows = {
        sweep.folder.path.name: _driver(sweep),
        "of": f"space {description.get('space_name', '')}, dataset {description['dataset']['name']}, since {started}",
        "trials": describe_trials(sweep),
        "repeats": describe_repeats(sweep),
        "needs": describe_preparations(sweep),
        "best": leaderboard.verdict(leaderboard.rank(sweep.trials, sweep.space), sweep.space),
        "spent": describe_spent(sweep),
    }
    outlook = gain.of_more_trials(sweep.trials, sweep.space, sweep.folder)
    if outlook:
        rows["to gain"] = outlook.text()
    hours_left = sweep.hours_left
    if hours_left:
        rows["left"] = f"about {formatting.duration(hours_left)}"
    for cause, count in sweep.failures.most_common(3):
        rows[f"failed {count}"] = cause

    terminal.show_list({name: text for name, text in rows.items() if text})
    if sweep.running:
        terminal.console.print(_running_repeats(sweep))
    terminal.show_problems(sweep.problems)
    terminal.console.print()


def _driver(sweep: SweepStatus) -> str:
    if sweep.node:
        return f"runs on {sweep.node}, {sweep.phase}"
    return f"does not run: {sweep.reason or 'its driver is gone'}"


def describe_trials(sweep: SweepStatus) -> str:
    """Say how many trials have begun, and how many are to come."""
    begun = len(sweep.trials)
    if sweep.space.budget.trials is None:
        return f"{begun} begun"
    to_come = sweep.space.budget.trials - begun
    return f"{begun} begun, {to_come} to come" if to_come else f"{begun}, all begun"


def describe_repeats(sweep: SweepStatus) -> str:
    """Count the repeats by their status, and those to come."""
    counts = Counter(repeat.status for repeat in sweep.repeats)
    text = ", ".join(f"{counts[status]} {status}" for status in get_args(RepeatStatus) if counts[status])
    to_come = estimate.max_race_repeats_left(sweep.trials, sweep.space)
    if to_come > 0:
        text += f"; in the race at most {to_come} more"
    return text


def describe_preparations(sweep: SweepStatus) -> str:
    """Say of each reference and proxy that runs where it does, and of the others how many there are."""
    lines = []
    for preparation in sweep.preparations:
        if preparation.status == "running":
            node = lock_node(sweep.folder.preparation(preparation.name).lock)
            where = f"running on {node}" if node else "starting"
            hours = formatting.number(preparation.device_hours)
            lines.append(f"{preparation.name}, {preparation.kimg:g} kimg: {where}, {hours} device-hours so far")
    if sweep.preparations:
        lines.append(formatting.preparations(sweep.preparations))
    return "\n".join(lines)


def describe_spent(sweep: SweepStatus) -> str:
    """Say what the sweep has cost, and what it may cost."""
    text = f"{formatting.number(sweep.device_hours)} device-hours"
    if sweep.space.budget.max_gpu_hours:
        text += f" of at most {sweep.space.budget.max_gpu_hours:g}"
    return text


def _running_repeats(sweep: SweepStatus) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("repeat", "phase", "node"):
        table.add_column(heading, no_wrap=heading != "node", overflow="fold")
    for heading in ("kimg", "rung", "images/s", "last update"):
        table.add_column(heading, justify="right")

    for running in sweep.running:
        speed = ""
        if running.images_per_second:
            speed = formatting.number(running.images_per_second)
        last_update = ""
        if running.seconds_since_update is not None:
            last_update = f"{formatting.duration(running.seconds_since_update / 3600)} ago"
        table.add_row(
            running.label,
            running.repeat.phase,
            escape(running.node) or "starting",
            f"{running.kimg:,.0f} of {sweep.space.budget.rungs_kimg[-1]:,g}",
            f"{max(running.repeat.rungs, default=0):g}",
            speed,
            last_update,
        )
    return table
