"""How sweeps stand, told from their files: what runs where, what is done, failed and left."""

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from made_up_rows import make_row
from made_up_sweep import make_space, write_sweep

from scrimp_platform import store
from scrimp_platform.cli import status, status_view, terminal
from scrimp_platform.search import estimate, records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import Storage, SweepFolder


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "runs")


@pytest.fixture
def held():
    """Hold locks as living processes do, until the test ends."""
    with ExitStack() as stack:
        yield lambda *locks: [stack.enter_context(store.exclusive(lock, "it")) for lock in locks]


def running(folder: SweepFolder) -> list[store.RepeatFolder]:
    return [files for files in folder.repeats() if store.read_json(files.record)["status"] == "running"]


def shown(storage: Storage, capsys, width: int = 100) -> list[str]:
    before, terminal.console.width = terminal.console.width, width
    status_view.show_storage(*status.read_storage(storage))
    terminal.console.width = before
    return capsys.readouterr().out.splitlines()


def test_a_sweep_that_runs_is_shown_with_its_repeats_and_their_nodes(storage, held, capsys):
    folder = write_sweep(storage.path / "lab", make_space(), most=9)
    folder.outcome.unlink()
    (files,) = running(folder)
    held(folder.lock, files.lock)
    (standing,), complete, _ = status.read_storage(storage)
    (training,) = standing.running
    assert complete == []
    assert standing.node == training.node == os.uname().nodename
    assert (standing.phase, training.label, training.kimg) == ("search", files.label, 6.0)
    assert training.seconds_since_update is not None
    assert training.seconds_since_update < 60
    assert standing.hours_left
    text = "\n".join(lines := shown(storage, capsys))
    assert f"runs on {os.uname().nodename}, search" in text
    assert "space made-up, dataset digits" in text
    assert "6 begun, 8 to come" in text
    assert "1 running" in text
    assert "No trial has been trained to the end: 1 running and 5 paused" in text
    assert any(line.split()[:6] == [files.label, "search", os.uname().nodename, "6", "of", "60"] for line in lines)


def test_a_repeat_that_no_worker_has_yet_is_starting(storage, held, capsys):
    folder = write_sweep(storage.path / "lab", make_space(), most=2)
    held(folder.lock)
    (files,) = running(folder)
    files.metrics.unlink()
    (row,) = [words for line in shown(storage, capsys) if (words := line.split())[:1] == [files.label]]
    assert row[2:] == ["starting", "0", "of", "60", "0"]


@pytest.mark.parametrize(("reason", "told"), [("interrupted", "does not run: interrupted"), ("", "its driver is gone")])
def test_a_sweep_whose_driver_has_gone_waits_and_says_why(storage, capsys, reason, told):
    folder = write_sweep(storage.path / "lab", make_space(), most=9, reason=reason)
    if not reason:
        folder.outcome.unlink()
    (standing,), *_ = status.read_storage(storage)
    assert standing.running == []
    assert standing.hours_left is None
    text = "\n".join(shown(storage, capsys))
    assert told in text
    assert "1 waiting" in text


def test_the_race_and_what_failed_in_it_are_told(storage, capsys):
    fate = {"race": "CUDA out of memory"}
    write_sweep(storage.path / "lab", make_space(), lambda repeat: fate.get(repeat.phase, ""), 20, "interrupted")
    (standing,), *_ = status.read_storage(storage)
    assert standing.phase == "race"
    assert "14, all begun" in "\n".join(shown(storage, capsys))


def test_failures_are_counted_by_their_cause(storage, capsys):
    space, cause = make_space(budget={"retries": 0}), "OutOfMemoryError: 24 GiB"
    write_sweep(storage.path / "lab", space, lambda repeat: cause, most=3, reason="interrupted")
    text = "\n".join(shown(storage, capsys))
    assert "failed 3" in text
    assert "OutOfMemoryError: 24 GiB" in text


def test_complete_sweeps_are_only_named(storage, capsys):
    for name in ("one", "two"):
        write_sweep(storage.path / name, make_space(budget={"trials": 2}))
    assert shown(storage, capsys) == ["complete: one, two"]


def test_a_complete_sweep_that_was_given_more_to_do_runs_again(storage, held):
    folder = write_sweep(storage.path / "lab", make_space(budget={"trials": 2}))
    held(folder.lock)
    assert [standing.folder for standing in status.read_storage(storage)[0]] == [folder]


def test_a_sweep_that_has_only_just_begun_is_shown(storage, held, capsys):
    folder = write_sweep(storage.path / "lab", make_space(), most=0)
    held(folder.lock)
    text = "\n".join(shown(storage, capsys))
    assert "No trial has begun." in text
    assert "left" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(storage, held, capsys, width):
    folder = write_sweep(storage.path / "lab-with-a-longer-name", make_space(), most=9)
    (files,) = running(folder)
    held(folder.lock, files.lock)
    lines = shown(storage, capsys, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert len(lines) <= 24


def test_looking_disturbs_neither_a_driver_that_starts_nor_one_that_runs(tmp_path):
    lock, over = tmp_path / "lock", threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            store.holder(lock)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with store.exclusive(lock, "it", patience=10.0):
                assert store.holder(lock).startswith("process ")
    finally:
        over.set()
        thread.join()
    assert store.holder(lock) == ""


def test_a_trial_that_begins_while_the_records_are_read_does_no_harm(tmp_path):
    class Growing(SweepFolder):
        def trial_numbers(self):
            numbers = super().trial_numbers()
            Trial(len(numbers), {}).save(self)
            Repeat(len(numbers), 0, 0, "search", "running").save(self.repeat(len(numbers), 0))
            return numbers

    folder = Growing(tmp_path)
    assert [[trial.number for trial in records.read_records(folder).trials] for _ in range(3)] == [[], [0], [0, 1]]


def test_the_time_left_is_that_of_all_repeats_at_the_pace_so_far(storage):
    space = make_space(budget={"trials": 4, "rungs_kimg": [10, 40], "reduction": 2, "leaders": 2, "repeats": 3})
    folder = write_sweep(storage.path / "lab", space, most=1)
    trials = records.read_records(folder).trials
    (repeat,) = trials[0].repeats
    repeat.rungs = {10.0: make_row(kimg=10.0, seconds=20.0, fd_classifier=1.0)}
    # Three more trials go to 10 kimg, two of the four on to 40; then four repeats of 40 in the race.
    still = 3 * 10 + 4 * 40
    assert estimate.seconds_left(trials, space, {"0.0": 10.0}) == pytest.approx(2 * (still + 2 * 30))
    repeat.passed = 10.0
    assert estimate.seconds_left(trials, space, {"0.0": 25.0}) == pytest.approx(2 * (still + 15 + 30))
    repeat.rungs = {}
    assert estimate.seconds_left(trials, space, {}) is None


def test_the_command_finds_its_storage_and_imports_nothing_heavy(storage):
    write_sweep(storage.path / "lab", make_space(budget={"trials": 2}))
    heavy = ("torch", "ray", "mlflow", "optuna", "scipy", "sklearn")
    code = "import sys; from scrimp_platform.cli.main import main; main()\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code, "status"],
        env=os.environ | {"SCRIMP_STORAGE": str(storage.path)},
        capture_output=True,
        text=True,
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == [], answer.stderr
    assert answer.stdout.startswith("complete: lab")
