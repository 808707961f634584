"""The files of a sweep: the only module of the platform that knows their names.

A file is written under a temporary name and renamed: readers see the old or the new content, never a part of it.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scrimp_platform import interrupt
from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord, DiskFull, UserError
from scrimp_trainers.common.files import is_disk_full, read_regular, try_lock, write_atomic

TRIAL_FILE = "trial.json"
SWEEP_FILE = "sweep.json"
TUNED_FILE = "tuned.json"
"""In the folder of a training: what `scrimp tune` has found."""
DISK_CHECK_INTERVAL_S = 5.0
"""Between two attempts to write to a full disk."""
LOCK_CHECK_INTERVAL_S = 0.5

T = TypeVar("T")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a record as indented JSON with its checksum, atomically."""
    write_atomic(path, json.dumps(checksums.seal(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a record that `write_json` has written; none if it does not exist.

    Raises
    ------
    DamagedRecord
        If it cannot be read or is not what was written; the message names the file.
    """
    try:
        return checksums.unseal(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({error.strerror})") from None
    except DamagedRecord as error:
        raise DamagedRecord(f"{path}: {error}") from None


def read_sound(path: Path) -> Any:
    """Read an optional record; none if it does not exist or is damaged."""
    with contextlib.suppress(DamagedRecord):
        return read_json(path)


def retry_when_disk_full(write: Callable[[], T], say: Callable[[str], object]) -> T:
    """Call `write`, which can be repeated, until the disk is no longer full or read-only.

    The driver waits instead of ending, so the repeats that are running continue.

    Raises
    ------
    KeyboardInterrupt
        If it would wait after Ctrl-C or SIGTERM, also after one that was only recorded.
    """
    waiting_since = None
    while True:
        try:
            result = write()
        except (OSError, DiskFull) as error:
            if not (isinstance(error, DiskFull) or is_disk_full(error)):
                raise
            interrupt.raise_if_requested()
            if waiting_since is None:
                waiting_since = time.monotonic()
                say(f"waiting for disk space: {error}")
            interrupt.sleep(DISK_CHECK_INTERVAL_S)
            continue
        if waiting_since is not None:
            say(f"disk space is available again after {time.monotonic() - waiting_since:.0f} s")
        return result


@contextlib.contextmanager
def exclusive(
    lock: Path, what: str, patience: float = 0.0, say: Callable[[str], object] = lambda _: None
) -> Iterator[None]:
    """Hold a lock file, which the system releases if the process is killed; `say` reports what it waits for.

    Raises
    ------
    UserError
        If another process still holds it after `patience` seconds.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    waiting = False
    with lock.open("a+") as file:
        while not try_lock(file):
            file.seek(0)
            owner = file.read() or "unknown"
            if time.monotonic() >= deadline:
                raise UserError(f"{what}: in use by another process, {owner}")
            if not waiting:
                say(f"waiting for {what}: in use by {owner}")
            waiting = True
            time.sleep(LOCK_CHECK_INTERVAL_S)

        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def holder(lock: Path) -> str:
    """Return which process holds a lock, as `exclusive` wrote it; empty if none does."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        if not try_lock(file, shared=True):
            return file.read()
    return ""


@dataclass(frozen=True)
class WorkFolder:
    """The files of what a worker does: a repeat, or a training that repeats need before theirs."""

    path: Path

    @property
    def label(self) -> str:
        """Its name in logs."""
        return self.path.name

    @property
    def record(self) -> Path:
        """Seed, status, attempts."""
        return self.path / "preparation.json"

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
        """The stacks of its threads when it made no progress."""
        return self.path / "stacks.txt"

    @property
    def recipe(self) -> Path:
        """The whole recipe; of a preparation that of the repeat for which it was begun."""
        return self.path / "recipe.yaml"


@dataclass(frozen=True)
class RepeatFolder(WorkFolder):
    """The files of one repeat."""

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
    def metrics(self) -> Path:
        """One JSON line a tick and a rung."""
        return self.path / "metrics.jsonl"

    @property
    def system(self) -> Path:
        """What its node did meanwhile: a JSON line every few seconds."""
        return self.path / "system.jsonl"

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
    def layers(self) -> Path:
        """Density and share of the FLOPs of each layer, if the recipe is sparse."""
        return self.path / "layers.csv"

    @property
    def coreset_png(self) -> Path:
        """Images that the coreset keeps beside those that it drops, if the recipe has one."""
        return self.path / "coreset.png"

    @property
    def prepared(self) -> list[Path]:
        """What the recipe's techniques wrote: masked layers, images of the coreset, class weights."""
        return [self.layers, self.path / "coreset.csv", self.coreset_png, self.path / "class_weights.json"]

    @property
    def checkpoint(self) -> Path:
        """Folder of the last two checkpoints and the best one."""
        return self.path / "checkpoint"

    @property
    def snapshots(self) -> Path:
        """Folder of the averages that `scrimp tune` makes others of, if the recipe keeps them."""
        return self.path / "snapshots"

    @property
    def model(self) -> Path:
        """The model in diffusers' format."""
        return self.path / "model"


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    path: Path

    @property
    def description(self) -> Path:
        """The resolved space, the dataset's hash, versions and seed; written before the first repeat."""
        return self.path / SWEEP_FILE

    @property
    def warm_start(self) -> Path:
        """What the sweep was given of earlier ones; written before its description."""
        return self.path / "warm_start.json"

    @property
    def space(self) -> Path:
        """The space as it was asked for, if it was made in Python and a job is to read it."""
        return self.path / "space.yaml"

    @property
    def parts(self) -> Path:
        """Copies of the user's own parts, which its workers load."""
        return self.path / "parts"

    @property
    def lock(self) -> Path:
        """Held by the driver, so that a sweep has one at a time."""
        return self.path / "driver.lock"

    @property
    def journal(self) -> Path:
        """Optuna's studies; optuna-dashboard opens them."""
        return self.path / "study.journal"

    def request(self, name: str) -> Path:
        """File of what a user asks of the sweep while it runs, and of the answer; names are in order of time."""
        return self.path / "requests" / f"{name}.json"

    def requests(self) -> list[Path]:
        """Return every request, in order of time."""
        return sorted((self.path / "requests").glob("[0-9]*.json"))

    @property
    def outcome(self) -> Path:
        """How the last driver ended: why, and when."""
        return self.path / "outcome.json"

    @property
    def tracking(self) -> Path:
        """What MLflow has received so far, and its run ids."""
        return self.path / "tracking.json"

    @property
    def leaderboard(self) -> Path:
        """The ranking, one line a trial."""
        return self.path / "leaderboard.csv"

    @property
    def best_recipe(self) -> Path:
        """The recommended recipe; `scrimp train` takes it as it is."""
        return self.path / "best_recipe.yaml"

    @property
    def models(self) -> dict[str, Path]:
        """Folders of the models that others load, by their alias in MLflow's registry.

        That of the best mean exists only if it is not the recommended one.
        """
        return {"recommended": self.path / "model", "best": self.path / "model-best"}

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

    @property
    def trials(self) -> Path:
        """Folder of all trials."""
        return self.path / "trials"

    def trial(self, trial: int) -> Path:
        """Folder of one trial."""
        return self.trials / f"{trial:04d}"

    def repeat(self, trial: int, repeat: int) -> RepeatFolder:
        """Folder of one repeat."""
        return RepeatFolder(self.trial(trial) / f"repeat-{repeat}", trial, repeat)

    def preparation(self, name: str) -> WorkFolder:
        """Folder of a reference or proxy that recipes need; its model and weights are in the dataset's cache."""
        return WorkFolder(self.path / "preparations" / name)

    def preparations(self) -> list[WorkFolder]:
        """Return every preparation that has a record, by name."""
        files = self.path.glob("preparations/*/preparation.json")
        return [WorkFolder(file.parent) for file in sorted(files)]

    def trial_numbers(self) -> list[int]:
        """Return the numbers of all trials that have a record, in order."""
        folders = self.trials.glob("[0-9]*")
        numbers = sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
        # The folder of the newest trial is created an instant before its record.
        if numbers and not _holds_records(self.trial(numbers[-1])):
            numbers.pop()
        return numbers

    def repeat_numbers(self, trial: int) -> list[int]:
        """Return the numbers of a trial's repeats that have a record, in order."""
        files = self.trial(trial).glob("repeat-*/repeat.json")
        numbers = [file.parent.name.removeprefix("repeat-") for file in files]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def repeats(self) -> Iterator[RepeatFolder]:
        """Yield every repeat that has a record, in order."""
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
        """Return every sweep, by name, also one that has lost its `sweep.json`."""
        files = [*self.path.glob(f"*/{SWEEP_FILE}"), *self.path.glob("*/trials")]
        return [SweepFolder(folder) for folder in sorted({file.parent for file in files})]

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
