"""A repeat on a disk that is full or read-only: real file systems, filled to the last page."""

import warnings

import pytest
import torch
from test_trainers_run import tensors, timeless
from trainers_small import small, small_state

from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import DiskFull
from scrimp_trainers.common.files import is_disk_full, try_lock, write_atomic
from scrimp_trainers.recipe.recipe import load
from scrimp_trainers.run import train_repeat
from scrimp_trainers.training import checkpoint, checkpoint_writer, session

RECIPE = small(training__batch_size=32, training__kimg=0.512, sampler__steps=1)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(session, "CHECK_INTERVAL_STEPS", 4)
    monkeypatch.setattr(session, "CHECK_INTERVAL_IMAGES", 4)
    monkeypatch.setattr(checkpoint_writer, "COST_FACTOR", 0)


def train(dataset, folder, checkpoint_seconds=0.0):
    return train_repeat(RECIPE, dataset, folder, 7, rungs_kimg=[0.256], checkpoint_seconds=checkpoint_seconds)


@pytest.fixture(scope="module")
def whole(digits_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, list(train(digits_dataset, folder))


def is_no_room(error: BaseException) -> bool:
    return isinstance(error, DiskFull) or is_disk_full(error)


@pytest.mark.parametrize(
    ("often", "spare"),
    [(True, 0), (True, 300_000), (True, 700_000), (False, 0), (False, 12_288), (False, 20_480)],
)
def test_a_full_disk_ends_a_repeat_which_then_goes_on_as_if_nothing_had_been(
    digits_dataset, small_disk, whole, often, spare
):
    """Full after the first rung but for so many bytes: what fails is a file of a checkpoint, a picture or a line."""
    folder = small_disk.path / "repeat"
    going = train(digits_dataset, folder, 0 if often else 1e9)
    next(going)
    small_disk.fill(spare)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        list(going)
    assert is_no_room(caught.value), caught.value
    with pytest.raises(Exception) as caught:  # noqa: PT011
        list(train(digits_dataset, folder))
    assert is_no_room(caught.value), caught.value

    assert load(folder / "recipe.yaml") == RECIPE
    assert not (folder / "model").exists()
    assert not list(folder.rglob(".*.new"))
    small_disk.free()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no checkpoint was damaged
        list(train(digits_dataset, folder))
    assert timeless(metrics_log.read_rows(folder / "metrics.jsonl")) == timeless(whole[1])
    one, other = tensors(whole[0]), tensors(folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_read_only_disk_ends_a_repeat_which_then_goes_on(digits_dataset, small_disk, whole):
    folder = small_disk.path / "repeat"
    going = train(digits_dataset, folder)
    next(going)
    small_disk.lock()
    with pytest.raises(OSError, match="Read-only file system"):
        list(going)
    small_disk.lock(False)
    list(train(digits_dataset, folder))
    assert timeless(metrics_log.read_rows(folder / "metrics.jsonl")) == timeless(whole[1])


def test_a_checkpoint_that_does_not_fit_takes_no_room_from_the_one_before(small_disk):
    folder, state = small_disk.path / "last", small_state(small())
    checkpoint.write(folder, checkpoint.copy_content(state, {}, {"number": 1}))
    small_disk.fill(spare=8192)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        checkpoint.write(folder, checkpoint.copy_content(state, {}, {"number": 2}))
    assert is_no_room(caught.value)
    assert [path.name for path in small_disk.path.iterdir() if path.is_dir()] == ["last"]
    assert checkpoint.restore([folder], small_state(small()), {}) == ({"number": 1}, "")


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(small_disk):
    write_atomic(small_disk.path / "file", "old")
    small_disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write_atomic(small_disk.path / "file", "new" * 5000)
    assert (small_disk.path / "file").read_text() == "old"
    assert sorted(path.name for path in small_disk.path.iterdir()) == [".ballast", "file"]


def test_a_lock_excludes_the_others_and_a_shared_one_only_exclusive_ones(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second, path.open() as third:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        assert not try_lock(third)
        first.close()
        assert not try_lock(third)
        second.close()
        assert try_lock(third)
