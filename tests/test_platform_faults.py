"""Whole sweeps by their command, to which something happens: real processes, real signals, a real full disk."""

import contextlib
import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_tree import descendants, processes
from small_disk import SmallDisk

from scrimp_platform import store
from scrimp_platform.search import records
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder, read_json
from scrimp_trainers.common import metrics_log

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SPACE = """
about: Small enough for a test
recipe: tiny-edm
override: {network.channels: 16, sampler.steps: 2}
arms:
  low: {optimizer.lr: 1.0e-3}
  high: {optimizer.lr: 1.0e-2}
objectives: {fd_classifier: minimize}
scoring: {extractor: classifier, samples: 64}
budget: {rungs_kimg: [3, 12], repeats: 2, retries: 9}
prefer: best  # the cheapest would depend on how much time the faults took
"""
NOWHERE = "http://127.0.0.1:9"
"""An MLflow server that never answers: it would take the cores that train."""


class Sweep:
    """A sweep's command, and every process that it has started; without `tracking` also an MLflow server."""

    def __init__(self, work: Path, data: Path, storage: Path, tracking: str = NOWHERE) -> None:
        work.mkdir(exist_ok=True)
        (work / "lab.yaml").write_text(SPACE)
        self.folder: SweepFolder = Storage(storage).sweep("lab-digits")
        self._log = work / "sweep.log"
        self._began = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, ROOT / "sweep.py", "--space", "lab.yaml", "--data", data, "--storage", storage]
        if tracking:
            command += ["--tracking-uri", tracking]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with self._log.open("a") as log:
            self.driver = subprocess.Popen(
                command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._seen: dict[int, str] = {}

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text()[self._began :]

    def wait(self, seconds: float = 900) -> str:
        """Wait for its end, and return what it printed."""
        self.driver.wait(seconds)
        return self.output

    def until(self, condition: Callable[[], object], seconds: float = 600) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.driver.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)
        self._seen |= descendants(self.driver.pid)

    def raylet(self) -> int:
        """Return the process of its own Ray that starts all others."""
        (raylet,) = (pid for pid in descendants(self.driver.pid) if Path(_command(pid).split(" ")[0]).name == "raylet")
        return raylet

    def workers(self) -> list[int]:
        """Return the processes that train, as their locks tell."""
        told = [store.holder(files.lock).split() for files in self.folder.repeats()]
        return [int(words[1]) for words in told if words]

    def left(self, seconds: float = 30) -> dict[int, str]:
        """Return which of the processes that were seen still live after a while, and what they are."""
        deadline = time.monotonic() + seconds
        while (living := self._living()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return {pid: _command(pid) for pid in living}

    def end(self) -> None:
        """Kill whatever is left of it."""
        self._seen |= descendants(self.driver.pid)
        for pid in [self.driver.pid, *self._living()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.driver.wait()

    def _living(self) -> list[int]:
        now = {pid: began for pid, (_, began) in processes().items()}
        return [pid for pid, began in self._seen.items() if now.get(pid) == began]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def leaderboard(folder: SweepFolder) -> list[dict[str, str]]:
    """Return its rows but for what time they took."""
    with folder.leaderboard.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "gpu_hours"} for row in csv.DictReader(file)]


def assert_whole(folder: SweepFolder) -> None:
    """Whether every repeat of both arms is there once, each line of it once, and nothing is left to do."""
    trials = records.read_records(folder).trials
    assert [len(trial.repeats) for trial in trials] == [2, 2]
    assert {repeat.status for trial in trials for repeat in trial.repeats} == {"finished"}
    for files in folder.repeats():
        images = [line.images for line in metrics_log.read_rows(files.metrics)]
        assert images == sorted(set(images))
        assert (files.model / "unet").is_dir()


@pytest.fixture(scope="module")
def calm(tmp_path_factory, scored_digits) -> Sweep:
    work = tmp_path_factory.mktemp("calm")
    sweep = Sweep(work, scored_digits.folder, work / "runs")
    output = sweep.wait()
    assert sweep.driver.returncode == 0, output
    return sweep


@pytest.fixture
def start(tmp_path, scored_digits) -> Iterator:
    """Start the command, again and again if need be; in the end nothing of it is left."""
    started: list[Sweep] = []

    def start(storage: Path | None = None, tracking: str = NOWHERE) -> Sweep:
        storage = storage or tmp_path / "work" / "runs"
        started.append(Sweep(tmp_path / "work", scored_digits.folder, storage, tracking))
        return started[-1]

    yield start
    for sweep in started:
        sweep.end()


def checkpoint(files: RepeatFolder) -> Path:
    return files.checkpoint / "last" / "state.json"


def test_workers_killed_again_and_again_change_nothing(start, calm):
    chance = random.Random(1)
    sweep = start()
    for _ in range(4):
        sweep.until(lambda: sweep.workers() or read_json(sweep.folder.outcome))
        time.sleep(chance.uniform(0, 6))
        for pid in sweep.workers()[: chance.choice([1, 2])]:
            os.kill(pid, signal.SIGKILL)
    output = sweep.wait()
    assert sweep.driver.returncode == 0, output
    assert "its process died" in output
    assert "Traceback" not in output
    assert_whole(sweep.folder)
    assert leaderboard(sweep.folder) == leaderboard(calm.folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Room for MLflow's database and both repeats' checkpoints."""
    disk = SmallDisk(tmp_path / "disk", "64m")
    if not disk.mount():
        pytest.skip("needs root, to mount a tmpfs")
    yield disk
    disk.unmount()


def test_a_full_disk_stops_a_sweep_until_there_is_room_and_changes_nothing(start, calm, disk):
    sweep = start(disk.path)
    sweep.until(lambda: any(checkpoint(files).exists() for files in sweep.folder.repeats()))
    disk.fill()
    sweep.until(lambda: "waiting for disk space in" in sweep.output)
    time.sleep(40)
    assert sweep.driver.poll() is None, sweep.output
    disk.free()
    output = sweep.wait()
    assert sweep.driver.returncode == 0, output
    assert "Traceback" not in output
    assert "No space left on device" in sweep.folder.log.read_text()
    assert {repeat.attempt for trial in records.read_records(sweep.folder).trials for repeat in trial.repeats} == {1}
    assert_whole(sweep.folder)
    assert leaderboard(sweep.folder) == leaderboard(calm.folder)


def test_ctrl_c_on_a_full_disk_ends_the_sweep_within_five_seconds(start, disk):
    sweep = start(disk.path, tracking="")
    sweep.until(lambda: "MLflow: http" in sweep.output)
    sweep.until(lambda: any(checkpoint(files).exists() for files in sweep.folder.repeats()))
    disk.fill()
    sweep.until(lambda: "waiting for disk space" in sweep.output)

    os.killpg(sweep.driver.pid, signal.SIGINT)
    interrupted = time.monotonic()
    sweep.driver.wait(60)
    seconds = time.monotonic() - interrupted

    assert sweep.driver.returncode == 130, sweep.output
    assert seconds < 5
    assert "Traceback" not in sweep.output
    assert not sweep.left()


def test_ctrl_c_twice_leaves_no_process_and_the_same_command_goes_on(start, calm):
    sweep = start()
    sweep.until(lambda: any(checkpoint(files).exists() for files in sweep.folder.repeats()))
    os.killpg(sweep.driver.pid, signal.SIGINT)
    sweep.until(lambda: "Ctrl-C again" in sweep.output)
    os.killpg(sweep.driver.pid, signal.SIGINT)
    sweep.driver.wait(30)
    assert sweep.driver.returncode == 130, sweep.output
    assert "Traceback" not in sweep.output
    assert not sweep.left()

    again = start()
    output = again.wait()
    assert again.driver.returncode == 0, output
    assert_whole(again.folder)
    assert leaderboard(again.folder) == leaderboard(calm.folder)


def test_a_killed_driver_leaves_no_process(start):
    sweep = start()
    sweep.until(sweep.workers)
    sweep.driver.kill()
    sweep.driver.wait()
    # The agent of the Ray that died with it notices after 25 s, and waits a minute for a control store that is gone.
    assert not sweep.left(150)


DECISION = re.compile(r" *\d+:\d\d  ")
"""How a line of the sweep itself begins, which it may still print before it notices."""


def finished(folder: SweepFolder) -> dict[str, tuple[int, int]]:
    """Return which file holds the metrics of each finished repeat, and when it was written last."""
    facts = {}
    for files in folder.repeats():
        if read_json(files.record)["status"] == "finished":
            stat = files.metrics.stat()
            facts[files.label] = (stat.st_ino, stat.st_mtime_ns)
    return facts


def test_a_dead_raylet_ends_the_sweep_with_a_line_and_the_same_command_goes_on(start, calm):
    sweep = start()
    sweep.until(lambda: finished(sweep.folder) and sweep.workers())
    kept = finished(sweep.folder)
    printed = len(sweep.output)
    os.kill(sweep.raylet(), signal.SIGKILL)
    sweep.driver.wait(60)
    assert sweep.driver.returncode == 1, sweep.output
    lines = [line for line in sweep.output[printed:].splitlines() if not DECISION.match(line)]
    assert lines == ["scrimp: Ray's raylet has died; run the same command again to resume"]
    # Its agents notice as they do when the driver dies.
    assert not sweep.left(150)

    again = start()
    output = again.wait()
    assert again.driver.returncode == 0, output
    assert kept.items() <= finished(again.folder).items()
    assert_whole(again.folder)
    assert leaderboard(again.folder) == leaderboard(calm.folder)
