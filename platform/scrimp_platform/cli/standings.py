"""How sweeps stand, in the terminal."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scrimp_platform.cli import terminal
from scrimp_platform.cli.status import Standing
from scrimp_platform.report import formatting, leaderboard
from scrimp_platform.search import estimate
from scrimp_platform.search.records import RepeatStatus


def show(standings: Sequence[Standing], complete: Sequence[str], problems: Sequence[str] = ()) -> None:
    """Print how each unfinished sweep stands, which are complete, and which cannot be read."""
    for standing in standings:
        show_one(standing)
    if complete:
        terminal.say(f"complete: {', '.join(complete)}")
    terminal.show_problems(problems)


def show_one(one: Standing) -> None:
    """Print what of a sweep is done and left, its best so far, and a line for each repeat that runs."""
    budget, counts = one.space.budget, Counter(repeat.status for repeat in one.repeats)
    left, to_come = budget.trials - len(one.trials), estimate.max_race_repeats_left(one.trials, one.space)
    stands = f"runs on {one.node}, {one.phase}" if one.node else f"does not run: {one.reason or 'its driver is gone'}"
    since = time.strftime("%d %b %H:%M", time.localtime(one.sweep["started"]))
    limit = f" of at most {budget.max_gpu_hours:g}" if budget.max_gpu_hours else ""
    rows = {
        one.folder.path.name: stands,
        "of": f"space {one.sweep.get('space_name', '')}, dataset {one.sweep['dataset']['name']}, since {since}",
        "trials": f"{len(one.trials)} begun, {left} to come" if left else f"{len(one.trials)}, all begun",
        "repeats": ", ".join(f"{counts[status]} {status}" for status in get_args(RepeatStatus) if counts[status])
        + f"; in the race at most {to_come} more" * (to_come > 0),
        "best": leaderboard.verdict(leaderboard.rank(one.trials, one.space), one.space),
        "spent": f"{formatting.number(one.device_hours)} device-hours{limit}",
        "left": f"about {formatting.duration(one.hours_left)}" if one.hours_left else "",
        **{f"failed {count}": cause for cause, count in one.failures.most_common(3)},
    }
    terminal.show_list({name: text for name, text in rows.items() if text})
    if one.running:
        terminal.console.print(_trainings(one))
    terminal.show_problems(one.problems)
    terminal.console.print()


def _trainings(one: Standing) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("repeat", "phase", "node"):
        table.add_column(heading, no_wrap=heading != "node", overflow="fold")
    for heading in ("kimg", "rung", "images/s", "last heard of"):
        table.add_column(heading, justify="right")
    for training in one.running:
        table.add_row(
            training.label,
            training.repeat.phase,
            escape(training.node) or "starting",
            f"{training.kimg:,.0f} of {one.space.budget.rungs_kimg[-1]:,g}",
            f"{max(training.repeat.scores, default=0):g}",
            formatting.number(training.images_per_second) if training.images_per_second else "",
            "" if training.heard is None else f"{formatting.duration(training.heard / 3600)} ago",
        )
    return table
