import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scrimp_trainers import sampling
from scrimp_trainers.metrics import memorisation


def noise(count: int, seed: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def brute_force_ratio(images: Tensor, training: Tensor) -> Tensor:
    pixels, others = images.flatten(1).double(), training.flatten(1).double()
    nearest = (pixels[:, None] - others[None]).square().sum(dim=2).sqrt().sort(dim=1).values
    return nearest[:, 0] / nearest[:, 1]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9), training=st.integers(2, 40), chunk=st.integers(1, 5000))
def test_pixel_ratio_is_the_ratio_of_the_two_smallest_distances(seed: int, count: int, training: int, chunk: int):
    images, known = noise(count, seed, size=2), noise(training, seed + 1, size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorisation, "CHUNK", chunk)
        torch.testing.assert_close(memorisation.pixel_ratio(images, known), brute_force_ratio(images, known))


def test_a_copy_has_ratio_zero_and_a_slightly_changed_copy_a_small_one():
    training = noise(50, 0)
    changed = training[3].clone()
    changed[0, 0, 0] ^= 1
    ratio = memorisation.pixel_ratio(torch.stack([training[7], changed, noise(1, 1)[0]]), training)
    assert ratio[0] == 0
    assert 0 < ratio[1] < 0.01
    assert ratio[2] > 0.8


def test_tiny_distances_survive_reduced_precision():
    """A copy is told from its near-duplicate although single precision of the products cannot see the difference."""
    base = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    near, far = base.clone(), noise(1, 3, size=64)
    near[0, 0, 0, 0] = 254
    ratio = memorisation.pixel_ratio(base, torch.cat([far, near, base]))
    assert ratio.item() == 0


def test_duplicates_in_the_training_set_count_as_one_image():
    training = noise(5, 4)
    repeated = training[[0, 1, 0, 2, 2, 3, 4, 0]]
    kept = memorisation.distinct(repeated.numpy())
    assert kept.tolist() == [0, 1, 3, 5, 6]
    assert memorisation.pixel_ratio(training[:1], repeated[kept])[0] == 0


@pytest.mark.parametrize("chunk", [2**26, 60])
def test_the_most_similar_is_found_by_direction_whatever_the_length(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memorisation, "CHUNK", chunk)
    training = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    similarity, position = memorisation.nearest(training[order] * 7, training)
    assert position.tolist() == order.tolist()
    torch.testing.assert_close(similarity, torch.ones(20))


@pytest.mark.parametrize("chunk", [2**26, 60])
def test_without_a_training_set_each_is_compared_with_all_others(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memorisation, "CHUNK", chunk)
    features = torch.randn(15, 4, generator=torch.Generator().manual_seed(2))
    unit = features / features.norm(dim=1, keepdim=True)
    expected = (unit @ unit.T - 3 * torch.eye(15)).max(dim=1)
    similarity, position = memorisation.nearest(features)
    torch.testing.assert_close(similarity, expected.values)
    assert position.tolist() == expected.indices.tolist()


def test_one_in_a_hundred_images_that_were_not_copied_lies_above_the_calibrated_threshold():
    similarity = torch.linspace(0, 1, 10_001)[torch.randperm(10_001)]
    threshold = memorisation.calibrate(similarity)
    assert threshold == pytest.approx(0.99)
    scores = memorisation.summary(similarity, similarity, threshold, "inception", "_holdout")
    assert scores["memorized_fraction_holdout"] == pytest.approx(0.01, abs=2e-4)
    assert scores["similarity_mean_holdout"] == pytest.approx(0.5)
    assert scores["pixel_copied_fraction_holdout"] == pytest.approx(1 / 3, abs=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_each_sample_left_of_its_neighbour(channels: int):
    samples = torch.stack([torch.full((channels, 8, 8), 10 * number) for number in range(5)]).to(torch.uint8)
    grid = np.asarray(sampling.neighbour_grid(samples, samples + 100))
    assert grid.shape[:2] == (2 * 34 + 2, 8 * 34 + 2)  # four screen pixels a pixel, gaps of two; four pairs in a row
    left, right = grid[2 + 16, 2 + 2 * 34 + 16], grid[2 + 16, 2 + 3 * 34 + 16]  # the second pair
    assert np.all(left == 10)
    assert np.all(right == 110)
