"""Batches: every image once an epoch, over any number of ranks, the same after a resume, on the device or streamed."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp_trainers.common.errors import DamagedData, UserError
from scrimp_trainers.data import shards
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.loading import RESIDENT, batches
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.streaming import epoch_range, images_read
from scrimp_trainers.ingest import prepare

COUNTS = (13, 24, 30)
SHARDED = {13: 5, 24: 24, 30: 1}
"""Images of a dataset, and how many its shards hold: three shards of unequal size, one shard, and thirty."""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Dataset]:
    folder = tmp_path_factory.mktemp("loading")
    with pytest.MonkeyPatch.context() as patch:
        for count, most in SHARDED.items():
            patch.setattr(shards, "MOST_IMAGES", most)
            prepare("digits", folder / str(count), Options(limit=count, holdout=0, classifier=False))
    return {count: open_dataset(folder / str(count)) for count in SHARDED}


def draw(dataset: Dataset, steps: int, **options: Any) -> list[Batch]:
    options = {"batch_size": 6, "seed": 0, "device": "cpu", "workers": 0, **options}
    return list(itertools.islice(batches(dataset, **options), steps))


def indices(drawn: list[Batch]) -> list[int]:
    return torch.cat([batch.index for batch in drawn]).tolist()


def assert_same(batch: Batch, other: Batch) -> None:
    for name in ("values", "labels", "index", "flipped"):
        torch.testing.assert_close(getattr(batch, name), getattr(other, name), rtol=0, atol=0)


# --- both ways


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0], ids=["resident", "streamed"])
def test_batches_hold_the_images_they_say(resident_bytes: int, datasets: dict[int, Dataset]):
    images, labels, _ = datasets[13].images("train")
    assert labels is not None
    for batch in draw(datasets[13], 10, resident_bytes=resident_bytes, flip=True):
        expected = images[batch.index.numpy()]
        mirrored = batch.flipped.numpy()
        expected[mirrored] = expected[mirrored, :, :, ::-1]
        assert batch.values.dtype == torch.uint8
        np.testing.assert_array_equal(batch.values.numpy(), expected)
        np.testing.assert_array_equal(batch.labels, labels[batch.index.numpy()])


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0], ids=["resident", "streamed"])
def test_half_of_the_images_are_mirrored_if_asked_and_none_otherwise(resident_bytes: int, datasets: dict[int, Dataset]):
    flipped = torch.cat([batch.flipped for batch in draw(datasets[30], 400, resident_bytes=resident_bytes, flip=True)])
    assert 0.45 < flipped.double().mean() < 0.55  # five standard deviations
    assert not any(batch.flipped.any() for batch in draw(datasets[30], 20, resident_bytes=resident_bytes))


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0], ids=["resident", "streamed"])
def test_another_seed_gives_another_order(resident_bytes: int, datasets: dict[int, Dataset]):
    first, second = (indices(draw(datasets[30], 5, resident_bytes=resident_bytes, seed=seed)) for seed in (1, 2))
    assert first != second
    assert first == indices(draw(datasets[30], 5, resident_bytes=resident_bytes, seed=1))


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0], ids=["resident", "streamed"])
def test_the_global_random_state_is_left_alone(resident_bytes: int, datasets: dict[int, Dataset]):
    before = torch.get_rng_state()
    draw(datasets[30], 5, resident_bytes=resident_bytes, flip=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_without_classes_have_no_labels(tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), dtype=np.uint8))
    prepare(str(tmp_path / "x.npz"), tmp_path / "out", Options(holdout=0))
    for resident_bytes in (RESIDENT, 0):
        assert draw(open_dataset(tmp_path / "out"), 1, resident_bytes=resident_bytes)[0].labels is None


def test_a_batch_that_cannot_be_shared_out_is_refused(datasets: dict[int, Dataset]):
    with pytest.raises(UserError, match=r"batch_size: 6 cannot be split evenly over 4 devices"):
        draw(datasets[13], 1, world=4)


# --- resident


@given(st.sampled_from(COUNTS), st.integers(1, 40), st.integers(1, 4), st.integers(0, 99), st.booleans())
@settings(max_examples=40)
def test_every_epoch_has_every_image_once_whatever_the_ranks(
    datasets: dict[int, Dataset], count: int, size: int, world: int, seed: int, flip: bool
):
    steps = -(-3 * count // (size * world))
    options = {"batch_size": size * world, "seed": seed, "flip": flip}
    alone = draw(datasets[count], steps, **options)
    ranks = [draw(datasets[count], steps, **options, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(alone):
        joined = [torch.cat([getattr(ranks[r][step], name) for r in range(world)]) for name in ("values", "index")]
        assert torch.equal(joined[0], whole.values)
        assert torch.equal(joined[1], whole.index)
    sequence = indices(alone)
    for epoch in range(3):
        assert sorted(sequence[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.sampled_from(COUNTS), st.integers(1, 40), st.integers(0, 30), st.integers(0, 1))
@settings(max_examples=40)
def test_a_start_is_the_same_as_drawing_the_steps_before(
    datasets: dict[int, Dataset], count: int, size: int, start: int, rank: int
):
    options = {"batch_size": 2 * size, "flip": True, "rank": rank, "world": 2}
    for batch, other in zip(
        draw(datasets[count], start + 4, **options)[start:],
        draw(datasets[count], 4, **options, start=start),
        strict=True,
    ):
        assert_same(batch, other)


def test_epochs_have_orders_and_mirrorings_of_their_own(datasets: dict[int, Dataset]):
    first, second = draw(datasets[24], 2, batch_size=24, flip=True)
    assert first.index.tolist() != second.index.tolist()
    assert first.flipped[first.index.argsort()].tolist() != second.flipped[second.index.argsort()].tolist()


# --- streamed


@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 50))
def test_consumers_cut_every_epoch_into_equal_parts_and_keep_in_step(count: int, consumers: int, epochs: int):
    for epoch in (epochs, epochs + 1):
        extents = [epoch_range(count, consumer, consumers, epoch) for consumer in range(consumers)]
        assert [number for first, last in extents for number in range(first, last)] == list(range(count))
        assert {last - first for first, last in extents} <= {count // consumers, -(-count // consumers)}
    for consumer in range(consumers):
        lengths = [last - first for first, last in (epoch_range(count, consumer, consumers, e) for e in range(epochs))]
        assert images_read(count, consumer, consumers, epochs) == sum(lengths)
        assert abs(sum(lengths) - epochs * count / consumers) < 1


@given(st.sampled_from(COUNTS), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=25)
def test_a_stream_has_every_image_once_an_epoch_over_all_ranks(
    datasets: dict[int, Dataset], count: int, world: int, size: int, seed: int
):
    epochs = world * size  # after so many, every rank has drawn whole batches
    steps = epochs * count // (world * size)
    drawn = [
        indices(
            draw(datasets[count], steps, resident_bytes=0, batch_size=size * world, seed=seed, rank=rank, world=world)
        )
        for rank in range(world)
    ]
    assert Counter(itertools.chain(*drawn)) == dict.fromkeys(range(count), epochs)
    for epoch in range(epochs):
        one = [
            part[images_read(count, rank, world, epoch) : images_read(count, rank, world, epoch + 1)]
            for rank, part in enumerate(drawn)
        ]
        assert sorted(itertools.chain(*one)) == list(range(count))


@given(st.sampled_from(COUNTS), st.integers(1, 8), st.integers(0, 40), st.integers(0, 1))
@settings(max_examples=25)
def test_a_stream_starts_where_it_was_left(datasets: dict[int, Dataset], count: int, size: int, start: int, rank: int):
    options = {"resident_bytes": 0, "batch_size": 2 * size, "flip": True, "rank": rank, "world": 2}
    for batch, other in zip(
        draw(datasets[count], start + 3, **options)[start:],
        draw(datasets[count], 3, **options, start=start),
        strict=True,
    ):
        assert_same(batch, other)


@pytest.mark.parametrize("start", [0, 1, 7])
def test_loader_processes_share_the_work_and_resume_exactly(start: int, datasets: dict[int, Dataset]):
    options = {"resident_bytes": 0, "batch_size": 4, "world": 2, "workers": 2, "flip": True}
    both = [draw(datasets[30], 30, **options, rank=rank) for rank in range(2)]  # 4 epochs; 15 batches a process
    assert Counter(indices(both[0] + both[1])) == dict.fromkeys(range(30), 4)
    for batch, other in zip(both[1][start:], draw(datasets[30], 5, **options, rank=1, start=start), strict=False):
        assert_same(batch, other)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_shard_ends_the_stream_with_one_line(tmp_path: Path, damage: str):
    prepare("digits", tmp_path / "out", Options(limit=50, holdout=0, classifier=False))
    file = tmp_path / "out" / "train-000000.tar"
    content = bytearray(file.read_bytes())
    content[512] ^= 1  # the first image's class
    file.write_bytes(content[:20_000] if damage == "cut" else content)
    if damage == "missing":
        file.unlink()
    for workers in (0, 1):
        with pytest.raises(DamagedData, match=r"^\S*train-000000\.tar: is missing or damaged[^\n]*$"):
            draw(open_dataset(tmp_path / "out"), 20, resident_bytes=0, workers=workers)


@pytest.mark.gpu
def test_resident_batches_never_wait_for_the_device(digits_dataset: Dataset):
    source = batches(digits_dataset, batch_size=256, seed=0, device="cuda", flip=True)
    next(source)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = list(itertools.islice(source, 20))  # three epochs
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, other in zip(drawn, draw(digits_dataset, 20, batch_size=256, flip=True, start=1), strict=True):
        assert_same(Batch(**{name: value.cpu() for name, value in vars(batch).items()}), other)
