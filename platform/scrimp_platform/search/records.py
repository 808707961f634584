"""Trials and repeats as the sweep's folder records them: what happened, for the search, the race and the report."""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from scrimp_platform import store
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import checksums, metrics_log
from scrimp_trainers.common.errors import DamagedRecord, UserError

Phase = Literal["search", "race"]
RepeatStatus = Literal["waiting", "running", "finished", "stopped", "failed", "damaged"]
TrialStatus = Literal["running", "complete", "pruned", "failed", "skipped", "damaged"]

REQUIRED = {"name", "id", "space", "space_name", "dataset", "seed", "started", "driver_started", "versions"}
"""What `sweep.json` always has."""


@dataclass
class Repeat:
    """One training of a trial with one seed.

    `stopped` means that successive halving ended it, `failed` that no further attempt will be made, `damaged` that
    its records cannot be trusted; this is never written. `scores` maps a rung, in kimg, to what was measured there;
    `passed` is the highest rung after which it was told to go on. `recipe` is the checksum of its recipe.yaml.
    `started` is when it was handed out, `began` when its devices began to work for it: none while it waits for them, or
    for room on the disk. `spent` holds the seconds of their work before that.
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
    devices: int = 1
    passed: float = 0.0
    recipe: str = ""
    scores: dict[float, dict[str, Any]] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it still has to be trained, wholly or in part."""
        return self.status in ("waiting", "running")

    @property
    def last(self) -> dict[str, Any]:
        """Scores of the highest rung reached; empty before the first."""
        return self.scores[max(self.scores)] if self.scores else {}

    @property
    def device_hours(self) -> float:
        """Hours for which its devices have worked for it so far, times devices."""
        running = time.time() - self.began if self.began and self.status == "running" else 0.0
        return max(self.spent + running, self.last.get("seconds", 0.0)) * self.devices / 3600

    def start_clock(self) -> None:
        """Count the time of its devices from now on; what a killed driver did not write down, its scores still tell."""
        self.spent = max(self.spent, self.last.get("seconds", 0.0))
        self.began = time.time()

    def stop_clock(self) -> None:
        """Count it no longer."""
        if self.began:
            self.spent += time.time() - self.began
        self.began = None

    def save(self, folder: RepeatFolder) -> None:
        """Write `repeat.json`; the scores stand in `metrics.jsonl`, where the worker wrote them."""
        record = asdict(self)
        record["rungs"] = sorted(record.pop("scores"))
        store.write_json(folder.record, record)


@dataclass
class Trial:
    """One concrete recipe: its values of the searched fields, and its repeats.

    `skipped` means that the values contradict each other, so that no recipe has them. Of a `damaged` trial nothing is
    known but its number; this is never written.
    """

    number: int
    params: dict[str, Any]
    status: TrialStatus = "running"
    repeats: list[Repeat] = field(default_factory=list)

    def finished(self, kimg: float) -> list[Repeat]:
        """Return the repeats that were trained to the end and scored at this rung."""
        return [repeat for repeat in self.repeats if repeat.status == "finished" and kimg in repeat.scores]

    def save(self, folder: SweepFolder) -> None:
        """Write `trial.json`; it counts the repeats, each of which is on disk before."""
        record = {"number": self.number, "params": self.params, "status": self.status, "repeats": len(self.repeats)}
        store.write_json(folder.trial(self.number) / store.TRIAL_FILE, record)


@dataclass(frozen=True)
class Records:
    """What a sweep's folder says."""

    trials: list[Trial]
    """In order, those that are damaged among them."""
    skipped: list[Trial]
    """Proposals that were not trained."""
    problems: list[str]
    """A line for each record that is damaged or missing; it begins with the file."""

    @property
    def repeats(self) -> list[Repeat]:
        """Every repeat, in order of its trial."""
        return [repeat for trial in self.trials for repeat in trial.repeats]


def counted(trial: Trial, space: Space, kimg: float) -> list[Repeat]:
    """Return the finished repeats whose scores at a rung may be reported as the trial's.

    The score by which the search chose a trial flatters it, so that repeat is left out. Arms are compared and not
    chosen: all of their repeats count.
    """
    return [repeat for repeat in trial.finished(kimg) if space.arms or repeat.phase == "race"]


def values(repeats: Iterable[Repeat], name: str, kimg: float) -> list[float]:
    """Return a score of these repeats at a rung; where it is missing or not finite it is left out."""
    scores = [float(repeat.scores.get(kimg, {}).get(name, math.nan)) for repeat in repeats]
    return [score for score in scores if math.isfinite(score)]


def describe(folder: SweepFolder) -> dict[str, Any]:
    """Return what `sweep.json` says; the dataset's folder, if that is in the storage, as it is called by now.

    Raises
    ------
    UserError
        If the folder is not that of a sweep, or the file is damaged.
    """
    description = store.read_json(folder.sweep)
    if description is None and folder.trial_numbers():
        raise DamagedRecord(f"{folder.sweep}: missing; restore it from a backup, or use --fresh to start beside it")
    if description is None:
        raise UserError(f"{folder.path}: not the folder of a sweep (no {folder.sweep.name})")
    if missing := REQUIRED - description.keys():
        raise DamagedRecord(f"{folder.sweep}: not a sweep of this version (no {', '.join(sorted(missing))})")
    dataset = description["dataset"]
    dataset["folder"] = os.path.normpath(folder.path.absolute() / dataset["folder"])
    return description


def space_of(folder: SweepFolder) -> Space:
    """Return the space of a sweep; raises as `describe` does."""
    tree = describe(folder)["space"]
    try:
        return Space.model_validate(tree)
    except UserError:
        raise DamagedRecord(f"{folder.sweep}: its space is not one of this version") from None


def read(folder: SweepFolder, earlier: Records | None = None) -> Records:
    """Read every trial of a sweep with its repeats; of those read earlier, what had ended is kept.

    A record that is damaged or missing is named in `problems`. What depends on it is left out: the repeat or the
    trial has the status `damaged` and no scores.
    """
    known = {
        (repeat.trial, repeat.repeat): repeat
        for repeat in (earlier.repeats if earlier else [])
        if repeat.status in ("finished", "stopped", "failed")
    }
    problems: list[str] = []
    try:
        ended = store.read_json(folder.outcome) or {}
    except DamagedRecord as damage:
        ended = {}
        problems.append(f"{damage}; why the last driver ended is not known")

    count = max([*folder.trial_numbers(), ended.get("trials", 0) - 1]) + 1
    trials = [_read_trial(folder, number, known, problems) for number in range(count)]
    skipped = [trial for trial in trials if trial.status == "skipped"]
    return Records([trial for trial in trials if trial.status != "skipped"], skipped, problems)


def look(folder: SweepFolder) -> Records:
    """Read every trial as whoever is not the driver: while none runs, what was handed out waits for the next one."""
    known = read(folder)
    if not store.holder(folder.lock):
        for repeat in (repeat for repeat in known.repeats if repeat.status == "running"):
            repeat.status = "waiting"
    return known


def _read_trial(
    folder: SweepFolder, number: int, known: Mapping[tuple[int, int], Repeat], problems: list[str]
) -> Trial:
    file = folder.trial(number) / store.TRIAL_FILE
    try:
        record = _load(file, number=number)
        count = record.pop("repeats")
        trial = Trial(**record)
    except (DamagedRecord, KeyError, TypeError) as damage:
        problems.append(f"{_reason(file, damage)}; trial {number} is left out")
        return Trial(number, {}, "damaged")

    # After trial.json, which counts no repeat that is not on disk.
    for repeat in range(max([count, *(there + 1 for there in folder.repeat_numbers(number))])):
        files = folder.repeat(number, repeat)
        trial.repeats.append(known.get((number, repeat)) or _read_repeat(files, problems))
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

    # An open repeat writes again what is missing, on its way from the checkpoint.
    sound, damages = _scan(files, [] if repeat.open else rungs)
    recipe = _text(files.recipe)
    if repeat.recipe and (recipe is None or checksums.of_text(recipe) != repeat.recipe):
        damages.append(f"{files.recipe}: {'missing' if recipe is None else 'not what was written'}")
    if damages and repeat.status in ("finished", "stopped"):
        repeat.status, sound = "damaged", {}
        damages = [f"{damage}; repeat {files.label} is left out" for damage in damages]
    problems += damages

    # What a worker wrote after the repeat was stopped, nobody has judged.
    repeat.scores = sound if repeat.open else {rung: sound[rung] for rung in rungs if rung in sound}
    return repeat


def _scan(files: RepeatFolder, rungs: Sequence[float]) -> tuple[dict[float, dict[str, Any]], list[str]]:
    """Return the scores by rung, and what is wrong with `metrics.jsonl`, which held those of `rungs`."""
    try:
        rows, damage = metrics_log.scan(files.metrics)
    except OSError as error:
        return {}, [f"{files.metrics}: cannot be read ({error.strerror})"]
    scores = {float(line["rung"]): line for line in rows if line.get("rung")}
    lost = [f"{rung:g}" for rung in rungs if rung not in scores]
    if damage:
        return scores, [damage]
    if lost:
        return scores, [f"{files.metrics}: the scores at {', '.join(lost)} kimg are missing"]
    return scores, []


def _load(file: Path, **numbers: int) -> dict[str, Any]:
    record = store.read_json(file)
    if record is None:
        raise DamagedRecord(f"{file}: missing")
    if any(record[name] != number for name, number in numbers.items()):
        raise DamagedRecord(f"{file}: not of this folder")
    return record


def _reason(file: Path, damage: Exception) -> str:
    return str(damage) if isinstance(damage, DamagedRecord) else f"{file}: not a record of this version"


def _text(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
