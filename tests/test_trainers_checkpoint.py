import os
import signal
import time
from pathlib import Path

import pytest
import torch
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers import checkpoint
from scrimp_trainers.errors import UserError
from scrimp_trainers.train import train

IDENTITY = {"optimizer": {"lr": 0.1}, "seed": 0}


def everything(state):
    """All tensors of a state, by name."""
    optimizer = {
        f"{kind}/{name}": value
        for name, parameter in state.network.named_parameters()
        for kind, value in state.optimizer.state[parameter].items()
    }
    average = {f"ema/{name}": value for name, value in state.ema.state_dict().items()}
    return {**optimizer, **average, **state.network.state_dict()}


def assert_same(one, other):
    assert (one.step, one.images) == (other.step, other.images)
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(tmp_path, kind):
    recipe = small(optimizer__kind=kind, network__dropout=0.2, training__kimg=0.08)
    whole = small_state(recipe)
    steps = train(recipe, whole, random_batches(8), device=CPU)
    for _ in range(5):
        next(steps)
    checkpoint.save(tmp_path / "last", whole, IDENTITY, {"best": 1.5})
    list(steps)

    resumed = small_state(recipe, number=0)
    assert checkpoint.load(tmp_path / "last", resumed, IDENTITY) == {"best": 1.5}
    assert resumed.step == 5
    list(train(recipe, resumed, random_batches(8, start=5), device=CPU))
    assert_same(whole, resumed)


def test_a_checkpoint_before_the_first_step_loads(tmp_path):
    checkpoint.save(tmp_path / "last", small_state(small()), IDENTITY, {})
    loaded = small_state(small())
    checkpoint.load(tmp_path / "last", loaded, IDENTITY)
    assert_same(small_state(small()), loaded)


def test_another_runs_checkpoint_is_refused_with_the_difference(tmp_path):
    checkpoint.save(tmp_path / "last", small_state(small()), IDENTITY, {})
    with pytest.raises(UserError, match=r"another run \(optimizer\.lr is 0\.1 there and 0\.2 here\)"):
        checkpoint.load(tmp_path / "last", small_state(small()), {"optimizer": {"lr": 0.2}, "seed": 0})


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    state = small_state(small())
    checkpoint.save(tmp_path / "last", state, IDENTITY, {"number": 1})

    rename = Path.rename

    def die(path, target):
        if path.name == ".last.new":
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last", state, IDENTITY, {"number": 2})
    monkeypatch.undo()
    found = checkpoint.find(tmp_path / "last")
    assert found is not None
    assert checkpoint.load(found, state, IDENTITY) == {"number": 1}
    checkpoint.save(tmp_path / "last", state, IDENTITY, {"number": 3})
    assert checkpoint.load(tmp_path / "last", state, IDENTITY) == {"number": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_what_was_not_finished_is_not_found(tmp_path):
    (tmp_path / ".last.new").mkdir()
    assert checkpoint.find(tmp_path / "last") is None


def test_sigkill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """A child saves without end, each time with all weights set to the number of the save, and is killed."""
    state = small_state(small())
    numbers = []
    for wait in (0.0, 0.013, 0.031):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                state.step += 1
                for parameter in [*state.network.parameters(), *state.ema.parameters()]:
                    parameter.data.fill_(float(state.step))
                checkpoint.save(tmp_path / "last", state, IDENTITY, {})
                os.write(tell, b".")
        for _ in range(3):
            os.read(told, 1)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        found, loaded = checkpoint.find(tmp_path / "last"), small_state(small())
        assert found is not None
        checkpoint.load(found, loaded, IDENTITY)
        tensors = [*loaded.network.parameters(), *loaded.ema.parameters()]
        assert all((tensor == loaded.step).all() for tensor in tensors)
        numbers.append(loaded.step)
        state.step = loaded.step
    assert 0 < numbers[0] < numbers[1] < numbers[2]
