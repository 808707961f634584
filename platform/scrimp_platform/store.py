"""The files of a sweep: the only module of the platform that knows their names.

A file is written aside and renamed, so a reader sees all of it or none, also after a kill or a full disk.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scrimp_platform import interrupt
from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord, UserError
from scrimp_trainers.common.files import no_room, write_atomic

TRIAL_FILE = "trial.json"
SWEEP_FILE = "sweep.json"
ROOM = 5.0
"""Seconds between two looks whether a full disk has room again."""

Result = TypeVar("Result")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a record as indented JSON with its checksum, atomically."""
    write_atomic(path, json.dumps(checksums.seal(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a record that `write_json` has written; none if it does not exist.

    Raises
    ------
    DamagedRecord
        If it cannot be read or is not what was written; names the file.
    """
    try:
        return checksums.unseal(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({error.strerror})") from None
    except DamagedRecord as error:
        raise DamagedRecord(f"{path}: {error}") from None


def read_sound(path: Path) -> Any:
    """Read a record that can be done without; none if it does not exist or is damaged."""
    with contextlib.suppress(DamagedRecord):
        return read_json(path)


def patiently(write: Callable[[], Result], say: Callable[[str], object]) -> Result:
    """Write what can be written again from its start; wait while the disk is full or read-only.

    The driver waits and does not end: what is being trained goes on meanwhile, and nothing has to be started again.

    Raises
    ------
    KeyboardInterrupt
        If it would wait after Ctrl-C or SIGTERM, also after one that was only noted.
    """
    began = 0.0
    while True:
        try:
            result = write()
        except OSError as error:
            if not no_room(error):
                raise
            interrupt.check()
            if not began:
                began = time.monotonic()
                say(f"the sweep waits: {error}; it goes on when there is room")
            interrupt.pause(ROOM)
            continue
        if began:
            say(f"there is room again after {time.monotonic() - began:.0f} s")
        return result


@contextlib.contextmanager
def exclusive(
    lock: Path, what: str, patience: float = 0.0, say: Callable[[str], object] = lambda _: None
) -> Iterator[None]:
    """Hold a lock file, which a killed process gives up by itself; `say` is told what is waited for.

    Raises
    ------
    UserError
        If another process still holds it after `patience` seconds.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline, waits = time.monotonic() + patience, False
    with lock.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                other = file.read() or "unknown"
                if time.monotonic() >= deadline:
                    raise UserError(f"{what}: another process has it, {other}") from None
                if not waits:
                    say(f"waiting for {what}: {other} has it")
                waits = True
                time.sleep(0.5)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def holder(lock: Path) -> str:
    """Say which process holds a lock, as `exclusive` wrote it down; empty if none does."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read()
    return ""


@dataclass(frozen=True)
class RepeatFolder:
    """The files of one repeat."""

    path: Path
    trial: int
    repeat: int

    @property
    def label(self) -> str:
        """Name of the repeat in logs: `7.2` is repeat 2 of trial 7."""
        return f"{self.trial}.{self.repeat}"

    @property
    def record(self) -> Path:
        """`repeat.json`: seed, phase, status, attempts."""
        return self.path / "repeat.json"

    @property
    def lock(self) -> Path:
        """Held by the worker that trains it."""
        return self.path / "worker.lock"

    @property
    def error(self) -> Path:
        """Traceback of its last failure."""
        return self.path / "error.txt"

    @property
    def stacks(self) -> Path:
        """Where its threads were when it made no progress."""
        return self.path / "stacks.txt"

    @property
    def recipe(self) -> Path:
        """The whole recipe."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line a tick and a rung."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of one sample grid a rung, named by its kimg."""
        return self.path / "samples"

    @property
    def samples_png(self) -> Path:
        """The latest sample grid."""
        return self.path / "samples.png"

    @property
    def neighbours_png(self) -> Path:
        """Samples beside their nearest training images."""
        return self.path / "neighbours.png"

    @property
    def prepared(self) -> list[Path]:
        """What the recipe's techniques left: which layers are masked, which images are kept, how classes weigh."""
        names = ("layers.csv", "coreset.csv", "coreset.png", "class_weights.json")
        return [self.path / name for name in names]

    @property
    def checkpoint(self) -> Path:
        """Folder of the last two checkpoints and the best one."""
        return self.path / "checkpoint"

    @property
    def model(self) -> Path:
        """The model in diffusers' format."""
        return self.path / "model"


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    path: Path

    @property
    def sweep(self) -> Path:
        """The resolved space, the dataset's hash, versions and seed; written before the first repeat."""
        return self.path / SWEEP_FILE

    @property
    def space(self) -> Path:
        """The space as it was asked for, if it was made in Python and a job is to read it."""
        return self.path / "space.yaml"

    @property
    def lock(self) -> Path:
        """Held by the driver, so that a sweep has one at a time."""
        return self.path / "driver.lock"

    @property
    def journal(self) -> Path:
        """Optuna's study; optuna-dashboard opens it."""
        return self.path / "study.journal"

    @property
    def outcome(self) -> Path:
        """How the last driver ended: why, and when."""
        return self.path / "outcome.json"

    @property
    def tracking(self) -> Path:
        """What MLflow has been told so far, and its run ids."""
        return self.path / "tracking.json"

    @property
    def leaderboard(self) -> Path:
        """The ranking, one line a trial."""
        return self.path / "leaderboard.csv"

    @property
    def best_recipe(self) -> Path:
        """The winning recipe; `scrimp train` takes it as it is."""
        return self.path / "best_recipe.yaml"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the driver decided, one line a decision."""
        return self.path / "sweep.log"

    @property
    def ray(self) -> Path:
        """Ray's own bookkeeping; nothing in it is needed to resume."""
        return self.path / "ray"

    def trial(self, trial: int) -> Path:
        """Folder of one trial."""
        return self.path / "trials" / f"{trial:04d}"

    def repeat(self, trial: int, repeat: int) -> RepeatFolder:
        """Folder of one repeat."""
        return RepeatFolder(self.trial(trial) / f"repeat-{repeat}", trial, repeat)

    def trial_numbers(self) -> list[int]:
        """Return the numbers of all trials, in order; one of which nothing is on disk yet is not among them."""
        folders = (self.path / "trials").glob("[0-9]*")
        numbers = sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
        # The newest one's folder is made an instant before its record.
        if numbers and not _holds_records(self.trial(numbers[-1])):
            numbers.pop()
        return numbers

    def repeat_numbers(self, trial: int) -> list[int]:
        """Return the numbers of a trial's repeats that are on disk."""
        names = (file.parent.name.removeprefix("repeat-") for file in self.trial(trial).glob("repeat-*/repeat.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def repeats(self) -> Iterator[RepeatFolder]:
        """Every repeat that was decided on, in order."""
        for trial in self.trial_numbers():
            for repeat in self.repeat_numbers(trial):
                yield self.repeat(trial, repeat)


def _holds_records(trial: Path) -> bool:
    return (trial / TRIAL_FILE).exists() or any(trial.glob("repeat-*/repeat.json"))


@dataclass(frozen=True)
class Storage:
    """The folder that holds every sweep, the datasets that were prepared on the way, and MLflow's files."""

    path: Path

    def sweep(self, name: str) -> SweepFolder:
        """Folder of the sweep of this name."""
        return SweepFolder(self.path / name)

    def sweeps(self) -> list[SweepFolder]:
        """Every sweep, by name, also one that has lost its `sweep.json`."""
        folders = {file.parent for name in (SWEEP_FILE, "trials") for file in self.path.glob(f"*/{name}")}
        return [SweepFolder(folder) for folder in sorted(folders)]

    def dataset(self, name: str) -> Path:
        """Folder of a dataset that a sweep prepared by itself."""
        return self.path / "datasets" / name

    @property
    def mlflow(self) -> Path:
        """Folder of MLflow's database, artifacts and log."""
        return self.path / "mlflow"

    @property
    def speeds(self) -> Path:
        """What training and scoring cost on this machine, as the last sweeps measured it."""
        return self.path / "speeds.json"
