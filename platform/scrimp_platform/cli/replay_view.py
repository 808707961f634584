"""What other methods would have done on a sweep's curves, printed in the terminal."""

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table

from scrimp_platform.cli import terminal
from scrimp_platform.cli.terminal import say
from scrimp_platform.report import formatting
from scrimp_platform.search.replay import Replay, Replayed
from scrimp_platform.store import SweepFolder


def show_replay(folder: SweepFolder, replay: Replay) -> None:
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
    terminal.console.print(table)

    say(f"found        seeds that train a good recipe to the end within the {hours} device-hours of the sweep's search")
    say("hours        median device-hours until then; recipes: median number of recipes begun")
    say("estimated    share of its hours that is not recorded but estimated")
    say(f"recommends   the most frequent recommendation after {hours} device-hours, and of how many seeds")
    for limit in replay.limits:
        say(f"note         {limit}")


def _replay_row(own: Replayed) -> list[str]:
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
