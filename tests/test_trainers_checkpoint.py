import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.training import checkpoint
from scrimp_trainers.training.loop import train

IDENTITY = {"optimizer": {"lr": 0.1}, "seed": 0}


def save(folder, state, identity, extra, previous=None):
    checkpoint.write(folder, checkpoint.copy_content(state, identity, extra), previous)


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
    save(tmp_path / "last", whole, IDENTITY, {"best": 1.5})
    list(steps)

    resumed = small_state(recipe, number=0)
    assert checkpoint.load(tmp_path / "last", resumed, IDENTITY) == {"best": 1.5}
    assert resumed.step == 5
    list(train(recipe, resumed, random_batches(8, start=5), device=CPU))
    assert_same(whole, resumed)


def test_a_checkpoint_before_the_first_step_loads(tmp_path):
    save(tmp_path / "last", small_state(small()), IDENTITY, {})
    loaded = small_state(small())
    checkpoint.load(tmp_path / "last", loaded, IDENTITY)
    assert_same(small_state(small()), loaded)


def test_another_runs_checkpoint_is_refused_with_the_difference(tmp_path):
    save(tmp_path / "last", small_state(small()), IDENTITY, {})
    with pytest.raises(UserError, match=r"another run \(optimizer\.lr is 0\.1 there and 0\.2 here\)"):
        checkpoint.load(tmp_path / "last", small_state(small()), {"optimizer": {"lr": 0.2}, "seed": 0})


def test_a_checkpoint_older_than_a_field_loads_if_the_field_has_its_default(tmp_path):
    save(tmp_path / "last", small_state(small()), IDENTITY, {})
    now = {**IDENTITY, "mixup": {"alpha": 0.0}}
    assert checkpoint.load(tmp_path / "last", small_state(small()), now, {"mixup.alpha"}) == {}
    with pytest.raises(UserError, match=r"mixup\.alpha is None there and 0\.0 here"):
        checkpoint.load(tmp_path / "last", small_state(small()), now)
    with pytest.raises(UserError, match=r"optimizer\.lr is 0\.1 there and 0\.2 here"):  # a default that has changed
        checkpoint.load(tmp_path / "last", small_state(small()), {**now, "optimizer": {"lr": 0.2}}, {"optimizer.lr"})


FILES = ["SHA256SUMS", "state.json", "network.safetensors", "ema.safetensors", "optimizer.safetensors"]


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


@pytest.fixture
def two_checkpoints(tmp_path):
    """A last checkpoint of step 3 and a best one of step 2."""
    recipe = small(training__kimg=0.08)
    state = small_state(recipe)
    steps = train(recipe, state, random_batches(8), device=CPU)
    next(steps)
    next(steps)
    save(tmp_path / "best", state, IDENTITY, {"from": "best"})
    next(steps)
    save(tmp_path / "last", state, IDENTITY, {"from": "last"})
    return [tmp_path / "last", tmp_path / "best"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_a_checkpoint_with_a_damaged_file_gives_way_to_the_one_before(two_checkpoints, file, damage):
    last, best = two_checkpoints
    damage(last / file)
    state = small_state(small())
    saved, note = checkpoint.restore([last, best], state, IDENTITY)
    assert saved == {"from": "best"}
    assert state.step == 2
    assert file in note or file == "SHA256SUMS"
    assert note.startswith(f"{last}: damaged")
    assert note.endswith(f"training resumes from {best} at 0.016 kimg")

    damage(best / file)
    state = small_state(small())
    saved, note = checkpoint.restore([last, best], state, IDENTITY)
    assert saved is None
    assert note.endswith("; training starts again")
    assert_same(state, small_state(small()))


def test_a_sound_checkpoint_says_nothing(two_checkpoints):
    assert checkpoint.restore(two_checkpoints, small_state(small()), IDENTITY) == ({"from": "last"}, "")


def test_the_checksums_are_those_of_sha256sum(two_checkpoints):
    answer = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=two_checkpoints[0])
    assert answer.returncode == 0


@pytest.mark.parametrize("kept", [None, "previous"])
def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch, kept):
    state, previous = small_state(small()), kept and tmp_path / kept
    save(tmp_path / "last", state, IDENTITY, {"number": 1}, previous)

    rename = Path.rename

    def die(path, target):
        if path.name == ".last.new":
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "last", state, IDENTITY, {"number": 2}, previous)
    monkeypatch.undo()
    assert checkpoint.restore([tmp_path / "last", tmp_path / "previous"], state, IDENTITY) == ({"number": 1}, "")
    save(tmp_path / "last", state, IDENTITY, {"number": 3}, previous)
    assert checkpoint.load(tmp_path / "last", state, IDENTITY) == {"number": 3}
    assert {path.name for path in tmp_path.iterdir()} == {"last"} | ({kept} if kept else set())


def test_what_was_not_finished_is_not_found(tmp_path):
    (tmp_path / ".last.new").mkdir()
    assert checkpoint.restore([tmp_path / "last"], small_state(small()), IDENTITY) == (None, "")


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
                save(tmp_path / "last", state, IDENTITY, {})
                os.write(tell, b".")
        for _ in range(3):
            os.read(told, 1)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        loaded = small_state(small())
        assert checkpoint.restore([tmp_path / "last"], loaded, IDENTITY) == ({}, "")
        tensors = [*loaded.network.parameters(), *loaded.ema.parameters()]
        assert all((tensor == loaded.step).all() for tensor in tensors)
        numbers.append(loaded.step)
        state.step = loaded.step
    assert 0 < numbers[0] < numbers[1] < numbers[2]
