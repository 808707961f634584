"""The leaderboard in words, as a file, and in the terminal."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scrimp_platform import store
from scrimp_platform.report import formatting
from scrimp_platform.report.ranking import TrialRow, best, cost, lost, rank, typical, violation
from scrimp_platform.search.stats import Direction
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

__all__ = [
    "TrialRow", "best", "chosen", "columns", "entries", "lost", "rank", "score", "status", "table", "typical",
    "verdict", "write_csv",
]  # fmt: skip

_GOOD, _BAD = "bold green", "red"
_STYLES = {"winner": _GOOD, "leader": _GOOD, "front": _GOOD, "tied": "green", "failed": _BAD, "damaged": _BAD}


def verdict(rows: Sequence[TrialRow], space: Space) -> str:
    """Say which trial wins and by what, or which cannot be told apart, in one or two sentences."""
    first = best(rows)
    if first is None:
        return _no_winner(rows, space)
    if len(space.objectives) > 1:
        return _front_verdict(rows, first, space)
    name, direction = next(iter(space.objectives.items()))
    text = f"{_single_verdict(rows, first, name, space)}{_lucky(rows, first, name, direction)}"
    return f"{text}."


def _single_verdict(rows: Sequence[TrialRow], first: TrialRow, name: str, space: Space) -> str:
    """Say how the first trial stands by the only objective."""
    score = f"{name} {formatting.interval(first.summaries[name])}"
    if not first.fresh:
        return f"Trial {first.number} leads with {score} in the repeat by which it was chosen, so its lead may be luck"
    seeds = _seeds(first.repeats, space)
    if first.repeats == 1:
        return f"Trial {first.number} leads with {score} over {seeds}: no interval, so its lead may be luck"
    ties = [row for row in rows if row.status == "tied" and row is not first]
    if first.status == "winner":
        return f"Trial {first.number} wins: {score} over {seeds}"
    if first.status == "tied":
        others = [f"trial {row.number} ({formatting.interval(row.summaries[name])})" for row in ties]
        return (
            f"No winner: trial {first.number} has the best mean, {score} over {seeds}, "
            f"but its 95% interval overlaps that of {formatting.listed(others)}"
        )
    if not any(row.raced for row in rows if row is not first):
        return f"Trial {first.number} leads: {score} over {seeds}, which no other trial got"
    text = f"Trial {first.number} leads so far: {score} over {seeds}"
    if ties:
        text += f"; {_trials([row.number for row in ties])} cannot be told from it yet (intervals overlap)"
    return text


def _lucky(rows: Sequence[TrialRow], first: TrialRow, name: str, direction: Direction) -> str:
    """Name the trials that were better in a single repeat and got no fresh seeds."""
    mean = cost(first.summaries[name].mean, direction)
    lucky = [row for row in rows if row.status == "single" and cost(row.summaries[name].mean, direction) < mean]
    values = formatting.listed([f"trial {row.number} ({formatting.interval(row.summaries[name])})" for row in lucky])
    return f". Better in the single repeat of the search, which may be luck: {values}" if lucky else ""


def _seeds(count: int, space: Space) -> str:
    """Say over how many seeds a mean is taken: `3 fresh seeds`; those of arms chose nobody and are all fresh."""
    return formatting.counted(count, "seed" if space.arms else "fresh seed")


def _front_verdict(rows: Sequence[TrialRow], first: TrialRow, space: Space) -> str:
    front = [row.number for row in rows if row.rank == first.rank]
    so_far = " so far" if first.status == "leader" else ""
    verb = "is alone on" if len(front) == 1 else "form"
    text = (
        f"{_trials(front).capitalize()} {verb} the Pareto front of {formatting.listed(list(space.objectives))}{so_far}"
    )
    if not first.fresh:
        text += ", by the repeats by which they were chosen, so the front may be luck"
    elif first.repeats == 1:
        text += ", by single repeats: no intervals, so the front may be luck"
    if ties := [row.number for row in rows if row.status == "tied"]:
        text += f"; {_trials(ties)} may belong to it (intervals overlap)"
    return f"{text}."


def _no_winner(rows: Sequence[TrialRow], space: Space) -> str:
    broken = [row for row in rows if row.status == "infeasible"]
    if broken:
        faults = [
            f"{name} {formatting.number(mean)} ({formatting.limit(space.constraints[name])})"
            for name, mean in broken[0].constraints.items()
            if violation(space, name, mean)
        ]
        return (
            f"No trial keeps the constraints; trial {broken[0].number} comes closest, with {formatting.listed(faults)}."
        )
    if not rows:
        return "No trial has begun."
    counts = Counter(row.status for row in rows)
    return (
        f"No trial has been trained to the end: {formatting.listed([f'{n} {status}' for status, n in counts.items()])}."
    )


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'' if len(numbers) == 1 else 's'} {formatting.listed(sorted(numbers))}"


def write_csv(rows: Sequence[TrialRow], space: Space, folder: SweepFolder) -> None:
    """Write `leaderboard.csv`: numbers in full, nothing where there is no value, lists as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(space))
    for entry in entries(rows, space):
        writer.writerow([_cell(value) for value in entry.values()])
    store.write_atomic(folder.leaderboard, text.getvalue())


def columns(space: Space) -> list[str]:
    """Return the names of the leaderboard's columns."""
    parts = ("mean", "std", "ci_low", "ci_high", "chosen_at")
    scores = [f"{name}_{part}" for name in space.objectives for part in parts]
    return ["rank", "trial", "status", "repeats", *scores, "kimg", "gpu_hours", *space.search]


def entries(rows: Sequence[TrialRow], space: Space) -> list[dict[str, Any]]:
    """Return each trial's values by column: nan for a missing score, None for a field without a value."""
    return [_entry(row, space) for row in rows]


def _entry(row: TrialRow, space: Space) -> dict[str, Any]:
    numbers: list[float | None] = []
    for name in space.objectives:
        summary = row.summaries[name]
        numbers += [summary.mean, summary.std, summary.low, summary.high, row.chosen[name]]
    values = [row.trial.params.get(path) for path in space.search]
    cells = [row.rank, row.number, status(row), row.repeats, *numbers, row.kimg, row.gpu_hours, *values]
    return dict(zip(columns(space), cells, strict=True))


def score(row: TrialRow, objective: str) -> str:
    """Say an objective's mean with its interval; with the first one at which rung, if that is not the last."""
    summary, first = row.summaries[objective], next(iter(row.summaries))
    rung = f" at {row.kimg:g} kimg" if summary.n and not row.finished and objective == first else ""
    return formatting.interval(summary) + rung


def chosen(row: TrialRow, objective: str) -> str:
    """Say by which score the search chose a trial of the race; it counts in no mean."""
    return formatting.number(row.chosen[objective]) if row.fresh else ""


def status(row: TrialRow) -> str:
    """Say a row's status, and how many repeats failed or are damaged where others are not."""
    exceptions = [f" ({formatting.counted(count, 'repeat')} {name})" for name, count in _exceptions(row).items()]
    return row.status + "".join(exceptions)


def _exceptions(row: TrialRow) -> dict[str, int]:
    """Return how many repeats failed or are damaged, where that is not the trial's own status."""
    counts = {"failed": row.failed, "damaged": row.damaged}
    return {name: count for name, count in counts.items() if count and name != row.status}


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def table(rows: Sequence[TrialRow], space: Space, width: int = 100) -> Table:
    """Lay the leaderboard out for a terminal: tightly where it has to, with the searched fields folded at worst."""
    measure = Console(width=1000).measure
    layouts = (_table(rows, space, tight) for tight in (False, True))
    fitting = (layout for layout in layouts if measure(layout).maximum <= width)
    return next(fitting, _table(rows, space, tight=False, folded=True))


def _table(rows: Sequence[TrialRow], space: Space, tight: bool, folded: bool = False) -> Table:
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if tight else 1, 0, 0))
    names = formatting.short_names(space.search)
    for title in ("#", "trial"):
        result.add_column(title, justify="right", no_wrap=True)
    for title in ("status", "repeats", *space.objectives):
        result.add_column(title, no_wrap=True)
    first = next(iter(space.objectives))
    chosen_at = ["chosen at"] if not folded and any(chosen(row, first) for row in rows) else []
    for title in (*chosen_at, *space.constraints, *([] if tight else ["time"]), *([] if folded else names.values())):
        result.add_column(title.replace("_", "_\n") if len(title) > 9 else title, justify="right", no_wrap=True)
    if folded:
        result.add_column("searched fields")
    for row in rows:
        values = [formatting.number(row.trial.params[path]) if path in row.trial.params else "-" for path in names]
        pairs = [f"{name} {value}" for name, value in zip(names.values(), values, strict=True)]
        cells = [
            str(row.rank),
            str(row.number),
            row.status,
            "\n".join([f"{row.repeats}", *(f"{count} {name}" for name, count in _exceptions(row).items())]),
            *[score(row, name) for name in space.objectives],
            *[chosen(row, first) for _ in chosen_at],
            *[formatting.number(mean) for mean in row.constraints.values()],
            *([] if tight else [formatting.duration(row.gpu_hours)]),
            *([", ".join(pairs)] if folded else values),
        ]
        result.add_row(*map(escape, cells), style=_STYLES.get(row.status, "" if row.finished else "dim"))
    return result
