"""Trials and repeats as the sweep's folder records them: what happened, for the search, the race and the report."""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scrimp_platform import store
from scrimp_platform.store import RepeatFolder, SweepFolder, WorkFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import checksums, metrics_log
from scrimp_trainers.common.errors import DamagedRecord, UserError
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.recipe.needs import Kind

Phase = Literal["search", "race"]
RepeatStatus = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "damaged"]
TrialStatus = Literal["running", "paused", "complete", "pruned", "failed", "skipped", "damaged"]

REQUIRED = {"name", "id", "space", "space_name", "dataset", "seed", "started", "driver_started", "versions"}
"""What `sweep.json` always has."""


class _Timed:
    """What has a status, and devices that work for it."""

    status: Any
    began: float | None
    spent: float
    devices: float
    node: str
    stints: list[list[Any]]

    @property
    def open(self) -> bool:
        """Whether it is being trained, or is to be handed out."""
        return self.status in ("waiting", "running")

    @property
    def device_hours(self) -> float:
        """Hours for which its devices have worked for it so far, times devices."""
        seconds = self.spent
        if self.began and self.status == "running":
            seconds += time.time() - self.began
        return max(seconds, self._measured_seconds) * self.devices / 3600

    @property
    def _measured_seconds(self) -> float:
        """Time that its worker says it has taken."""
        raise NotImplementedError

    def start_clock(self, node: str = "") -> None:
        """Start counting the time of its devices; what a killed driver could not write is taken from its worker."""
        self.spent = max(self.spent, self._measured_seconds)
        self.began = time.time()
        self.node = node

    def stop_clock(self) -> None:
        """Stop counting the time of its devices."""
        if self.began:
            now = time.time()
            self.spent += now - self.began
            self.stints.append([self.node, self.began, now])
        self.began = None


@dataclass
class Repeat(_Timed):
    """One training of a trial with one seed.

    `paused` means that it waits at a rung and may continue, `stopped` that successive halving ended it, `failed` that
    no further attempt will be made, `damaged` that its records cannot be trusted; this is never written. `rungs` maps a
    rung, in kimg, to what was measured there; `passed` is the highest rung after which halving let it continue.
    `recipe` is the checksum of its recipe.yaml. `started` is when it was handed out, `began` when its devices started
    to work for it: none while it waits for them, or for disk space. `spent` is the seconds of their work before that.
    `node` is where they last did, and `stints` when they did before: node, begin and end of each, except of those that
    ended with the driver.
    """

    trial: int
    repeat: int
    seed: int
    phase: Phase
    status: RepeatStatus = "waiting"
    attempt: int = 1
    cause: str = ""
    started: float | None = None
    ended: float | None = None
    began: float | None = None
    spent: float = 0.0
    node: str = ""
    stints: list[list[Any]] = field(default_factory=list)
    devices: float = 1
    passed: float = 0.0
    recipe: str = ""
    rungs: dict[float, MetricsRow] = field(default_factory=dict)

    @property
    def last(self) -> MetricsRow | None:
        """The row of the highest rung reached; None before the first."""
        if not self.rungs:
            return None
        return self.rungs[max(self.rungs)]

    @property
    def recipe_hours(self) -> float:
        """Device-hours of this repeat and, in full, of its reference and proxy: who trains it alone has to pay them."""
        prepared = self.last.value("prepared_device_hours") if self.last else math.nan
        return self.device_hours + (prepared if math.isfinite(prepared) else 0.0)

    @property
    def _measured_seconds(self) -> float:
        """Time that it had taken at the highest rung reached."""
        return self.last.seconds if self.last else 0.0

    def score(self, name: str, kimg: float) -> float:
        """Return what was measured at a rung under this name; NaN if it is missing."""
        row = self.rungs.get(kimg)
        return row.value(name) if row else math.nan

    def save(self, folder: RepeatFolder) -> None:
        """Write `repeat.json`; the scores stand in `metrics.jsonl`, where the worker wrote them."""
        store.write_json(folder.record, vars(self) | {"rungs": sorted(self.rungs)})


@dataclass
class Preparation(_Timed):
    """A training that comes before those of repeats: a reference or a proxy, once for all repeats that need it.

    `name`, `kind` and `kimg` are those of the need (`recipe/needs.py`); `seed` is that of the repeat for which it was
    begun. `cost` is the device-hours that it took, of all attempts; 0 if it was found in the dataset's cache. `resumed`
    means that a driver was gone while it was trained. The other fields are as in `Repeat`.
    """

    name: str
    kind: Kind
    kimg: float
    seed: int
    status: Literal["waiting", "running", "finished", "failed"] = "waiting"
    attempt: int = 1
    cause: str = ""
    started: float | None = None
    ended: float | None = None
    began: float | None = None
    spent: float = 0.0
    node: str = ""
    stints: list[list[Any]] = field(default_factory=list)
    devices: float = 1
    cost: float = 0.0
    resumed: bool = False

    @property
    def _measured_seconds(self) -> float:
        """Time that it has taken, as the dataset's cache says."""
        return self.cost * 3600 / self.devices

    def save(self, folder: WorkFolder) -> None:
        """Write `preparation.json`."""
        store.write_json(folder.record, vars(self))


@dataclass
class Trial:
    """One concrete recipe: its values of the searched fields, and its repeats.

    `skipped` means that it is not trained: its values contradict each other, so that no recipe has them, or its `costs`
    break a constraint. Of a `damaged` trial only the number is known; this is never written. `costs` are those of its
    costs on which there are constraints, as far as they are known before training. `stopped` says who has stopped it:
    no repeat of it is trained any further, and it gets no more of them.
    """

    number: int
    params: dict[str, Any]
    status: TrialStatus = "running"
    repeats: list[Repeat] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    stopped: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether the search still trains it, or may continue to."""
        return self.status in ("running", "paused")

    def scored_rungs(self, space: Space) -> list[float]:
        """Return the rungs at which its first repeat has a finite score for each objective."""
        if not self.repeats:
            return []
        first = self.repeats[0]
        return [
            kimg
            for kimg in space.budget.rungs_kimg
            if kimg in first.rungs and all(math.isfinite(first.score(name, kimg)) for name in space.objectives)
        ]

    def finished_repeats(self, kimg: float) -> list[Repeat]:
        """Return the repeats that were trained to the end and scored at this rung."""
        return [repeat for repeat in self.repeats if repeat.status == "finished" and kimg in repeat.rungs]

    def save(self, folder: SweepFolder) -> None:
        """Write `trial.json`; it contains the number of repeats, which must be on disk before."""
        record = vars(self) | {"repeats": len(self.repeats)}
        store.write_json(folder.trial(self.number) / store.TRIAL_FILE, record)


@dataclass(frozen=True)
class Records:
    """The content of a sweep's folder."""

    trials: list[Trial]
    """In order, including those that are damaged."""
    skipped: list[Trial]
    """Proposals that were not trained."""
    problems: list[str]
    """A line for each record that is damaged or missing; it begins with the file."""
    preparations: list[Preparation] = field(default_factory=list)
    """References and proxies that repeats need."""

    @property
    def repeats(self) -> list[Repeat]:
        """Every repeat, in order of its trial."""
        return [repeat for trial in self.trials for repeat in trial.repeats]

    @property
    def device_hours(self) -> float:
        """Device-hours that the sweep has spent."""
        return sum(work.device_hours for work in [*self.repeats, *self.preparations])


def unbiased_repeats(trial: Trial, space: Space, kimg: float) -> list[Repeat]:
    """Return the finished repeats whose scores at a rung may be reported as the trial's.

    The score by which the search chose a trial is biased in its favour, so that repeat is left out. Arms are compared
    and not chosen: all of their repeats count.
    """
    return [repeat for repeat in trial.finished_repeats(kimg) if space.arms or repeat.phase == "race"]


def finite_scores(repeats: Iterable[Repeat], name: str, kimg: float) -> list[float]:
    """Return a score of these repeats at a rung, except where it is missing or not finite."""
    scores = [repeat.score(name, kimg) for repeat in repeats]
    return [score for score in scores if math.isfinite(score)]


def sweep_description(folder: SweepFolder) -> dict[str, Any]:
    """Return the content of `sweep.json`; the dataset's folder is made absolute.

    Raises
    ------
    UserError
        If the folder is not that of a sweep, or the file is damaged.
    """
    description = store.read_json(folder.description)
    if description is None and folder.trial_numbers():
        raise DamagedRecord(
            f"{folder.description}: missing; restore it from a backup, or use --fresh to start beside it"
        )
    if description is None:
        raise UserError(f"{folder.path}: not the folder of a sweep (no {folder.description.name})")
    if missing := REQUIRED - description.keys():
        raise DamagedRecord(f"{folder.description}: not a sweep of this version (no {', '.join(sorted(missing))})")
    dataset = description["dataset"]
    dataset["folder"] = os.path.normpath(folder.path.absolute() / dataset["folder"])
    return description


def space_of(folder: SweepFolder) -> Space:
    """Return the space of a sweep; raises as `sweep_description` does."""
    tree = sweep_description(folder)["space"]
    try:
        return Space.model_validate(tree)
    except UserError:
        raise DamagedRecord(f"{folder.description}: its space is not one of this version") from None


def ending(folder: SweepFolder, description: Mapping[str, Any]) -> str:
    """Return why the last driver of a sweep ended; empty if that is not recorded, or it has not ended."""
    outcome = store.read_sound(folder.outcome)
    if outcome and outcome["ended"] >= description["driver_started"]:
        return outcome["reason"]
    return ""


def last_ending(folder: SweepFolder) -> str:
    """Return why the last driver that has ended did; `not over yet` if none has."""
    outcome = store.read_sound(folder.outcome)
    return outcome["reason"] if outcome else "not over yet"


def read_records(folder: SweepFolder, earlier: Records | None = None) -> Records:
    """Read every trial of a sweep with its repeats; repeats that had ended in `earlier` are not read again.

    A record that is damaged or missing is named in `problems`. What depends on it is left out: the repeat or the
    trial has the status `damaged` and no scores.
    """
    ended: dict[tuple[int, int], Repeat] = {}
    for repeat in earlier.repeats if earlier else []:
        if repeat.status in ("finished", "stopped", "failed"):
            ended[repeat.trial, repeat.repeat] = repeat

    problems: list[str] = []
    try:
        outcome = store.read_json(folder.outcome) or {}
    except DamagedRecord as damage:
        outcome = {}
        problems.append(f"{damage}; why the last driver ended is not known")

    # The outcome counts the trials: if the last ones are missing on disk, they are damaged.
    count = max([*folder.trial_numbers(), outcome.get("trials", 0) - 1]) + 1
    records = Records([], [], problems)
    for number in range(count):
        trial = _read_trial(folder, number, ended, problems)
        group = records.skipped if trial.status == "skipped" else records.trials
        group.append(trial)
    for files in folder.preparations():
        preparation = _read_preparation(files, problems)
        if preparation:
            records.preparations.append(preparation)
    return records


def read_as_observer(folder: SweepFolder) -> Records:
    """Read every trial, for a process other than the driver: if no driver runs, no repeat is running either."""
    records = read_records(folder)
    if not store.holder(folder.lock):
        for work in [*records.repeats, *records.preparations]:
            if work.status == "running":
                work.status = "waiting"
    return records


def _read_trial(
    folder: SweepFolder, number: int, ended: Mapping[tuple[int, int], Repeat], problems: list[str]
) -> Trial:
    file = folder.trial(number) / store.TRIAL_FILE
    try:
        record = _load(file, number=number)
        count = record.pop("repeats")
        trial = Trial(**record)
    except (DamagedRecord, KeyError, TypeError) as damage:
        problems.append(f"{_reason(file, damage)}; trial {number} is left out")
        return Trial(number, {}, "damaged")

    # Listed after trial.json was read: every repeat that it counts is on disk, unless it was lost.
    count = max([count - 1, *folder.repeat_numbers(number)]) + 1
    for repeat in range(count):
        files = folder.repeat(number, repeat)
        trial.repeats.append(ended.get((number, repeat)) or _read_repeat(files, problems))
    return trial


def _read_repeat(files: RepeatFolder, problems: list[str]) -> Repeat:
    try:
        record = _load(files.record, trial=files.trial, repeat=files.repeat)
        rungs = record.pop("rungs")
        repeat = Repeat(**record)
    except (DamagedRecord, KeyError, TypeError) as damage:
        problems.append(f"{_reason(files.record, damage)}; repeat {files.label} is left out")
        # Its seed follows from its numbers (ledger.py).
        return Repeat(files.trial, files.repeat, 0, "race" if files.repeat else "search", "damaged")

    # An open repeat may miss scores: it writes them again when it resumes from its checkpoint.
    rows, damages = _scan(files, [] if repeat.open else rungs)
    recipe = _content(files.recipe)
    if repeat.recipe and recipe is None:
        damages.append(f"{files.recipe}: missing")
    elif repeat.recipe and checksums.text_checksum(recipe or b"") != repeat.recipe:
        damages.append(f"{files.recipe}: not what was written")
    if damages and repeat.status in ("paused", "finished", "stopped"):
        repeat.status = "damaged"
        rows = {}
        damages = [f"{damage}; repeat {files.label} is left out" for damage in damages]
    problems += damages

    if not repeat.open:
        # A worker may have written more after the repeat was stopped; that played no part in any decision.
        rows = {rung: rows[rung] for rung in rungs if rung in rows}
    repeat.rungs = rows
    return repeat


def _read_preparation(files: WorkFolder, problems: list[str]) -> Preparation | None:
    """Read a preparation. If its record is damaged, it is begun anew, and finds in the cache what was trained."""
    try:
        return Preparation(**_load(files.record, name=files.path.name))
    except (DamagedRecord, KeyError, TypeError) as damage:
        problems.append(f"{_reason(files.record, damage)}; the device-hours of {files.path.name} are left out")
        return None


def _scan(files: RepeatFolder, rungs: Sequence[float]) -> tuple[dict[float, MetricsRow], list[str]]:
    """Return the rows by rung, and what is wrong with `metrics.jsonl`, which should contain those of `rungs`."""
    try:
        rows, damage = metrics_log.scan_rows(files.metrics)
    except OSError as error:
        return {}, [f"{files.metrics}: cannot be read ({error.strerror})"]

    by_rung = {row.rung: row for row in rows if row.rung is not None}
    lost = [f"{rung:g}" for rung in rungs if rung not in by_rung]
    if damage:
        return by_rung, [damage]
    if lost:
        return by_rung, [f"{files.metrics}: the scores at {', '.join(lost)} kimg are missing"]
    return by_rung, []


def _load(file: Path, **numbers: int | str) -> dict[str, Any]:
    record = store.read_json(file)
    if record is None:
        raise DamagedRecord(f"{file}: missing")
    if any(record[name] != number for name, number in numbers.items()):
        raise DamagedRecord(f"{file}: belongs to another folder")
    return record


def _reason(file: Path, damage: Exception) -> str:
    if isinstance(damage, DamagedRecord):
        return str(damage)
    return f"{file}: not a record of this version"


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
