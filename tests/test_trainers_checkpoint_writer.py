"""Checkpoints that are written while training goes on, by a storage that is as slow as the test says."""

import copy
import errno
import json
import os
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
from test_trainers_checkpoint import assert_same
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import Diverged
from scrimp_trainers.run import train_repeat
from scrimp_trainers.training import checkpoint, checkpoint_writer, session
from scrimp_trainers.training.checkpoint_writer import CheckpointWriter
from scrimp_trainers.training.loop import train

RECIPE = small(training__kimg=0.08, sampler__steps=1)


@pytest.fixture
def clock(monkeypatch):
    """The time that a checkpoint writer sees, in seconds."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(checkpoint_writer, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("copying", "writing", "interval"), [(0.1, 0.9, 60), (1, 3, 200)])
def test_the_next_checkpoint_is_due_after_a_minute_and_fifty_times_the_cost(
    clock, monkeypatch, tmp_path, copying, writing, interval
):
    def spend(seconds):
        clock.seconds += seconds

    monkeypatch.setattr(checkpoint, "copy_content", lambda *_: spend(copying))
    monkeypatch.setattr(checkpoint, "write", lambda *_: spend(writing))
    with closing(CheckpointWriter()) as writer:
        assert not writer.due(60)
        writer.begin(tmp_path, small_state(RECIPE), {}, {})
        writer.wait()
        clock.seconds = 1000 + interval - 1
        assert not writer.due(60)
        clock.seconds = 1000 + interval + 1
        assert writer.due(60)


@pytest.fixture
def stuck(monkeypatch):
    """A storage that writes nothing before it is told to."""
    goes_on = threading.Event()
    write = checkpoint.write

    def wait_and_write(*arguments):
        assert goes_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write", wait_and_write)
    yield goes_on
    goes_on.set()


def test_what_is_written_is_the_state_when_it_was_begun(stuck, tmp_path):
    state = small_state(RECIPE)
    steps = train(RECIPE, state, random_batches(8), device=CPU)
    next(steps)
    begun = copy.deepcopy(state)
    with closing(CheckpointWriter()) as writer:
        writer.begin(tmp_path / "last", state, {}, {"number": 1})
        list(steps)
        assert state.step == 10
        assert not (tmp_path / "last").exists()
        stuck.set()

    loaded = small_state(RECIPE, number=1)
    assert checkpoint.load(tmp_path / "last", loaded, {}) == {"number": 1}
    assert_same(loaded, begun)


@pytest.fixture
def checked_at_each_step(monkeypatch):
    monkeypatch.setattr(session, "CHECK_INTERVAL_STEPS", 1)
    monkeypatch.setattr(session, "CHECK_INTERVAL_IMAGES", 1)


def trained(dataset, folder):
    return list(train_repeat(RECIPE, dataset, folder, 7, rungs_kimg=[], checkpoint_seconds=0))


def test_training_does_not_wait_for_a_slow_storage_before_its_rung(
    digits_dataset, tmp_path, monkeypatch, stuck, checked_at_each_step
):
    """The first checkpoint comes after the first step. No other is due as long as that is being written."""
    score_rung = session.Session.score_rung

    def look(run, row):
        assert not (tmp_path / "run" / "checkpoint" / "last").exists()
        stuck.set()
        return score_rung(run, row)

    monkeypatch.setattr(session.Session, "score_rung", look)
    assert trained(digits_dataset, tmp_path / "run")[-1].step == 10
    records = [tmp_path / "run" / "checkpoint" / name / "state.json" for name in ("previous", "last")]
    assert [json.loads(record.read_text())["step"] for record in records] == [1, 10]


def test_an_error_of_the_storage_ends_the_training(digits_dataset, tmp_path, monkeypatch, checked_at_each_step):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        trained(digits_dataset, tmp_path / "run")


def test_a_training_that_ends_by_an_error_leaves_nobody_who_writes(
    digits_dataset, tmp_path, monkeypatch, checked_at_each_step
):
    read_losses, write = session.read_losses, checkpoint.write
    calls = []

    def diverge(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Diverged("step 2: loss is nan")
        return read_losses(*arguments)

    def write_slowly(*arguments):
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(session, "read_losses", diverge)
    monkeypatch.setattr(checkpoint, "write", write_slowly)
    with pytest.raises(Diverged):
        trained(digits_dataset, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint" / "last" / checkpoint.SUMS).exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
