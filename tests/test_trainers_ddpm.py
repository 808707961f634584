import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from scrimp_trainers.common import parts
from scrimp_trainers.diffusion import ddpm
from scrimp_trainers.diffusion.samplers import ancestral, ddim
from scrimp_trainers.recipe.diffusion import DDPM
from scrimp_trainers.recipe.samplers import DDIM, Ancestral, Variance

CPU = torch.device("cpu")
CHAINS = [
    DDPM(kind="ddpm", betas=betas, prediction=prediction)
    for betas in ("linear", "scaled_linear", "cosine")
    for prediction in ("epsilon", "v")
]
VARIANCES: list[Variance] = ["fixed_small", "fixed_large"]
NAMES = [f"{chain.betas}-{chain.prediction}" for chain in CHAINS]


def theirs(kind, chain, **settings) -> Any:
    return kind(
        num_train_timesteps=chain.timesteps,
        beta_start=chain.beta_start,
        beta_end=chain.beta_end,
        beta_schedule={"cosine": "squaredcos_cap_v2"}.get(chain.betas, chain.betas),
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[chain.prediction],
        timestep_spacing="trailing",
        **settings,
    )


def randn(seed, shape=(3, 2, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(x, t):
    """A deterministic stand-in for a network."""
    return 0.8 * x + torch.sin(3 * x + t.float()[:, None, None, None] / 200)


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_the_chain_and_its_targets_are_those_of_diffusers(chain):
    scheduler = theirs(DDPMScheduler, chain)
    torch.testing.assert_close(ddpm.build(chain).alpha_bars(CPU), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)
    images, noise, t = randn(0), randn(1), torch.tensor([0, 437, 990])
    noisy = ddpm.build(chain).add_noise(images, noise, t)
    torch.testing.assert_close(noisy, scheduler.add_noise(images, noise, t), rtol=1e-3, atol=1e-4)
    target = noise if chain.prediction == "epsilon" else scheduler.get_velocity(images, noise, t)
    losses = ddpm.build(chain).losses(target + 0.1, images, noise, t)
    torch.testing.assert_close(losses, torch.full((3,), 0.01), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
@pytest.mark.parametrize("t", [0, 1, 500, 990])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_ancestral_step_equals_that_of_diffusers(chain, t, variance):
    scheduler = theirs(DDPMScheduler, chain, variance_type=variance)
    x, output = randn(2), randn(3)
    generator = torch.Generator().manual_seed(4)
    expected = scheduler.step(output, t, x, generator=generator).prev_sample
    stepped = ancestral.step(ddpm.build(chain), output, x, t, t - 1, randn(4), variance=variance, clip=True)
    torch.testing.assert_close(stepped, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variance", "expected"), [("fixed_small", (0.00738, 0.01608)), ("fixed_large", (0.01095, 0.01730))]
)
def test_the_noise_of_a_step_has_the_deviation_of_the_published_chain(variance, expected):
    """The numbers are sqrt(beta-tilde_t) and sqrt(beta_t) at t = 1 and 10 of betas from 1e-4 to 0.02."""
    chain = DDPM(kind="ddpm")
    for t, deviation in zip((1, 10), expected, strict=True):
        steps = [
            ancestral.step(ddpm.build(chain), randn(3), randn(2), t, t - 1, noise, variance=variance, clip=False)
            for noise in (torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4))
        ]
        assert (steps[1] - steps[0]).mean().item() == pytest.approx(deviation, abs=6e-6)


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ddim_step_equals_that_of_diffusers(chain, eta):
    scheduler = theirs(DDIMScheduler, chain)
    scheduler.set_timesteps(20)
    x, output, noise = randn(2), randn(3), randn(4)
    for t in (49, 499, 949):
        given = noise if eta else None
        expected = scheduler.step(output, t, x, eta=eta, variance_noise=given).prev_sample
        stepped = ddim.step(ddpm.build(chain), output, x, t, t - 50, eta, given, clip=True)
        torch.testing.assert_close(stepped, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
@pytest.mark.parametrize(
    "sampler",
    [
        Ancestral(steps=1000),
        Ancestral(steps=50),
        Ancestral(steps=1000, variance="fixed_large"),
        Ancestral(steps=50, variance="fixed_large"),
        DDIM(steps=40),
    ],
    ids=str,
)
def test_a_whole_sampling_equals_that_of_diffusers(chain, sampler):
    ours = torch.Generator().manual_seed(5)
    part = parts.module("diffusion.samplers", sampler.kind)
    sampled = part.sample(
        ddpm.build(chain), sampler, predict, lambda: torch.randn(3, 2, 4, 4, generator=ours), clip=True
    )
    scheduler = theirs(DDIMScheduler, chain)
    if isinstance(sampler, Ancestral):
        scheduler = theirs(DDPMScheduler, chain, variance_type=sampler.variance)
    scheduler.set_timesteps(sampler.steps)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 2, 4, 4, generator=generator)
    step: Any = None
    for t in scheduler.timesteps:
        step = scheduler.step(predict(x, t.expand(3)), int(t), x, generator=generator)
        x = step.prev_sample
    x = (
        step.pred_original_sample
    )  # where steps are left out, the last one of diffusers adds the larger variance's noise
    torch.testing.assert_close(sampled, x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 3, 35, 999, 1000])
def test_the_grid_starts_at_the_noisiest_level_and_is_even(steps):
    grid = ddpm.build(DDPM(kind="ddpm")).grid(steps)
    gaps = {a - b for a, b in zip(grid, [*grid[1:], -1], strict=True)}
    assert len(grid) == steps
    assert grid[0] == 999
    assert gaps <= {math.floor(1000 / steps), math.ceil(1000 / steps)}


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_gaussian_data_come_back_from_ancestral_sampling(chain):
    """With the exact posterior mean of N(0, 0.2^2) the samples have that deviation."""

    def exact(x, t):
        abar = ddpm.build(chain).alpha_bars(CPU)[t][:, None, None, None].double()
        clean = 0.04 * abar.sqrt() * x / (0.04 * abar + 1 - abar)
        noise = (x - abar.sqrt() * clean) / (1 - abar).sqrt()
        return noise if chain.prediction == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * clean

    generator = torch.Generator().manual_seed(0)
    shape = (20_000, 1, 1, 1)
    sampler = Ancestral(steps=1000)
    sampled = ancestral.sample(
        ddpm.build(chain),
        sampler,
        exact,
        lambda: torch.randn(shape, generator=generator, dtype=torch.float64),
        clip=True,
    )
    assert sampled.std().item() == pytest.approx(0.2, rel=0.03)


def test_levels_are_uniform_over_the_whole_chain():
    t = ddpm.build(DDPM(kind="ddpm", timesteps=10)).levels(50_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(t, minlength=10) / len(t)
    assert len(shares) == 10
    assert shares.min().item() > 0.09
