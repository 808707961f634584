"""Ambient training: one noise an image for ever, losses against the paper's form, optimum against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scrimp_trainers.common import parts
from scrimp_trainers.diffusion.process import sigmas
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient

SIGMA_N = 0.5
EPSILON = {"kind": "ddpm", "betas": "linear", "prediction": "epsilon"}
V = {"kind": "ddpm", "betas": "cosine", "prediction": "v"}
PROCESSES = [{"kind": "edm"}, EPSILON, V]
NAMES = ["edm", "epsilon", "v"]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
WEIGHTINGS = ["released", "compensated"]


def recipe_of(process, sigma_n=SIGMA_N, weighting="released"):
    sampler = {} if process["kind"] == "edm" else {"kind": "ddim"}
    return Recipe.model_validate(
        {"diffusion": process, "sampler": sampler, "ambient": {"sigma_n": sigma_n, "weighting": weighting}}
    )


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def levels_near(recipe, sigma, count):
    """Levels of about this sigma: exactly it in EDM, the next of the chain's from below in DDPM."""
    if recipe.diffusion.kind == "edm":
        return torch.full((count,), sigma, dtype=torch.float64)
    process = parts.build("diffusion", recipe.diffusion)
    chain = sigmas(process, torch.arange(recipe.diffusion.timesteps))
    return torch.full((count,), int((chain <= sigma).sum()) - 1)


def levels_of_all_kinds(recipe, count):
    if recipe.diffusion.kind == "edm":
        return torch.logspace(-2, 1.9, count)
    return torch.linspace(0, recipe.diffusion.timesteps - 1, count).long()


def as_clean_images(recipe, estimate, noisy, levels):
    """What the network's estimate says of the clean images, and x_sigma, for a signal of scale 1; in float64."""
    noisy, estimate = noisy.double(), estimate.double()
    if recipe.diffusion.kind == "edm":
        return estimate, noisy
    sigma = sigmas(parts.build("diffusion", recipe.diffusion), levels).double()[:, None, None, None]
    abar = 1 / (1 + sigma**2)
    if recipe.diffusion.prediction == "v":
        return abar.sqrt() * noisy - (1 - abar).sqrt() * estimate, noisy / abar.sqrt()
    return noisy / abar.sqrt() - sigma * estimate, noisy / abar.sqrt()


def own_weight(recipe, sigma):
    """The process's weight of the clean image's squared error."""
    if recipe.diffusion.kind == "edm":
        return (sigma**2 + 0.25) / (0.25 * sigma**2)
    return 1 / sigma**2 if recipe.diffusion.prediction == "epsilon" else 1 + 1 / sigma**2


# The noise


def test_bits_are_those_of_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = ambient._hash(torch.tensor([1234567]), 5)[0]
    assert [int(number) % 2**64 for number in found] == published


def test_noise_is_box_muller_of_the_bits():
    keys = torch.tensor([-(2**63), -1, 0, 2**62 + 3])
    bits = ambient._hash(keys, 8).numpy().view(np.uint64)
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32))
    angle = (bits & np.uint64(2**32 - 1)).astype(np.float64) * (2 * np.pi / 2**32)
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :15].reshape(4, 3, 5, 1)
    np.testing.assert_allclose(ambient.fixed_noise(keys, (3, 5, 1)), expected, atol=1e-5)


@pytest.fixture(scope="module")
def noise():
    """The noise of 400 images that follow each other in a dataset."""
    return ambient.fixed_noise(ambient.noise_keys("hash", [f"{i:06}" for i in range(400)]), (3, 16, 16))


def test_noise_is_standard_normal(noise):
    values = noise.flatten().double().numpy()  # 307,200 of them
    assert values.mean() == pytest.approx(0, abs=4 / math.sqrt(len(values)))
    assert values.var() == pytest.approx(1, abs=4 * math.sqrt(2 / len(values)))
    assert stats.skew(values) == pytest.approx(0, abs=4 * math.sqrt(6 / len(values)))
    assert stats.kurtosis(values) == pytest.approx(0, abs=4 * math.sqrt(24 / len(values)))
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert np.isfinite(values).all()


@pytest.mark.parametrize("keys", [ambient.noise_keys("hash", [str(i) for i in range(200)]), torch.arange(200)])
def test_neither_images_nor_pixels_are_correlated(keys):
    flat = ambient.fixed_noise(keys, (1, 20, 20)).flatten(1)
    for rows in (flat, flat.T):
        matrix = torch.corrcoef(rows)
        off = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
        expected = 1 / math.sqrt(rows.shape[1])
        assert off.abs().max() < 6 * expected
        assert off.std().item() == pytest.approx(expected, rel=0.05)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
)
def test_an_image_has_the_same_noise_alone_and_in_any_batch(numbers, shape):
    keys = torch.tensor(numbers)
    together = ambient.fixed_noise(keys, shape)
    alone = torch.cat([ambient.fixed_noise(key[None], shape) for key in keys])
    assert torch.equal(together, alone)
    assert torch.equal(ambient.fixed_noise(keys.flip(0), shape), together.flip(0))


def test_keys_depend_on_the_dataset_and_the_image_alone():
    names = [f"{i:06}" for i in range(1000)]
    keys = ambient.noise_keys("one", names)
    assert keys.dtype == torch.int64
    assert torch.equal(keys.flip(0), ambient.noise_keys("one", names[::-1]))
    assert len(set(keys.tolist() + ambient.noise_keys("two", names).tolist())) == 2000
    assert ambient.noise_keys("one", ["000000"]).tolist() == [1326238761445913326]  # for ever


# The loss


@every_process
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sigma_n", [0.0, 1e-6])
def test_without_hidden_noise_the_loss_is_the_process_own(process, weighting, sigma_n):
    """Bit for bit, its gradient included, at sigma_n = 0; to rounding where sigma_n is tiny but above 0."""
    recipe = recipe_of(process, sigma_n, weighting)
    own, levels = parts.build("diffusion", recipe.diffusion), levels_of_all_kinds(recipe, 64)
    images, hidden, noise = (randn(64, 3, 8, 8, seed=seed) for seed in (1, 2, 3))
    estimate = randn(64, 3, 8, 8, seed=4).requires_grad_()

    noisy, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, levels
    )
    found = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels)
    expected = own.losses(estimate, images, noise, levels)
    (slope,) = torch.autograd.grad(found.sum(), estimate)
    (slope_expected,) = torch.autograd.grad(expected.sum(), estimate)

    error = 0 if sigma_n == 0 else 1e-3
    torch.testing.assert_close(noisy, own.add_noise(images, noise, levels), rtol=error, atol=error)
    torch.testing.assert_close(target, images, rtol=error, atol=error)
    torch.testing.assert_close(found, expected, rtol=error, atol=error)
    torch.testing.assert_close(slope, slope_expected, rtol=error, atol=error)


@every_process
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_below_sigma_n_training_is_ordinary_bit_for_bit(process, weighting):
    recipe = recipe_of(process, SIGMA_N, weighting)
    own, levels = parts.build("diffusion", recipe.diffusion), levels_of_all_kinds(recipe, 64)
    below = sigmas(own, levels) < SIGMA_N
    assert 0 < below.sum() < 64
    images, hidden, noise, estimate = (randn(64, 3, 8, 8, seed=seed) for seed in (1, 2, 3, 4))
    noisy, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, levels
    )
    found = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels)
    assert torch.equal(noisy[below], own.add_noise(images, noise, levels)[below])
    assert torch.equal(target[below], images[below])
    assert torch.equal(found[below], own.losses(estimate, images, noise, levels)[below])
    assert torch.equal(target[~below], torch.addcmul(images, hidden, torch.tensor(SIGMA_N))[~below])


@every_process
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_from_sigma_n_on_the_loss_is_the_papers(process, weighting):
    """w |a x0 + r x_sigma - x^n|^2, times a^-2 if compensated, from the noisy images that were made."""
    recipe = recipe_of(process, SIGMA_N, weighting)
    levels = levels_of_all_kinds(recipe, 64)
    sigma = sigmas(parts.build("diffusion", recipe.diffusion), levels).double()
    above = sigma > SIGMA_N * 1.01
    images, hidden, noise, estimate = (randn(64, 3, 8, 8, seed=seed) for seed in (1, 2, 3, 4))
    noisy, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, levels
    )
    found = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels)

    clean, x_sigma = as_clean_images(recipe, estimate, noisy, levels)
    r = (SIGMA_N / sigma)[:, None, None, None] ** 2
    predicted = (1 - r) * clean + r * x_sigma
    expected = own_weight(recipe, sigma) * (predicted - target).square().mean((1, 2, 3))
    if weighting == "compensated":
        expected = expected / (1 - r.flatten()) ** 2
    # Twice float32's error in 1 - abar, which sigma is made of.
    torch.testing.assert_close(found[above].double(), expected[above], rtol=2e-3, atol=0)


@every_process
def test_from_sigma_n_on_nothing_but_the_noisy_copy_is_used(process):
    """Another image whose noisy copy is the same gives the same noisy image and the same target."""
    recipe = recipe_of(process)
    levels = levels_near(recipe, 3.0, 2)
    image, hidden, noise = (randn(1, 3, 8, 8, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    images = torch.cat([image, image + 1])
    process = parts.build("diffusion", recipe.diffusion)
    noisy, target = ambient.add_noise(
        recipe.ambient, process, images, torch.cat([hidden, hidden - 1 / SIGMA_N]), noise.expand_as(images), levels
    )
    torch.testing.assert_close(noisy[0], noisy[1])
    torch.testing.assert_close(target[0], target[1])


@every_process
def test_the_noisy_image_has_the_variance_of_its_level(process):
    """Hidden and fresh noise together have sigma^2, on both sides of sigma_n."""
    recipe = recipe_of(process)
    levels = levels_of_all_kinds(recipe, 16)
    hidden, noise = randn(16, 1, 128, 128, seed=2), randn(16, 1, 128, 128, seed=3)
    noisy, _ = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), torch.zeros_like(noise), hidden, noise, levels
    )
    _, x_sigma = as_clean_images(recipe, noise, noisy, levels)
    sigma = sigmas(parts.build("diffusion", recipe.diffusion), levels).double()
    torch.testing.assert_close(x_sigma.std((1, 2, 3)), sigma, rtol=0.03, atol=0)


def test_the_conversion_is_exact_for_the_clean_image():
    """If x0 = x, then a x0 + r x_sigma misses x^n by what the noise says: (r - 1) sigma_n z + r sigma sqrt(a) n."""
    recipe = recipe_of({"kind": "edm"})
    images, hidden, noise = (randn(8, 1, 4, 4, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    sigma = torch.linspace(0.6, 20, 8, dtype=torch.float64)
    _, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, sigma
    )
    found = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), images, target, noise, sigma)
    r = (SIGMA_N / sigma)[:, None, None, None] ** 2
    missed = (r - 1) * SIGMA_N * hidden + r * sigma[:, None, None, None] * (1 - r).sqrt() * noise
    torch.testing.assert_close(found, own_weight(recipe, sigma) * missed.square().mean((1, 2, 3)))


def slope_at(sigma, weighting):
    recipe = recipe_of({"kind": "edm"}, SIGMA_N, weighting)
    images, hidden, noise = (randn(256, 1, 4, 4, seed=seed) for seed in (1, 2, 3))
    levels = torch.full((256,), sigma)
    estimate = torch.zeros_like(images, requires_grad=True)
    _, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, levels
    )
    values = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels)
    (slope,) = torch.autograd.grad(values.sum(), estimate)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()
    return slope.norm().item()


def test_the_released_gradient_vanishes_at_sigma_n():
    slopes = [slope_at(SIGMA_N * (1 + above), "released") for above in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)]
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[-1] < 2e-3 * slopes[0]
    # It goes with a^1.5, and a is about 2 (sigma / sigma_n - 1).
    assert slopes[1] / slopes[2] == pytest.approx(10**1.5, rel=0.1)


def test_the_compensated_gradient_is_large_near_sigma_n_but_bounded():
    ordinary = slope_at(SIGMA_N * 0.999, "compensated")
    slopes = [slope_at(SIGMA_N * (1 + above), "compensated") for above in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)]
    assert slopes[0] > ordinary
    assert max(slopes) < 20 * ordinary


# The optimum

AVERAGE = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]], dtype=torch.float64)


@every_process
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sigma", [0.3, 0.7, 3.0])
def test_on_gaussian_data_the_optimum_is_the_posterior_mean(process, weighting, sigma):
    """The affine denoiser that minimises the loss over many images gives E[x | x_sigma], which is affine."""
    recipe = recipe_of(process, SIGMA_N, weighting)
    count, factor = 200_000, torch.linalg.cholesky(COVARIANCE)
    data = AVERAGE + randn(count, 2, seed=1, dtype=torch.float64) @ factor.T
    images = data[:, None, None, :]
    hidden, noise = (randn(count, 1, 1, 2, seed=seed, dtype=torch.float64) for seed in (2, 3))
    levels = levels_near(recipe, sigma, count)
    noisy, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, hidden, noise, levels
    )
    inputs = torch.cat([noisy.reshape(count, 2), torch.ones(count, 1, dtype=torch.float64)], 1)

    def loss(parameters):
        estimate = (inputs @ parameters.view(3, 2))[:, None, None, :]
        return ambient.losses(
            recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels
        ).mean()

    # The loss is quadratic in the parameters, so Newton's first step from anywhere is its minimum.
    start = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(start), start)
    best = -torch.linalg.solve(torch.autograd.functional.hessian(loss, start), slope)

    probes = torch.tensor([[0.0, 0.0], [0.5, -0.5], [-1.0, 1.0], [0.3, 1.2]], dtype=torch.float64)[:, None, None, :]
    sigma = sigmas(parts.build("diffusion", recipe.diffusion), levels)[0].item()
    signal = 1.0 if recipe.diffusion.kind == "edm" else 1 / math.sqrt(1 + sigma**2)
    estimate = (torch.cat([probes.reshape(4, 2) * signal, torch.ones(4, 1, dtype=torch.float64)], 1)) @ best.view(3, 2)
    clean, _ = as_clean_images(recipe, estimate[:, None, None, :], probes * signal, levels[:4])
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))
    expected = AVERAGE + (probes.reshape(4, 2) - AVERAGE) @ gain.T
    torch.testing.assert_close(clean.reshape(4, 2), expected, rtol=0, atol=0.02)


@every_process
def test_with_one_image_the_optimum_knows_its_noisy_copy_only(process):
    """The clean image that it then gives, (x^n - r x_sigma) / a, makes the loss 0: nothing is left to learn of x."""
    recipe = recipe_of(process)
    levels = levels_near(recipe, 2.0, 64)
    sigma = sigmas(parts.build("diffusion", recipe.diffusion), levels).double()[:, None, None, None]
    image, hidden = randn(1, 1, 4, 4, seed=1, dtype=torch.float64), randn(1, 1, 4, 4, seed=2, dtype=torch.float64)
    noise = randn(64, 1, 4, 4, seed=3, dtype=torch.float64)
    images, copies = image.expand_as(noise), hidden.expand_as(noise)
    noisy, target = ambient.add_noise(
        recipe.ambient, parts.build("diffusion", recipe.diffusion), images, copies, noise, levels
    )
    _, x_sigma = as_clean_images(recipe, noise, noisy, levels)
    r = (SIGMA_N / sigma) ** 2
    clean = (image + SIGMA_N * hidden - r * x_sigma) / (1 - r)
    signal = 1 / (1 + sigma**2).sqrt()
    total = (x_sigma - clean) / sigma
    estimate = {
        "edm": clean,
        "epsilon": total,
        "v": signal * total - sigma * signal * clean,
    }[NAMES[PROCESSES.index(process)]]
    found = ambient.losses(recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels)
    assert found.max().item() < 1e-8
