"""How the sweeps of a storage stand, from their files alone: no cluster is needed, only a node that sees them."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform import store
from scrimp_platform.search import estimate, records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError


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
    problems: list[str]
    """Its records that are damaged or missing."""

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


def unfinished(storage: Storage) -> tuple[list[Standing], list[str], list[str]]:
    """Return how each sweep stands that is not complete, the names of those that are, and what cannot be read."""
    standings, complete, problems = [], [], []
    for folder in storage.sweeps():
        try:
            sweep, node = records.sweep_description(folder), node_of(folder.lock)
            reason = _reason(folder, sweep)
            if reason == "complete" and not node:
                complete.append(folder.path.name)
            else:
                standings.append(_read(folder, sweep, node, reason))
        except UserError as error:
            problems.append(str(error))
        except OSError as error:  # it belongs to somebody else, or its disk fails
            problems.append(f"{error.filename or folder.path}: cannot be read ({error.strerror})")
    return standings, complete, problems


def node_of(lock: Path) -> str:
    """Return where the process runs that holds a lock; empty if none does."""
    return store.holder(lock).rpartition(" on ")[2]


def _reason(folder: SweepFolder, sweep: dict[str, Any]) -> str:
    """Say why the last driver ended; empty if it could not tell, or has not ended."""
    outcome = store.read_sound(folder.outcome)
    return outcome["reason"] if outcome and outcome["ended"] >= sweep["driver_started"] else ""


def _read(folder: SweepFolder, sweep: dict[str, Any], node: str, reason: str) -> Standing:
    known = records.read_as_observer(folder)
    handed_out = [repeat for repeat in known.repeats if repeat.status == "running"]
    running = [_training(repeat, folder.repeat(repeat.trial, repeat.repeat)) for repeat in handed_out]
    return Standing(folder, sweep, records.space_of(folder), known.trials, running, node, reason, known.problems)


def _training(repeat: Repeat, files: RepeatFolder) -> Training:
    line = (metrics_log.read(files.metrics) or [{}])[-1]
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
