"""The status of the sweeps in a storage folder, from their files alone: no cluster is needed, only a node with them."""

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scrimp_platform import store
from scrimp_platform.search import estimate, records
from scrimp_platform.search.records import Records, Repeat
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError

if TYPE_CHECKING:
    from scrimp_platform.search.ledger import Ledger


@dataclass(frozen=True)
class RunningRepeat:
    """A repeat that has been assigned to a worker."""

    repeat: Repeat
    label: str
    node: str
    """The node that trains it; empty if no worker has started on it yet."""
    kimg: float
    images_per_second: float | None
    seconds_since_update: float | None
    """Time since it last wrote a file; None if it has not written any."""


@dataclass(frozen=True, kw_only=True)
class SweepStatus(Records):
    """The records of a sweep that is running or not complete, and where it stands."""

    folder: SweepFolder
    description: dict[str, Any]
    """The content of `sweep.json`."""
    space: Space
    running: list[RunningRepeat]
    node: str
    """The node of its driver; empty if none is running."""
    reason: str
    """Why its last driver ended; empty if that is not recorded."""

    @property
    def phase(self) -> str:
        """`search` or `race`."""
        return "race" if any(repeat.phase == "race" for repeat in self.repeats) else "search"

    @property
    def failures(self) -> Counter[str]:
        """How many repeats have failed for good, by cause."""
        return Counter(repeat.cause for repeat in self.repeats if repeat.status == "failed")

    @property
    def hours_left(self) -> float | None:
        """Estimated hours until the end; None if nothing is running, or nothing has been scored yet."""
        if not self.running:
            return None
        kimg = {running.label: running.kimg for running in self.running}
        seconds = estimate.seconds_left(self.trials, self.space, kimg, self.preparations)
        return seconds and seconds / len(self.running) / 3600


class StorageStatus(NamedTuple):
    """The status of all sweeps in a storage folder."""

    unfinished: list[SweepStatus]
    complete: list[str]
    """Their names."""
    problems: list[str]
    """A line for each sweep that cannot be read."""


def read_storage(storage: Storage) -> StorageStatus:
    """Read the status of every sweep.

    Raises
    ------
    UserError
        If there is no sweep.
    """
    if not storage.sweeps():
        raise UserError(
            f"--storage {storage.path}: no sweep there; give the folder that holds the sweeps, or set SCRIMP_STORAGE"
        )
    unfinished: list[SweepStatus] = []
    complete: list[str] = []
    problems: list[str] = []
    for folder in storage.sweeps():
        try:
            description = records.sweep_description(folder)
            if records.ending(folder, description) == "complete" and not lock_node(folder.lock):
                complete.append(folder.path.name)
            else:
                unfinished.append(read_sweep(folder))
        except UserError as error:
            problems.append(str(error))
        except OSError as error:  # it belongs to another user, or its disk fails
            problems.append(f"{error.filename or folder.path}: cannot be read ({error.strerror})")
    return StorageStatus(unfinished, complete, problems)


def lock_node(lock: Path) -> str:
    """Return the node of the process that holds a lock; empty if none does."""
    return store.holder(lock).rpartition(" on ")[2]


def read_sweep(folder: SweepFolder) -> SweepStatus:
    """Read the status of a sweep.

    Raises
    ------
    UserError
        If the folder is not that of a sweep, or its `sweep.json` is damaged.
    """
    description = records.sweep_description(folder)
    node = lock_node(folder.lock)
    reason = records.ending(folder, description)
    known = records.read_as_observer(folder)
    space = records.space_of(folder)
    running = read_running(folder, known.repeats)
    return SweepStatus(
        **vars(known), folder=folder, description=description, space=space, running=running, node=node, reason=reason
    )


def of_driver(ledger: "Ledger") -> SweepStatus:
    """Return the status that a sweep's own driver knows, without reading its records again."""
    return SweepStatus(
        trials=ledger.trials,
        skipped=[],
        problems=[],
        preparations=list(ledger.preparations.values()),
        folder=ledger.folder,
        description={},
        space=ledger.space,
        running=read_running(ledger.folder, ledger.repeats),
        node=os.uname().nodename,
        reason="",
    )


def read_running(folder: SweepFolder, repeats: Iterable[Repeat]) -> list[RunningRepeat]:
    """Read how far the repeats have come that are running."""
    return [
        _read_running(repeat, folder.repeat(repeat.trial, repeat.repeat))
        for repeat in repeats
        if repeat.status == "running"
    ]


def _read_running(repeat: Repeat, files: RepeatFolder) -> RunningRepeat:
    lines = metrics_log.read_rows(files.metrics)
    last_line = lines[-1] if lines else None
    updated = max(_modified(files.metrics), _modified(files.checkpoint / "last"))
    seconds_since_update = None
    if updated:
        seconds_since_update = max(0.0, time.time() - updated)
    return RunningRepeat(
        repeat,
        files.label,
        lock_node(files.lock),
        last_line.kimg if last_line else 0.0,
        last_line.images_per_second if last_line else None,
        seconds_since_update,
    )


def _modified(path: Path) -> float:
    """Return the time (s) of a file's last modification; 0 if it is missing."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a checkpoint is missing for an instant, too, while the next one replaces it
        return 0.0
