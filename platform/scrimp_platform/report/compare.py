"""The winners of several sweeps side by side; only scores that were measured alike stand beside each other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform.report import formatting, leaderboard
from scrimp_platform.report.ranking import TrialRow, as_minimized
from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import MetricsRow

SAID = ("extractor", "weights", "reference", "renderer")
"""How the entries of a row begin that say for what its scores hold."""
MISSING = "-"
"""What stands where a recipe lacks a field."""


@dataclass(frozen=True)
class Winner:
    """A sweep and its best trial.

    Attributes
    ----------
    sweep : str
        Name of the sweep.
    folder : Path
        Its folder.
    trial : int or None
        Number of its best trial; None if it has none.
    verdict : str
        The sweep's verdict in words.
    basis : dict
        What the scores hold for, in words: dataset, objective, extractor, samples, reference.
    scores : dict
        Means by objective, in the order of the space; lower is better after `as_minimized`.
    result : dict
        Status, scores with intervals, seeds and costs, as text.
    settings : dict
        Space, budget, and every field of the winner's recipe by dotted path, as text.
    searched : tuple of str
        Paths of the fields that the sweep searched.
    """

    sweep: str
    folder: Path
    trial: int | None
    verdict: str
    basis: dict[str, str]
    scores: dict[str, float]
    result: dict[str, str]
    settings: dict[str, str]
    searched: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Winners whose scores were measured alike, the best first."""

    basis: dict[str, str]
    winners: list[Winner]
    differs: list[str]
    """In what its scores differ from those of the first group; empty for that one."""

    @property
    def settings(self) -> dict[str, list[str]]:
        """The settings that were searched or that differ, each with a value for every winner."""
        paths = dict.fromkeys(path for winner in self.winners for path in winner.settings)
        searched = {path for winner in self.winners for path in winner.searched}
        rows = {path: [winner.settings.get(path, MISSING) for winner in self.winners] for path in paths}
        return {path: values for path, values in rows.items() if path in searched or len(set(values)) > 1}


@dataclass(frozen=True)
class Comparison:
    """Sweeps side by side."""

    groups: list[Group]
    without: list[Winner]
    """Sweeps that have no best trial."""


def compare(folders: Sequence[SweepFolder]) -> Comparison:
    """Read the winners of sweeps, and put those beside each other whose scores were measured alike.

    Raises
    ------
    UserError
        If there are fewer than two sweeps, one is named twice, or a folder holds none.
    """
    places = {folder.path.resolve() for folder in folders}
    if len(places) < len(folders):
        raise UserError("compare: a sweep is named twice; name different ones")
    if len(folders) < 2:
        raise UserError("compare: name at least two sweeps, such as runs/quickstart-digits runs/rates-digits")

    winners = [_winner(folder) for folder in folders]
    alike: dict[tuple[tuple[str, str], ...], list[Winner]] = {}
    for winner in winners:
        if winner.trial is not None:
            alike.setdefault(tuple(winner.basis.items()), []).append(winner)

    groups: list[Group] = []
    for own in alike.values():
        basis = own[0].basis
        differs = _differences(groups[0].basis, basis) if groups else []
        direction = basis["objective"].partition(" ")[0]
        own.sort(key=lambda winner: _order(winner, direction))
        groups.append(Group(basis, own, differs))
    return Comparison(groups, [winner for winner in winners if winner.trial is None])


def _order(winner: Winner, direction: str) -> float:
    first = next(iter(winner.scores.values()))
    return as_minimized(first, "minimize" if direction == "minimize" else "maximize")


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Say in what two bases differ."""
    names = dict.fromkeys([*one, *other])
    return [
        f"{name} {other.get(name, 'none')}, not {one.get(name, 'none')}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _winner(folder: SweepFolder) -> Winner:
    sweep = records.sweep_description(folder)
    space = records.space_of(folder)
    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    best = leaderboard.best(rows)
    if any(map(leaderboard.may_hide_best, known.trials)):
        best = None

    return Winner(
        sweep=sweep["name"],
        folder=folder.path,
        trial=best.number if best else None,
        verdict="; ".join(known.problems) or leaderboard.verdict(rows, space),
        basis=_basis(sweep, space, best),
        scores={name: best.summaries[name].mean for name in space.objectives} if best else {},
        result=_result(best, space, known.device_hours, records.last_ending(folder)) if best else {},
        settings=_settings(folder, sweep, space, best) if best else {},
        searched=tuple(space.search),
    )


def _basis(sweep: Mapping[str, Any], space: Space, best: TrialRow | None) -> dict[str, str]:
    """Say for what scores hold. The extractor's weights and the reference stand with the scores of each repeat."""
    data = sweep["dataset"]
    basis = {
        "objective": ", ".join(f"{direction} {name}" for name, direction in space.objectives.items()),
        "dataset": f"{data['name']} (content {data['content_hash'][:12]})",
        "extractor": space.scoring.extractors,
        "samples": f"{space.scoring.samples:,}",
    }
    row = best.counted[0].last if best else None
    if row:
        basis |= _measured(row)
    return basis


def _measured(row: MetricsRow) -> dict[str, str]:
    """Return what the scores of a row say of themselves."""
    words = {name: str(value) for name, value in row.scores.items() if name.startswith(SAID)}
    numbers = {name: f"{row.value(name):,.0f}" for name in ("samples", "reference_samples")}
    return words | {name: text for name, text in numbers.items() if math.isfinite(row.value(name))}


def _result(best: TrialRow, space: Space, hours: float, reason: str) -> dict[str, str]:
    """Return what a sweep's winner achieves and costs, as text."""
    seeds = formatting.plural(best.repeat_count, "fresh seed" if best.fresh and not space.arms else "seed")
    result = {
        "winner": f"trial {best.number}, {best.status}",
        **{name: formatting.interval(best.summaries[name]) for name in space.objectives},
        "over": seeds if best.fresh else "the repeat that chose it",
        "probability": leaderboard.probability_text(best),
        **{name: formatting.number(mean) for name, mean in best.constraints.items() if name not in space.objectives},
        "time per repeat": formatting.duration(best.gpu_hours),
        "parameters": formatting.count(best.parameters) if math.isfinite(best.parameters) else "",
        "whole sweep": formatting.duration(hours),
        "ended": reason,
    }
    return {name: text or MISSING for name, text in result.items()}


def _settings(folder: SweepFolder, sweep: Mapping[str, Any], space: Space, best: TrialRow) -> dict[str, str]:
    """Return the settings of the sweep, and every field of its winner's recipe."""
    recipe = folder.repeat(best.number, best.counted[0].repeat).recipe
    tree = yaml_files.read_yaml(recipe, str(recipe)) if recipe.exists() else {}
    trials = "as many as the hours allow" if space.budget.trials is None else f"{space.budget.trials}"
    fields = {path: _plain(value) for path, value in _flat(tree) if path != "about"}
    own = {"space": str(sweep["space_name"]), "base recipe": space.recipe, "trials": trials}
    return own | {"last rung, kimg": f"{best.kimg:g}"} | fields


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of a tree by dotted path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
