"""How the sweeps of a storage stand, from their files alone: no cluster is needed, only a node that sees them."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform import estimate, records, store
from scrimp_platform.records import Repeat, Trial
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers import lines


@dataclass(frozen=True)
class Training:
    """A repeat that has been handed out."""

    repeat: Repeat
    label: str
    node: str
    """Where it trains; empty if no worker has it yet."""
    kimg: float
    images_per_second: float | None
    heard: float | None
    """Seconds since it wrote anything; none if it has not."""


@dataclass(frozen=True)
class Standing:
    """A sweep that runs, or that has more to do."""

    folder: SweepFolder
    sweep: dict[str, Any]
    space: Space
    trials: list[Trial]
    running: list[Training]
    node: str
    """Where its driver runs; empty if it does not."""
    reason: str
    """Why its last driver ended, if that could say."""

    @property
    def repeats(self) -> list[Repeat]:
        """Every repeat that was decided on."""
        return [repeat for trial in self.trials for repeat in trial.repeats]

    @property
    def phase(self) -> str:
        """Whether it searches or races."""
        return "race" if any(repeat.phase == "race" for repeat in self.repeats) else "search"

    @property
    def device_hours(self) -> float:
        """Device-hours spent so far."""
        return sum(repeat.device_hours for repeat in self.repeats)

    @property
    def failures(self) -> Counter[str]:
        """Why repeats have failed for good, and how many."""
        return Counter(repeat.cause for repeat in self.repeats if repeat.status == "failed")

    @property
    def hours_left(self) -> float | None:
        """Hours until its end as things go; none if nothing trains, or nothing has been scored yet."""
        if not self.running:
            return None
        kimg = {training.label: training.kimg for training in self.running}
        seconds = estimate.seconds_left(self.trials, self.space, kimg)
        return seconds and seconds / len(self.running) / 3600


def unfinished(storage: Storage) -> tuple[list[Standing], list[str]]:
    """Return how each sweep stands that is not complete, and the names of those that are."""
    standings, complete = [], []
    for folder in storage.sweeps():
        node, reason = node_of(folder.lock), _reason(folder)
        if reason == "complete" and not node:
            complete.append(folder.path.name)
        else:
            standings.append(_read(folder, node, reason))
    return standings, complete


def node_of(lock: Path) -> str:
    """Return where the process runs that holds a lock; empty if none does."""
    return store.holder(lock).rpartition(" on ")[2]


def _reason(folder: SweepFolder) -> str:
    """Say why the last driver ended; empty if it could not tell, or has not ended: each writes sweep.json first."""
    outcome = store.read_json(folder.outcome)
    ended = outcome and folder.outcome.stat().st_mtime >= folder.sweep.stat().st_mtime
    return outcome["reason"] if ended else ""


def _read(folder: SweepFolder, node: str, reason: str) -> Standing:
    sweep = store.read_json(folder.sweep)
    trials = records.look(folder)
    handed_out = [repeat for trial in trials for repeat in trial.repeats if repeat.status == "running"]
    running = [_training(repeat, folder.repeat(repeat.trial, repeat.repeat)) for repeat in handed_out]
    return Standing(folder, sweep, Space.model_validate(sweep["space"]), trials, running, node, reason)


def _training(repeat: Repeat, files: RepeatFolder) -> Training:
    line = (lines.read(files.metrics) or [{}])[-1]
    seen = max(_changed(files.metrics), _changed(files.checkpoint / "last"))
    return Training(
        repeat,
        files.label,
        node_of(files.lock),
        line.get("kimg", 0.0),
        line.get("images_per_second"),
        max(0.0, time.time() - seen) if seen else None,
    )


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # nor is a checkpoint there for an instant while the next one takes its place
        return 0.0
