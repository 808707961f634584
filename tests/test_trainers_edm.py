import math

import pytest
import torch
from torch import nn

from scrimp_trainers.conditioning.conditions import NOTHING
from scrimp_trainers.diffusion import edm
from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.diffusion.samplers import heun
from scrimp_trainers.recipe.diffusion import EDM
from scrimp_trainers.recipe.samplers import Heun

DEVIATION, MEAN = 0.5, 0.2


def gaussian_denoiser(x, sigma):
    """The posterior mean of data from N(MEAN, DEVIATION^2)."""
    sigma = over_images(sigma, x)
    return (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)


def normal(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=dtype)


def test_heun_reaches_the_closed_form_with_second_order_error():
    settings = EDM(sigma_min=1e-4)
    start = normal((64, 1, 1, 1))() * settings.sigma_max
    exact = MEAN + (start - MEAN) * DEVIATION / math.hypot(DEVIATION, settings.sigma_max)
    steps, errors = [16, 32, 64, 128, 256], []
    for count in steps:
        found = heun.sample(edm.build(settings), Heun(steps=count), gaussian_denoiser, normal((64, 1, 1, 1)), clip=True)
        errors.append((found - exact).abs().max().item())
    logarithms = torch.tensor([steps, errors], dtype=torch.float64).log()
    slope = torch.linalg.lstsq(torch.stack([logarithms[0], torch.ones(5)], 1), logarithms[1]).solution[0].item()
    assert errors[-1] < 1e-3
    assert slope == pytest.approx(-2, abs=0.15)


def test_the_stochastic_sampler_keeps_the_distribution():
    sampler = Heun(steps=128, s_churn=40, s_min=0.05, s_max=50)
    found = heun.sample(edm.build(EDM()), sampler, gaussian_denoiser, normal((40_000, 1, 1, 1)), clip=True)
    assert found.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / 200)
    assert found.std().item() == pytest.approx(DEVIATION, rel=0.02)  # standard error 0.35%


def test_noise_is_added_only_between_s_min_and_s_max():
    draws = []

    def noise():
        draws.append(1)
        return torch.zeros(2, 1, 1, 1)

    sampler = Heun(steps=18, s_churn=1, s_min=0.05, s_max=50)
    heun.sample(edm.build(EDM()), sampler, gaussian_denoiser, noise, clip=True)
    inside = [t for t in edm.build(EDM()).grid(18) if 0.05 <= t <= 50]
    assert 0 < len(inside) < 18
    assert len(draws) == 1 + len(inside)


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (18, 35), (40, 79), (256, 511)])
def test_heun_evaluates_the_model_one_less_than_twice_a_step(steps, evaluations):
    calls = []

    def predict(x, sigma):
        calls.append(sigma)
        return x * 0

    heun.sample(edm.build(EDM()), Heun(steps=steps), predict, normal((1, 1, 1, 1)), clip=True)
    assert len(calls) == evaluations


def test_the_time_grid_is_equation_5():
    grid = edm.build(EDM()).grid(18)
    assert grid[0] == pytest.approx(80)
    assert grid[-1] == pytest.approx(0.002)
    assert grid[5] == pytest.approx((80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


class Recorder(nn.Module):
    """A network that knows nothing and remembers what it was asked."""

    def forward(self, images, levels, conditions):
        self.images, self.levels = images, levels
        return torch.zeros_like(images)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
@pytest.mark.parametrize("data", [0.5, 1.3])
def test_the_networks_input_and_target_have_unit_variance(sigma, data):
    settings, network = EDM(sigma_data=data), Recorder()
    images = normal((4, 3, 128, 128), seed=1, dtype=torch.float32)() * data
    noise = normal((4, 3, 128, 128), seed=2, dtype=torch.float32)()
    levels = torch.full((4,), sigma)
    noisy = edm.build(settings).add_noise(images, noise, levels)
    estimate = edm.build(settings).denoise(network, noisy, levels, NOTHING)

    # Where the network is to give F, D = c_skip x + c_out F; with F = 0 the estimate misses c_out times the target.
    _, out, _ = edm.build(settings).preconditioning(over_images(levels, images))
    target = (images - estimate) / out
    assert network.images.var().item() == pytest.approx(1, rel=0.02)
    assert target.var().item() == pytest.approx(1, rel=0.02)
    assert network.levels.tolist() == pytest.approx([math.log(sigma) / 4] * 4)

    # The loss's weight makes that variance the loss, whatever sigma is.
    losses = edm.build(settings).losses(estimate, images, noise, levels)
    assert losses.mean().item() == pytest.approx(target.square().mean().item(), rel=1e-3)


def test_losses_are_one_an_image():
    settings = EDM()
    images = torch.zeros(2, 1, 4, 4)
    estimate = images + torch.tensor([0.1, 0.3])[:, None, None, None]
    losses = edm.build(settings).losses(estimate, images, images, torch.tensor([0.5, 2.0]))
    weights = [(s**2 + 0.25) / (s * 0.5) ** 2 for s in (0.5, 2.0)]
    assert losses.tolist() == pytest.approx([weights[0] * 0.01, weights[1] * 0.09])


def test_training_levels_are_log_normal():
    sigma = edm.build(EDM(p_mean=-1.2, p_std=1.2)).levels(100_000, torch.Generator().manual_seed(0))
    # Shares of draws above a level, from the normal distribution.
    assert (sigma >= 0.3).float().mean().item() == pytest.approx(0.50, abs=0.01)
    assert (sigma >= 1).float().mean().item() == pytest.approx(0.16, abs=0.01)
