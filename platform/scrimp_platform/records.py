"""Trials and repeats as the sweep's folder records them: what happened, for the search, the race and the report."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scrimp_platform import store
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers import lines

Phase = Literal["search", "race"]
RepeatStatus = Literal["waiting", "running", "finished", "stopped", "failed"]
TrialStatus = Literal["running", "complete", "pruned", "failed"]


@dataclass
class Repeat:
    """One training of a trial with one seed.

    `stopped` means that successive halving ended it, `failed` that no further attempt will be made. `scores` maps
    a rung, in kimg, to what was measured there; `passed` is the highest rung after which it was told to go on.
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
        del record["scores"]
        store.write_json(folder.record, record)


@dataclass
class Trial:
    """One concrete recipe: its values of the searched fields, and its repeats."""

    number: int
    params: dict[str, Any]
    status: TrialStatus = "running"
    repeats: list[Repeat] = field(default_factory=list)

    def finished(self, kimg: float) -> list[Repeat]:
        """Return the repeats that were trained to the end and scored at this rung."""
        return [repeat for repeat in self.repeats if repeat.status == "finished" and kimg in repeat.scores]

    def save(self, folder: SweepFolder) -> None:
        """Write `trial.json`."""
        record = {"number": self.number, "params": self.params, "status": self.status}
        store.write_json(folder.trial(self.number) / store.TRIAL_FILE, record)


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


def read(folder: SweepFolder, earlier: Sequence[Trial] = ()) -> list[Trial]:
    """Read every trial of a sweep with its repeats, in order; of those read earlier, what had ended is kept."""
    ended = {(repeat.trial, repeat.repeat): repeat for trial in earlier for repeat in trial.repeats if not repeat.open}
    repeats = list(folder.repeats())  # before the trials, each of which is on disk before its repeats
    trials = {record["number"]: Trial(**record) for record in folder.trial_records()}
    for files in repeats:
        repeat = ended.get((files.trial, files.repeat)) or _read_repeat(files)
        trials[repeat.trial].repeats.append(repeat)
    return list(trials.values())


def look(folder: SweepFolder) -> list[Trial]:
    """Read every trial as whoever is not the driver: while none runs, what was handed out waits for the next one."""
    trials = read(folder)
    if not store.holder(folder.lock):
        for repeat in (repeat for trial in trials for repeat in trial.repeats if repeat.status == "running"):
            repeat.status = "waiting"
    return trials


def _read_repeat(files: RepeatFolder) -> Repeat:
    repeat = Repeat(**store.read_json(files.record))
    repeat.scores = {float(line["rung"]): line for line in lines.read(files.metrics) if line.get("rung")}
    return repeat
