"""MAFP: what is done to an image is what its labels say, as often as the recipe says, alike on any number of ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.diffusion import edm
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.diffusion import EDM
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.techniques import MAFP
from scrimp_trainers.techniques import mafp

TRIGGERS = ["per_sample", "per_batch", "batch_all_zero"]


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def augmented(recipe: MAFP, images: torch.Tensor, number: int = 0, mine: slice | None = None):
    share = images if mine is None else images[mine]
    return mafp.augment(recipe, share, seeded(number), global_batch=len(images), rank_slice=mine or slice(None))


def labelled(**values: float) -> torch.Tensor:
    names = ["x_flip", "y_flip", "scale", "cosine", "sine", "along", "across", "right", "down"]
    return torch.tensor([[values.get(name, 0.0) for name in names]])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 32, 32, generator=seeded(7)) * 2 - 1


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_at_probability_zero_the_very_images_come_back(images, trigger):
    result, labels = augmented(MAFP(trigger=trigger), images)
    assert result is images
    assert labels is None


def test_an_image_to_which_nothing_was_done_is_as_it_was_and_says_so(images):
    many = images.repeat(8, 1, 1, 1)
    result, labels = augmented(MAFP(p1=0.05), many)
    assert labels is not None
    untouched = (labels == 0).all(1)
    assert 0.3 < untouched.float().mean() < 0.5  # no horizontal flip and nothing else, 0.5 * 0.975 * 0.95**4
    torch.testing.assert_close(result[untouched], many[untouched], rtol=0, atol=1e-4)
    assert (result[~untouched] - many[~untouched]).abs().amax((1, 2, 3)).min() > 0.1


def test_each_label_does_what_it_says(images):
    def done(**values: float) -> torch.Tensor:
        return mafp.transform(images, labelled(**values).expand(len(images), -1))

    near = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(done(x_flip=1), images.flip(3), **near)
    torch.testing.assert_close(done(y_flip=1), images.flip(2), **near)
    torch.testing.assert_close(done(cosine=-1, sine=1), images.rot90(1, (2, 3)), **near)
    torch.testing.assert_close(done(cosine=-2), images.flip(2, 3), **near)
    torch.testing.assert_close(done(right=1)[..., 4:], images[..., :-4], **near)
    torch.testing.assert_close(done(down=-0.5)[..., :-2, :], images[..., 2:, :], **near)
    torch.testing.assert_close(done(right=1)[..., :4], images[..., 1:5].flip(3), **near)  # mirrored, not black
    # What is three times as large shows its middle third, every third pixel of it an old one.
    centre = images[..., 1:, 1:]
    thrice = math.log2(3) / mafp.LOG2_STD
    large = mafp.transform(centre, labelled(scale=thrice).expand(len(images), -1))
    torch.testing.assert_close(large[..., ::3, ::3], centre[..., 10:21, 10:21], **near)
    wide = mafp.transform(centre, labelled(along=thrice).expand(len(images), -1))
    torch.testing.assert_close(wide[..., 11:20, ::3], centre[..., 3:28:3, 10:21], **near)
    tall = mafp.transform(centre, labelled(along=-thrice).expand(len(images), -1))
    torch.testing.assert_close(tall[..., ::3, 11:20], centre[..., 10:21, 3:28:3], **near)


def rebuilt(label: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a label as the matrix and the translation, in pixels to the right and up, that it tells of."""
    x_flip, y_flip, scale, cosine, sine, along, across, right, down = label
    size, axis = math.copysign(math.hypot(along, across), along), math.atan2(across, along) % math.pi

    def turn(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    stretch = turn(axis) @ np.diag([2 ** (0.2 * size), 2 ** (-0.2 * size)]) @ turn(-axis)
    flip = np.diag([1 - 2 * x_flip, 1 - 2 * y_flip])
    matrix = stretch @ turn(math.atan2(sine, cosine + 1)) * 2 ** (0.2 * scale) @ flip
    return matrix, np.array([right, -down]) * 0.125 * side


def test_the_labels_tell_the_whole_transformation():
    """A smooth picture is known everywhere, so it can be drawn transformed and compared."""
    side = 32
    middle = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side]
    places = np.stack([columns - middle, middle - rows], axis=-1)  # x to the right, y up

    def picture(xy: np.ndarray) -> np.ndarray:
        return np.sin(xy[..., 0] / 6 + 0.4) * np.cos(xy[..., 1] / 8 - 0.9) + 0.02 * xy[..., 0]

    original = torch.from_numpy(picture(places))[None, None].float().repeat(200, 1, 1, 1)
    result, labels = augmented(MAFP(p1=0.7), original)
    assert labels is not None
    for image, label in zip(result[:, 0].numpy(), labels.double().numpy(), strict=True):
        matrix, moved = rebuilt(label, side)
        sources = (places - moved) @ np.linalg.inv(matrix).T
        inside = (abs(sources) < middle - 2).all(-1)
        assert inside.sum() > 20
        np.testing.assert_allclose(image[inside], picture(sources)[inside], atol=0.01)


def test_everything_is_drawn_as_often_and_as_far_as_in_edm():
    p, count = 0.3, 60_000
    labels = mafp.draw_labels(p, count, seeded()).numpy().astype(float)
    x_flip, y_flip, scale, cosine, sine, along, across, right, down = labels.T
    for fired, chance in [
        (x_flip, 0.5),
        (y_flip, p / 2),
        (scale, p),
        (sine, p),
        (along, p),
        (across, p / 2),
        (right, p),
        (down, p),
    ]:
        assert (fired != 0).mean() == pytest.approx(chance, abs=0.01)
    assert set(x_flip) == set(y_flip) == {0, 1}
    assert ((right != 0) == (down != 0)).all()
    turned = sine != 0
    uniform = stats.uniform(-math.pi, 2 * math.pi)
    assert stats.kstest(np.arctan2(sine, cosine + 1)[turned], uniform.cdf).pvalue > 1e-3
    slanted = across != 0
    assert stats.kstest(np.arctan2(across, along)[slanted], uniform.cdf).pvalue > 1e-3
    stretch = np.copysign(np.hypot(along, across), along)[along != 0]
    for drawn in (scale[scale != 0], stretch, right[right != 0], down[down != 0]):
        assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-3


@settings(max_examples=30)
@given(data=st.data(), side=st.integers(2, 16))
def test_a_translation_moves_whole_pixels_and_lets_zeros_in(data, side):
    reach = side // 2
    one = st.integers(-reach, reach)
    right, down = data.draw(one), data.draw(one)
    image = torch.randn(2, side, side)
    expected = torch.zeros_like(image)
    for y in range(side):
        for x in range(side):
            if 0 <= y + down < side and 0 <= x + right < side:
                expected[:, y + down, x + right] = image[:, y, x]
    shifts = torch.tensor([[0, right], [0, down]])
    still, moved = mafp.translate(image.repeat(2, 1, 1, 1), shifts, reach)
    assert torch.equal(still, image)
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (28, 4), (32, 4), (64, 8)])
def test_translations_are_uniform_up_to_an_eighth_and_have_no_label(side, reach):
    dots = torch.zeros(3000, 1, side, side)
    dots[:, :, side // 2, side // 2] = 1
    result, labels = augmented(MAFP(p2=1.0), dots)
    assert labels is None
    for axis in (2, 3):
        shifts = result.sum(5 - axis).argmax(2)[:, 0] - side // 2
        assert shifts.min() == -reach
        assert shifts.max() == reach
        counts = (shifts + reach).bincount().numpy()
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("trigger", "chance"), [("per_sample", 0.1), ("per_batch", 0.1), ("batch_all_zero", 0.9**8)])
def test_who_is_translated_together(trigger, chance):
    generator, recipe = seeded(), MAFP(p2=0.1, trigger=trigger)
    moved = torch.stack([mafp.draw_shifts(recipe, 10**6, 8, generator).any(0) for _ in range(3000)])
    assert moved.float().mean() == pytest.approx(chance, abs=0.03)
    together = bool((moved.all(1) | ~moved.any(1)).all())
    assert together == (trigger != "per_sample")


def test_the_translation_comes_before_the_pipe(images):
    both, labels = augmented(MAFP(p1=0.5, p2=0.5), images)
    translated, _ = augmented(MAFP(p2=0.5), images)
    assert labels is not None
    assert not torch.equal(translated, images)
    torch.testing.assert_close(both, mafp.transform(translated, labels))


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_ranks_augment_together_as_one_would(images, trigger):
    recipe = MAFP(p1=0.5, p2=0.2, trigger=trigger)
    for number in range(5):
        whole, labels = augmented(recipe, images, number)
        parts = [augmented(recipe, images, number, mine) for mine in (slice(0, 8), slice(8, 16))]
        assert labels is not None
        assert torch.equal(labels, torch.cat([told for _, told in parts if told is not None]))
        torch.testing.assert_close(whole, torch.cat([part for part, _ in parts]))


@pytest.mark.parametrize("told", [True, False])
def test_a_network_that_is_told_learns_what_noise_hides(told):
    """All that differs between the images is what was done to them, and the noise hides that."""
    torch.manual_seed(0)
    network = build(UNet(channels=8, multipliers=(1,), blocks=1), image_size=8, channels=1, augment_labels=9)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    images = torch.linspace(-1, 1, 8).expand(16, 1, 8, 8)
    levels, values = torch.full((16,), 20.0), []
    for step in range(100):
        clean, labels = augmented(MAFP(p1=0.1, p2=0.1), images, step)
        noise = torch.randn(clean.shape)
        noisy = edm.build(EDM()).add_noise(clean, noise, levels)
        estimate = edm.build(EDM()).denoise(network, noisy, levels, Conditions(augment_labels=labels if told else None))
        loss = edm.build(EDM()).losses(estimate, clean, noise, levels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert (sum(values[-20:]) < 0.5 * sum(values[:20])) == told
