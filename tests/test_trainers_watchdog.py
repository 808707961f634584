import subprocess
import sys
import time
from pathlib import Path

import pytest

from scrimp_trainers import lines, watchdog

WORKER = Path(__file__).with_name("trainers_worker.py")


def test_a_process_that_hangs_with_the_interpreter_held_is_ended_and_says_where(digits_dataset, tmp_path):
    began = time.monotonic()
    child = subprocess.run([sys.executable, WORKER, "hangs", digits_dataset.folder, tmp_path, "3"], timeout=120)
    assert child.returncode == 1
    assert time.monotonic() - began < 60
    assert lines.read(tmp_path / "metrics.jsonl")  # it had begun to train
    told = (tmp_path / "stacks.txt").read_text()
    assert "in stuck" in told
    assert "in train_to" in told
    assert watchdog.verdict(tmp_path / "stacks.txt") == (
        f"no progress for 0:00:03, so its process was ended; where it hung is in {tmp_path / 'stacks.txt'}"
    )


def test_whoever_shows_life_or_rests_is_left_alone(tmp_path):
    stacks = tmp_path / "stacks.txt"
    with watchdog.watched(stacks, 0.5):
        time.sleep(0.7)  # nothing has begun yet
        for _ in range(15):
            watchdog.alive()
            time.sleep(0.1)
        watchdog.rest()
        time.sleep(0.7)
    assert not stacks.exists()
    watchdog.alive()  # nobody watches
    time.sleep(0.7)


def test_after_an_error_nobody_watches(tmp_path):
    def fail():
        with watchdog.watched(tmp_path / "stacks.txt", 0.5):
            watchdog.alive()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    time.sleep(0.7)
    assert not (tmp_path / "stacks.txt").exists()
