from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scrimp_platform.report import dataset as words
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import duplicates
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.duplicates import Duplicates, find_duplicates
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.subsets import choose_subsets
from scrimp_trainers.ingest import prepare


def linked(near: np.ndarray) -> np.ndarray:
    """Reachability in the graph of near pairs, by repeated squaring."""
    reach = near
    for _ in range(len(near)):
        reach = reach @ reach
    return reach


@st.composite
def pictures(draw: Callable) -> np.ndarray:
    """Images that are small changes of a few, so that many pairs are near the limit."""
    side, channels = draw(st.sampled_from([(1, 1), (3, 1), (5, 3), (8, 1), (17, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bases = rng.integers(0, 256, (draw(st.integers(1, 4)), side, side, channels))
    chosen = bases[rng.integers(0, len(bases), draw(st.integers(1, 25)))]
    change = rng.integers(0, draw(st.integers(1, 30)), len(chosen))[:, None, None, None]
    return (chosen + rng.choice([-1, 1], chosen.shape) * change).clip(0, 255).astype(np.uint8)


@given(pictures(), st.sampled_from([0.0, 1.0, 8.0, 20.5]), st.integers(0, 2**32))
def test_duplicates_are_those_of_a_comparison_of_all_pairs(images: np.ndarray, near: float, seed: int):
    test = np.random.default_rng(seed).random(len(images)) < 0.3
    difference = np.abs(images[:, None].astype(int) - images[None].astype(int)).mean(axis=(2, 3, 4))
    pairs = difference <= near

    answer = find_duplicates(images, near, test)

    np.testing.assert_array_equal(answer.group[:, None] == answer.group[None], linked(pairs))
    np.testing.assert_array_equal(answer.beside_test, pairs[:, test].any(axis=1) & ~test)
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    assert answer.equal == len(images) - distinct
    assert answer.near == distinct - len(np.unique(answer.group))


def test_the_search_does_not_depend_on_how_much_is_compared_at_once(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 200, (20, 8, 8))[rng.integers(0, 20, 200)] + rng.integers(0, 24, (200, 8, 8))).astype(
        "u1"
    )
    test = rng.random(200) < 0.2
    whole = find_duplicates(images, 8, test)
    assert 20 <= len(np.unique(whole.group)) < 200
    monkeypatch.setattr(duplicates, "ROWS", 7)
    monkeypatch.setattr(duplicates, "COLUMNS", 11)
    monkeypatch.setattr(duplicates, "PAIRS", 5)
    monkeypatch.setattr(duplicates, "CHUNK_BYTES", 1000)
    parts = find_duplicates(images, 8, test)
    np.testing.assert_array_equal(parts.beside_test, whole.beside_test)
    same = whole.group[:, None] == whole.group[None]
    np.testing.assert_array_equal(parts.group[:, None] == parts.group[None], same)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80),
    st.integers(0, 2**31),
    st.integers(0, 40),
)
def test_groups_stay_whole_and_the_shares_are_met_as_nearly_as_they_allow(
    images: list[tuple[int, int]], seed: int, number: int
):
    labels, group = np.array(images).T
    number = min(number, len(labels) - 1)
    repeats = Duplicates(group, np.zeros(len(labels), dtype=bool), 0, 0)
    if len(np.unique(group)) == 1 and number:
        with pytest.raises(UserError, match="repeat each other"):
            choose_subsets(len(labels), labels, None, seed=seed, holdout=number, duplicates=repeats)
        return
    train, held = choose_subsets(len(labels), labels, None, seed=seed, holdout=number, duplicates=repeats)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert not set(group[train]) & set(group[held])
    assert bool(len(held)) == bool(number)
    assert abs(len(held) - number) <= np.bincount(group).max() * len(set(labels))


def test_a_class_gives_its_share_from_its_single_images_where_groups_are_large():
    labels = np.repeat([0, 1], 100)
    group = np.arange(200)
    group[:90] = 0  # one chain of 90 images of the first class
    _, held = choose_subsets(
        200, labels, None, seed=0, holdout=20, duplicates=Duplicates(group, np.zeros(200, dtype=bool), 0, 89)
    )
    assert np.bincount(labels[held]).tolist() == [10, 10]
    assert set(held[labels[held] == 0]) == set(range(90, 100))


def test_training_images_that_repeat_a_test_image_are_left_out():
    test = np.arange(10) >= 7
    beside = np.arange(10) == 3
    train, held = choose_subsets(
        10, None, test, seed=0, duplicates=Duplicates(np.array([*range(9), 3]), beside, equal=1, near=0)
    )
    assert sorted(train) == [0, 1, 2, 4, 5, 6]
    assert sorted(held) == [7, 8, 9]


def test_images_that_all_repeat_each_other_cannot_be_held_out():
    same = Duplicates(np.zeros(20, dtype=np.int64), np.zeros(20, dtype=bool), 0, 19)
    train, held = choose_subsets(20, None, None, seed=0, duplicates=same)
    assert (len(train), len(held)) == (20, 0)
    with pytest.raises(UserError, match="--near 0"):
        choose_subsets(20, None, None, seed=0, holdout=2, duplicates=same)


@pytest.mark.parametrize("copies", [False, True])
def test_copies_in_the_source_do_not_hide_memorisation(copies: bool, tmp_path: Path):
    import torch
    from sklearn.datasets import load_digits

    from scrimp_trainers.metrics.score import Scorer
    from scrimp_trainers.recipe.scoring import Scoring

    digits: Any = load_digits()
    images, labels = (digits.images[:600] * 255 / 16).astype(np.uint8), digits.target[:600]
    if copies:
        images, labels = np.concatenate([images, images[::6]]), np.concatenate([labels, labels[::6]])
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    prepare(str(tmp_path / "digits.npz"), tmp_path / "out", Options())

    dataset = open_dataset(tmp_path / "out")
    rng = np.random.default_rng(0)
    training = dataset.images("train")[0]
    near = training[rng.permutation(len(training))[:200]] + rng.integers(-8, 9, (200, 1, 8, 8))
    samples = np.concatenate([near.clip(0, 255), rng.integers(0, 256, (200, 1, 8, 8))]).astype(np.uint8)
    values = Scorer(dataset, Scoring(extractor="classifier"), "cpu").score([torch.from_numpy(samples)]).values

    # With copies among the held-out images the threshold is 1, and the fraction 0.
    assert float(values["similarity_threshold"]) < 0.9999
    assert values["memorized_fraction"] == pytest.approx(0.475, abs=0.05)
    assert dataset.manifest.summary.equal == (100 if copies else 0)


def test_a_large_group_of_near_images_is_pointed_out(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    drawing = np.full((16, 16), 255, dtype=np.uint8)
    for i in range(60):
        image = drawing.copy()
        image[rng.integers(16), rng.integers(16)] = 0  # one dark pixel of 256: a mean difference of 2
        Image.fromarray(image).save(folder / f"{i}.png")
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"noise{i}.png")
    manifest = prepare(str(folder), tmp_path / "near", Options())
    assert manifest.summary.largest_group == 60
    assert any(line.startswith("WARNING: 60 images are linked") for line in words.summary_lines(manifest))
    apart = prepare(str(folder), tmp_path / "apart", Options(near=0.5))
    assert not any(line.startswith("WARNING") for line in words.summary_lines(apart))
