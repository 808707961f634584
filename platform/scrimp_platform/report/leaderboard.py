"""The leaderboard as a verdict in words, as a CSV file, and as a table in the terminal."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scrimp_platform import store
from scrimp_platform.report import formatting
from scrimp_platform.report.ranking import (
    TrialRow,
    as_minimized,
    best,
    may_hide_best,
    rank,
    typical_repeat,
)
from scrimp_platform.search.stats import Direction
from scrimp_platform.search.verdict import MARGIN, Cost, cheapest, violation
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

__all__ = [
    "TrialRow", "best", "chosen_at_text", "columns", "entries", "may_hide_best", "probability_text", "rank",
    "score_text", "status_text", "table", "typical_repeat", "verdict", "write_csv",
]  # fmt: skip

MIN_FOLDED_WIDTH = 20
"""Of the column that all searched fields share."""
_GOOD = "bold green"
_BAD = "red"
_STYLES = {"recommended": _GOOD, "leader": _GOOD, "front": _GOOD, "tied": "green", "failed": _BAD, "damaged": _BAD}


def verdict(rows: Sequence[TrialRow], space: Space) -> str:
    """Return a few sentences: which trial is recommended, how sure that is, and which cannot be told from it."""
    first = best(rows)
    if first is None:
        return _no_best(rows, space)
    if len(space.objectives) > 1:
        return _front_verdict(rows, first, space)
    name, direction = next(iter(space.objectives.items()))
    return f"{_single_verdict(rows, first, name, space)}{_lucky_trials(rows, first, name, direction)}."


def _single_verdict(rows: Sequence[TrialRow], first: TrialRow, name: str, space: Space) -> str:
    """Return the verdict on the first trial by the only objective."""
    mean = formatting.interval(first.summaries[name])
    score = f"{name} {mean}"
    if not first.fresh:
        return f"Trial {first.number} leads with {score} in the repeat by which it was chosen, so its lead may be luck"
    seeds = _seeds(first.repeat_count, space)
    if first.repeat_count == 1:
        return f"Trial {first.number} leads with {score} over {seeds}, so its lead may be luck"

    ties = [row for row in rows if row.status == "tied" and row is not first]
    if first.status == "recommended":
        return f"{_recommendation(first, ties, space)} Its {name} is {mean} over {seeds}"

    # The race is not over, or there was none.
    if not any(row.raced for row in rows if row is not first):
        return f"Trial {first.number} leads: {score} over {seeds}, which no other trial got"
    text = f"Trial {first.number} leads so far: {score} over {seeds}"
    if ties:
        text += f"; {_trials([row.number for row in ties])} cannot be told from it yet"
    return text


def _recommendation(first: TrialRow, ties: Sequence[TrialRow], space: Space) -> str:
    """Say how sure it is that the recommended trial is the best or near it, and why it is recommended."""
    if not ties:
        chance = formatting.probability(first.probability_best)
        return f"Trial {first.number} is the best of these with probability {chance}."
    text = (
        f"Trial {first.number} is within {MARGIN:.0%} of the best of these with probability "
        f"{formatting.probability(first.probability)}; {_trials([row.number for row in ties])} cannot be told from it."
    )
    if space.prefer == "best":
        text += " It has the best mean."
    elif _is_cheapest(first, ties):
        comparison = "the cheaper of the two"
        if len(ties) > 1:
            comparison = f"the cheapest of the {formatting.cardinal(len(ties) + 1)}"
        text += f" It is {comparison}: {_cost_text(first)}."
    elif any(_is_cheapest(row, [first]) for row in ties):
        text += f" Of those with a mean within {MARGIN:.0%} of the best it is the cheapest: {_cost_text(first)}."
    return text


def _is_cheapest(first: TrialRow, ties: Sequence[TrialRow]) -> bool:
    """Whether a trial is known to cost less than all of those that cannot be told from it."""
    costs = {row.number: Cost(row.gpu_hours, row.parameters) for row in (first, *ties)}
    return cheapest(costs) == [first.number]


def _cost_text(row: TrialRow) -> str:
    parts = [f"{formatting.count(row.parameters)} parameters"] if math.isfinite(row.parameters) else []
    if math.isfinite(row.gpu_hours):
        parts.append(formatting.duration(row.gpu_hours))
    return ", ".join(parts)


def _trial_with_score(row: TrialRow, name: str) -> str:
    return f"trial {row.number} ({formatting.interval(row.summaries[name])})"


def _lucky_trials(rows: Sequence[TrialRow], first: TrialRow, name: str, direction: Direction) -> str:
    """List the trials that were better than the first one in the search, but got no fresh seeds."""
    best_mean = as_minimized(first.summaries[name].mean, direction)
    lucky = []
    for row in rows:
        mean = as_minimized(row.summaries[name].mean, direction)
        if row.status == "single" and mean < best_mean:
            lucky.append(_trial_with_score(row, name))
    if not lucky:
        return ""
    return f". Better in the single repeat of the search, which may be luck: {formatting.conjunction(lucky)}"


def _seeds(count: int, space: Space) -> str:
    """Return the number of seeds of a mean: `3 fresh seeds`. Arms are not selected, so all their seeds are fresh."""
    noun = "seed" if space.arms else "fresh seed"
    return formatting.plural(count, noun)


def _front_verdict(rows: Sequence[TrialRow], first: TrialRow, space: Space) -> str:
    """Return the verdict on the trials of the Pareto front of several objectives."""
    front = [row.number for row in rows if row.rank == first.rank]
    verb = "is alone on" if len(front) == 1 else "form"
    objectives = formatting.conjunction(list(space.objectives))
    text = f"{_trials(front).capitalize()} {verb} the Pareto front of {objectives}"
    if first.status == "leader":
        text += " so far"
    if not first.fresh:
        text += ", by the repeats by which they were chosen, so the front may be luck"
    elif first.repeat_count == 1:
        text += ", by single repeats: no intervals, so the front may be luck"
    ties = [row.number for row in rows if row.status == "tied"]
    if ties:
        text += f"; {_trials(ties)} may belong to it"
    return f"{text}."


def _no_best(rows: Sequence[TrialRow], space: Space) -> str:
    """Say why there is no best trial."""
    if not rows:
        return "No trial has begun."

    infeasible = [row for row in rows if row.status == "infeasible"]
    if infeasible:
        closest = infeasible[0]
        violations = [
            f"{name} {formatting.number(mean)} ({formatting.bound(space.constraints[name])})"
            for name, mean in closest.constraints.items()
            if violation(space, name, mean)
        ]
        text = formatting.conjunction(violations)
        return f"No trial keeps the constraints; trial {closest.number} comes closest, with {text}."

    counts = Counter(row.status for row in rows)
    text = formatting.conjunction([f"{count} {status}" for status, count in counts.items()])
    return f"No trial has been trained to the end: {text}."


def _trials(numbers: Sequence[int]) -> str:
    noun = "trial" if len(numbers) == 1 else "trials"
    return f"{noun} {formatting.conjunction(sorted(numbers))}"


def write_csv(rows: Sequence[TrialRow], space: Space, folder: SweepFolder) -> None:
    """Write `leaderboard.csv`: numbers in full precision, missing values empty, lists as JSON."""
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
    scores += [f"{name}_mean" for name in space.constraints if name not in space.objectives]
    costs = ["kimg", "gpu_hours", "parameters"]
    return ["rank", "trial", "status", "repeats", *scores, *costs, "probability", *space.search]


def entries(rows: Sequence[TrialRow], space: Space) -> list[dict[str, Any]]:
    """Return the values of each trial by column: nan for a missing score, None for a field that was not searched."""
    return [_entry(row, space) for row in rows]


def _entry(row: TrialRow, space: Space) -> dict[str, Any]:
    numbers: list[float | None] = []
    for name in space.objectives:
        summary = row.summaries[name]
        numbers += [summary.mean, summary.std, summary.low, summary.high, row.chosen_at[name]]
    numbers += [mean for name, mean in row.constraints.items() if name not in space.objectives]
    numbers += [row.kimg, row.gpu_hours, row.parameters, row.probability]
    values = [row.trial.params.get(path) for path in space.search]
    cells = [row.rank, row.number, status_text(row), row.repeat_count, *numbers, *values]
    return dict(zip(columns(space), cells, strict=True))


def score_text(row: TrialRow, objective: str) -> str:
    """Format the mean of an objective with its interval; the first one also with the rung if that is not the last."""
    summary = row.summaries[objective]
    text = formatting.interval(summary)
    first = next(iter(row.summaries))
    if summary.n and not row.finished and objective == first:
        text += f" at {row.kimg:g} kimg"
    return text


def chosen_at_text(row: TrialRow, objective: str) -> str:
    """Format the score by which the search chose a trial of the race; empty for other trials."""
    return formatting.number(row.chosen_at[objective]) if row.fresh else ""


def probability_text(row: TrialRow) -> str:
    """Format the probability of a raced trial to be within 2% of the best, or with several objectives on the front."""
    return "" if math.isnan(row.probability) else formatting.probability(row.probability)


def status_text(row: TrialRow) -> str:
    """Format the status of a trial, with the numbers of its failed and damaged repeats."""
    text = row.status
    for name, count in _exceptions(row).items():
        text += f" ({formatting.plural(count, 'repeat')} {name})"
    return text


def _exceptions(row: TrialRow) -> dict[str, int]:
    """Return the numbers of failed and of damaged repeats, unless that is the status of the trial itself."""
    counts = {"failed": row.failed, "damaged": row.damaged}
    return {name: count for name, count in counts.items() if count and name != row.status}


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return value


def table(rows: Sequence[TrialRow], space: Space, width: int = 100) -> Table:
    """Lay out the leaderboard for a terminal: with the time if there is room, else without it, else with folded fields.

    Folded means that the searched fields share one column, which wraps. They are left out where it would be so narrow
    that each word had its own line; `leaderboard.csv` has them.
    """
    measure = Console(width=1000).measure
    for with_time in (True, False):
        layout = _table(rows, space, with_time, padding=int(with_time))
        if measure(layout).maximum <= width:
            return layout
    without_fields = _table(rows, space, with_time=True, padding=1, fields="none")
    if measure(without_fields).maximum + MIN_FOLDED_WIDTH > width:
        return without_fields
    return _table(rows, space, with_time=True, padding=1, fields="folded")


def _table(
    rows: Sequence[TrialRow],
    space: Space,
    with_time: bool,
    padding: int,
    fields: Literal["columns", "folded", "none"] = "columns",
) -> Table:
    first = next(iter(space.objectives))
    with_chosen_at = fields == "columns" and any(chosen_at_text(row, first) for row in rows)
    names = formatting.short_names(space.search)

    # The columns.
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, padding, 0, 0))
    for title in ("#", "trial"):
        result.add_column(title, justify="right", no_wrap=True)
    for title in ("status", "repeats", *space.objectives):
        result.add_column(title, no_wrap=True)
    titles = [*space.constraints]
    if with_chosen_at:
        titles.insert(0, "chosen at")
    if with_time:
        titles.append("time")
    if fields == "columns":
        titles += names.values()
    for title in titles:
        wrapped = title.replace("_", "_\n") if len(title) > 9 else title
        result.add_column(wrapped, justify="right", no_wrap=True)
    if fields == "folded":
        result.add_column("searched fields")

    # The cells.
    for row in rows:
        scores = _score_cells(row, with_chosen_at, with_time)
        cells = [str(row.rank), str(row.number), row.status, _repeats_text(row), *scores]
        if fields != "none":
            cells += _field_cells(row, names, fields == "folded")
        result.add_row(*map(escape, cells), style=_style(row))
    return result


def _style(row: TrialRow) -> str:
    if row.status in _STYLES:
        return _STYLES[row.status]
    return "" if row.finished else "dim"


def _score_cells(row: TrialRow, with_chosen_at: bool, with_time: bool) -> list[str]:
    """Return the cells of the objectives, the constraints and the time."""
    cells = [score_text(row, name) for name in row.summaries]
    if with_chosen_at:
        cells.append(chosen_at_text(row, next(iter(row.summaries))))
    cells += [formatting.number(mean) for mean in row.constraints.values()]
    if with_time:
        cells.append(formatting.duration(row.gpu_hours))
    return cells


def _repeats_text(row: TrialRow) -> str:
    """Return the number of counted repeats, and below it those of failed and damaged ones."""
    lines = [str(row.repeat_count)]
    lines += [f"{count} {name}" for name, count in _exceptions(row).items()]
    return "\n".join(lines)


def _field_cells(row: TrialRow, names: Mapping[str, str], folded: bool) -> list[str]:
    """Return the values of the searched fields, in one cell if `folded`; `-` for a field that the trial lacks."""
    params = row.trial.params
    values = [formatting.number(params[path]) if path in params else "-" for path in names]
    if not folded:
        return values
    return [", ".join(f"{name} {value}" for name, value in zip(names.values(), values, strict=True))]
