"""The warm start of a sweep: what it is given of earlier ones, kept in its own folder.

A resumed sweep reads that file and no other sweep's, so it proposes the same when those have gone on or are gone.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scrimp_platform import store
from scrimp_platform.search import curves, proposals, race, records
from scrimp_platform.search.order import order, total_excess
from scrimp_platform.search.prior import EarlierSweep
from scrimp_platform.search.records import Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

MIN_RECIPES = 3
"""Of an earlier sweep; the order of fewer tells nothing."""


@dataclass(frozen=True)
class WarmStart:
    """What a sweep is given of earlier ones.

    Attributes
    ----------
    asked : tuple
        The names of the sweeps that were asked for; `all`: every other one of the storage.
    sweeps : tuple of EarlierSweep
        Their ranked recipes.
    first : tuple
        Values of searched fields for the first trials, in order; what they leave open is proposed.
    notes : tuple
        A line for each earlier sweep: what is taken from it, or why nothing is.
    """

    asked: tuple[str, ...] = ()
    sweeps: tuple[EarlierSweep, ...] = ()
    first: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def save(warm_start: WarmStart, folder: SweepFolder) -> None:
    """Write what a sweep is given into its folder."""
    store.write_json(folder.warm_start, dataclasses.asdict(warm_start))


def load(folder: SweepFolder) -> WarmStart:
    """Return what a sweep was given at its start; nothing if it has no such file.

    Raises
    ------
    DamagedRecord
        If the file is damaged.
    """
    record = store.read_json(folder.warm_start)
    if record is None:
        return WarmStart()
    sweeps = [
        EarlierSweep(sweep["name"], tuple(sweep["fields"]), tuple(sweep["recipes"])) for sweep in record["sweeps"]
    ]
    return WarmStart(tuple(record["asked"]), tuple(sweeps), tuple(record["first"]), tuple(record["notes"]))


def resume(asked: Sequence[str], folder: SweepFolder) -> WarmStart:
    """Return what a sweep was given at its start; it is refused if it is asked for other sweeps now."""
    given = load(folder)
    if asked and tuple(asked) != given.asked:
        began = f"with --warm-start {' '.join(given.asked)}" if given.asked else "without --warm-start"
        raise UserError(
            f"sweep {folder.path.name} exists and began {began}, not {' '.join(asked)}; "
            "use another --name, or --fresh to start beside it"
        )
    return given


def collect(
    asked: Sequence[str], named: Sequence[SweepFolder], others: Sequence[SweepFolder], space: Space
) -> WarmStart:
    """Read earlier sweeps for a new sweep of this space, which asked for them by these names.

    Raises
    ------
    UserError
        If one that is named is damaged, or has nothing to tell; one of the others is then left out. If the space lists
        arms, among which nothing is proposed.
    """
    if asked and space.arms:
        raise UserError("--warm-start: this space lists arms, so no recipe is proposed; leave the option out")
    sweeps: list[EarlierSweep] = []
    leaders: list[Sequence[Mapping[str, Any]]] = []
    notes: list[str] = []
    for earlier in [*named, *others]:
        try:
            sweep, best, note = _read(earlier, space)
        except UserError as error:
            if earlier in named:
                raise UserError(f"--warm-start {error}") from None
            notes.append(f"left out: {error}")
            continue
        sweeps.append(sweep)
        leaders.append(best)
        notes.append(note)
    if asked and not notes:
        notes.append("nothing: the storage has no other sweep")
    if sweeps and space.proposals != "curves":
        notes.append(f"proposals: {space.proposals} begins with their best trials, and learns nothing from their order")
    return WarmStart(tuple(asked), tuple(sweeps), tuple(_first(leaders, space)), tuple(notes))


def _first(leaders: Sequence[Sequence[Mapping[str, Any]]], space: Space) -> list[Mapping[str, Any]]:
    """Return the values to begin with: the best recipe of each sweep, the second of each, and so on.

    They are at most half of the trials before proposals are learned, so that the others show how much the earlier
    sweeps are worth here.
    """
    first: list[Mapping[str, Any]] = []
    for values in itertools.chain.from_iterable(itertools.zip_longest(*leaders)):
        if values and values not in first:
            first.append(values)
    return first[: proposals.startup_trials(space) // 2]


def _read(folder: SweepFolder, space: Space) -> tuple[EarlierSweep, Sequence[Mapping[str, Any]], str]:
    """Return what a sweep tells a space: its ranked recipes, its leaders' values, and a line that says so."""
    earlier_space = records.space_of(folder)
    known = records.read_as_observer(folder)
    if known.problems:
        raise UserError(f"{known.problems[0]}; resume that sweep first, which retrains what is damaged")

    fields = shared_fields(space, earlier_space)
    if not fields:
        raise UserError(f"{folder.path}: its space shares no field with this one")
    ranked = ranking(known.trials, earlier_space)
    recipes = [values for trial in ranked if (values := _values(trial, fields, space)) is not None]
    if len(recipes) < MIN_RECIPES:
        raise UserError(
            f"{folder.path}: {len(recipes)} of its {len(ranked)} ranked trials lie in this space; "
            f"at least {MIN_RECIPES} are needed"
        )

    leaders = race.leaders(known.trials, earlier_space, curves.expected_scores(known.trials, earlier_space))
    best = [values for trial in leaders if (values := _values(trial, fields, space)) is not None]
    note = f"{folder.path.name}: the order of {len(recipes)} trials by {', '.join(fields)}"
    rest = [path for path in {**space.search, **earlier_space.search} if path not in fields]
    if rest:
        note += f"; not shared: {', '.join(rest)}"
    return EarlierSweep(folder.path.name, tuple(fields), tuple(recipes)), best, note


def shared_fields(space: Space, other: Space) -> list[str]:
    """Return the fields that two spaces search under conditions on the same fields, which they share, too."""
    shared: list[str] = []
    for path, span in space.search.items():
        theirs = other.search.get(path)
        if theirs and span.when.keys() == theirs.when.keys() and all(field in shared for field in span.when):
            shared.append(path)
    return shared


def _values(trial: Trial, fields: Sequence[str], space: Space) -> dict[str, Any] | None:
    """Return a trial's values of these fields; none if one of them lies outside the space."""
    values = {path: trial.params[path] for path in fields if path in trial.params}
    return values if all(space.search[path].allows(value) for path, value in values.items()) else None


def ranking(trials: Sequence[Trial], space: Space) -> list[Trial]:
    """Return the scored and failed trials of a sweep from best to worst, by its own goals.

    With one objective all that have a score are ranked, by what the curve model expects of them at the last rung; with
    several, those that were trained to the end. Whatever failed is last. With one objective, what breaks a constraint
    comes after what keeps all: by how much at the highest rung, or, where rungs score different numbers of samples, by
    the model of what is limited.
    """
    failed = [trial for trial in trials if trial.status == "failed" and trial.params]
    is_mixed = not all(map(space.is_scored_in_full, space.budget.rungs_kimg))
    learned = curves.learn(trials, space if is_mixed else curves.without_constraints(space))
    if learned and is_mixed:
        sound = [trial for trial in trials if trial.number in learned.ranks and trial.status != "failed"]
        return sorted(sound, key=lambda trial: learned.ranks[trial.number]) + failed
    if learned:
        sound = [trial for trial in trials if trial.number in learned.expected and trial.status != "failed"]
        return sorted(sound, key=lambda trial: (_excess(trial, space), learned.expected[trial.number])) + failed

    last = space.budget.rungs_kimg[-1]
    sound = [trial for trial in trials if trial.status == "complete" and last in trial.scored_rungs(space)]
    return [sound[i] for i in order([trial.repeats[0].rungs[last] for trial in sound], space)] + failed


def _excess(trial: Trial, space: Space) -> float:
    """Return by how much a scored trial breaks the constraints at the highest rung with a score."""
    return total_excess(trial.repeats[0].rungs[trial.scored_rungs(space)[-1]], space)
