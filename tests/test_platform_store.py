"""The driver on a disk that is full for a while: it waits, and loses nothing."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_sweep import next_repeat
from test_platform_ledger import RUNGS, open_ledger, score, study
from test_platform_race import make_space

from scrimp_platform import store, sweep
from scrimp_platform.log import Log
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common import metrics_log


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(store, "DISK_CHECK_INTERVAL_S", 0.01)


@pytest.fixture
def tide(small_disk):
    """Fill the disk and free it again, over and over, until the test ends."""
    over = threading.Event()

    def turn():
        while not over.wait(0.02):
            small_disk.fill(spare=4096 if time.monotonic_ns() % 2 else 0)
            over.wait(0.03)
            small_disk.free()

    thread = threading.Thread(target=turn)
    thread.start()
    yield small_disk.path
    over.set()
    thread.join()


def run_all(ledger: Ledger) -> list:
    while repeat := next_repeat(ledger):
        params = next(trial for trial in ledger.trials if trial.number == repeat.trial).params
        metrics = ledger.folder.repeat(repeat.trial, repeat.repeat).metrics
        written = []
        for rung in RUNGS:
            written.append(score(repeat, rung, params))
            store.retry_when_disk_full(partial(metrics_log.write_rows, metrics, written), ledger.say)
            if not ledger.report(repeat, written[-1]):
                break
        ledger.finish(repeat)
    return [(trial.params, trial.status, len(trial.repeats)) for trial in ledger.trials]


def test_a_driver_decides_the_same_on_a_disk_that_is_full_again_and_again(tide, tmp_path):
    calm = SweepFolder(tmp_path / "sweep")
    expected = run_all(open_ledger(calm, seed=3))

    said: list[str] = []
    folder = SweepFolder(tide / "sweep")
    store.retry_when_disk_full(folder.path.mkdir, said.append)
    ledger = open_ledger(folder, seed=3, say=said.append)
    assert run_all(ledger) == expected
    waits = [line for line in said if line.startswith("waiting for disk space: [Errno 28] No space left on device")]
    assert waits
    assert sum(line.startswith("disk space is available again after") for line in said) == len(waits)
    assert [trial.state for trial in study(folder).trials] == [trial.state for trial in study(calm).trials]
    again = open_ledger(folder, seed=3)
    assert [trial.status for trial in again.trials] == [status for _, status, _ in expected]


def test_the_journal_has_all_of_an_entry_or_nothing(small_disk, monkeypatch):
    monkeypatch.setattr(store, "DISK_CHECK_INTERVAL_S", 0.5)  # time to look at it between two attempts
    folder = SweepFolder(small_disk.path / "sweep")
    said: list[str] = []
    ledger = open_ledger(folder, say=said.append)
    before = folder.journal.read_bytes()
    small_disk.fill()
    asking = threading.Thread(target=ledger._study._study.set_user_attr, args=("long", "x" * 10_000))
    asking.start()
    while not said:
        time.sleep(0.01)
    assert folder.journal.read_bytes() == before
    small_disk.free()
    asking.join()
    assert study(folder).user_attrs["long"] == "x" * 10_000


def test_a_sweep_that_is_resumed_on_a_full_disk_waits(small_disk):
    folder = SweepFolder(small_disk.path / "sweep")
    open_ledger(folder).propose()  # what is running now is taken back when the next driver opens the ledger
    small_disk.fill()
    options = SimpleNamespace(seed=0)
    the_plan: Any = SimpleNamespace(folder=folder, space=make_space(), manifest=None, options=options, warm_start=None)
    placement: Any = SimpleNamespace(devices=1)
    with ThreadPoolExecutor(1) as opening:
        opened = opening.submit(sweep.open_ledger, the_plan, placement)
        time.sleep(0.5)
        assert not opened.done()
        small_disk.free()
        assert [repeat.status for repeat in opened.result(60).repeats] == ["waiting"]
    assert "waiting for disk space: [Errno 28] No space left" in folder.log.read_text()


def test_other_errors_are_not_waited_for():
    with pytest.raises(FileNotFoundError):
        store.retry_when_disk_full(Path("/nowhere/at/all").touch, print)


def test_what_the_log_could_not_write_follows_when_there_is_room(small_disk):
    log = Log(small_disk.path / "sweep.log")
    small_disk.fill()
    log("first")
    small_disk.free()
    log("second")
    words = [line.split(" ", 1)[1] for line in (small_disk.path / "sweep.log").read_text().splitlines()]
    assert words == ["first", "second"]
