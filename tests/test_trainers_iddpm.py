"""Learned variances: the hybrid loss against torch's own distributions, the sampler against diffusers."""

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from techniques_small import TRANSFORMER
from torch.distributions import Normal, kl_divergence
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.diffusion import ddpm, iddpm
from scrimp_trainers.diffusion.samplers import ancestral
from scrimp_trainers.recipe.diffusion import DDPM, IDDPM
from scrimp_trainers.recipe.samplers import Variance
from scrimp_trainers.training.loop import read_losses, train

LEARNED: dict[str, Any] = TRANSFORMER | {"diffusion.kind": "iddpm", "diffusion.betas": "linear"}
CHAIN = IDDPM(timesteps=1000)
VLB = 1000 * 0.001
"""Lambda times the number of steps."""


def randn(seed, shape=(4, 2, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def betas(timesteps=1000):
    return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)


def posterior(clean, noisy, t):
    """Return the mean of q(x_before | x_t, x_0) and its variance (Ho et al., eq. 6 and 7), in float64."""
    abar = (1 - betas()).cumprod(0)
    now, before = abar[t], abar[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
    beta = betas()[t]
    of_clean, of_noisy = before.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - before) / (1 - now)
    return of_clean * clean + of_noisy * noisy, beta * (1 - before) / (1 - now)


def parts_of(t, seed=0):
    """Return an image, noise, what the network says of them, and its reverse step's mean and deviation, in float64."""
    images, noise = randn(seed).clamp(-1, 1).double(), randn(seed + 1).double()
    predicted, v = noise + 0.1 * randn(seed + 2).double(), randn(seed + 3).double()
    abar = (1 - betas()).cumprod(0)[t]
    noisy = abar.sqrt() * images + (1 - abar).sqrt() * noise
    clean = (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt()
    mean, small = posterior(clean, noisy, t)
    small = small if t else posterior(clean, noisy, 1)[1]
    log_variance = (v + 1) / 2 * betas()[t].log() + (1 - v) / 2 * small.log()
    return images, noise, predicted, v, noisy, Normal(mean, (log_variance / 2).exp())


def bound(images, noise, predicted, v, t):
    process = iddpm.build(CHAIN)
    return process.bound(predicted.float(), v.float(), images.float(), noise.float(), torch.full((4,), t))


@pytest.mark.parametrize("t", [1, 2, 30, 500, 999])
def test_the_bound_is_the_divergence_from_the_posterior_in_bits(t):
    images, noise, predicted, v, noisy, step = parts_of(t)
    mean, variance = posterior(images, noisy, t)
    expected = kl_divergence(Normal(mean, variance.sqrt()), step).flatten(1).mean(1) / math.log(2)
    found = bound(images, noise, predicted, v, t)
    torch.testing.assert_close(found.double(), expected, rtol=5e-4, atol=1e-6)


def test_the_bound_of_the_last_step_is_the_probability_of_a_grey_level():
    images, noise, _, _, noisy, step = parts_of(0)
    levels = ((images + 1) * 127.5).round() / 127.5 - 1
    predicted, v = noise + 0.002 * randn(7).double(), torch.ones_like(images)
    abar = 1 - betas()[0]
    noisy = abar.sqrt() * levels + (1 - abar).sqrt() * noise
    clean = (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt()
    step = Normal(clean, betas()[0].sqrt())
    upper = torch.where(levels > 0.999, torch.ones_like(levels), step.cdf(levels + 1 / 255))
    lower = torch.where(levels < -0.999, torch.zeros_like(levels), step.cdf(levels - 1 / 255))
    expected = -(upper - lower).log().flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(bound(levels, noise, predicted, v, 0).double(), expected, rtol=5e-4, atol=1e-6)
    assert (levels.abs() > 0.999).any()


def test_the_bound_is_lowest_at_the_true_variance():
    """With the mean off by d the divergence is least where the variance is that of the posterior plus d^2."""
    images, noise, predicted, _, noisy, _ = parts_of(2)
    mean, variance = posterior(images, noisy, 2)
    abar = (1 - betas()).cumprod(0)[2]
    off = posterior((noisy - (1 - abar).sqrt() * predicted) / abar.sqrt(), noisy, 2)[0] - mean
    best = (variance + off.square()).log()
    low, high = variance.log(), betas()[2].log()
    v = 2 * (best - low) / (high - low) - 1
    least = bound(images, noise, predicted, v, 2)
    assert (bound(images, noise, predicted, v + 0.3, 2) > least).all()
    assert (bound(images, noise, predicted, v - 0.3, 2) > least).all()


def test_the_hybrid_loss_is_the_simple_one_and_the_bound_which_moves_the_variances_alone():
    images, noise, predicted, v = (value.float() for value in parts_of(300)[:4])
    estimate = torch.cat([predicted, v], 1).requires_grad_()
    t = torch.tensor([0, 3, 300, 999])
    losses = iddpm.build(CHAIN).losses(estimate, images, noise, t)
    simple = ddpm.build(DDPM()).losses(predicted, images, noise, t)
    extra = iddpm.build(CHAIN).bound(predicted, v, images, noise, t)
    torch.testing.assert_close(losses, simple + VLB * extra)

    (gradient,) = torch.autograd.grad(losses.sum(), estimate)
    expected = 2 * (predicted - noise) / images[0].numel()
    torch.testing.assert_close(gradient[:, :2], expected)
    assert (gradient[:, 2:].flatten(1).abs().sum(1) > 0).all()


def test_estimates_of_image_and_noise_leave_the_variances_out():
    noisy, t = randn(0), torch.tensor([0, 3, 300, 999])
    estimate = randn(1, (4, 4, 4, 4))
    ours, plain = iddpm.build(CHAIN), ddpm.build(DDPM())
    assert torch.equal(ours.clean(estimate, noisy, t), plain.clean(estimate[:, :2], noisy, t))
    assert torch.equal(ours.noise(estimate, noisy, t), plain.noise(estimate[:, :2], noisy, t))


@pytest.mark.parametrize(("steps", "t"), [(1000, 500), (1000, 1), (250, 503), (250, 7)])
def test_a_step_is_that_of_diffusers_with_a_learned_range(steps, t):
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, variance_type="learned_range", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    x, estimate = randn(0), randn(1, (4, 4, 4, 4)).clamp(-1, 1)
    torch.manual_seed(0)
    theirs: Any = scheduler.step(estimate, t, x)
    torch.manual_seed(0)
    noise = torch.randn(x.shape)
    before = t - 1000 // steps
    ours = ancestral.step(iddpm.build(CHAIN), estimate, x, t, before, noise, variance="learned", clip=False)
    torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-4, atol=1e-5)


def test_the_ends_of_the_range_are_the_two_fixed_variances():
    x, predicted, noise = randn(0), randn(1), randn(2)
    ends: list[tuple[float, Variance]] = [(-1.0, "fixed_small"), (1.0, "fixed_large")]
    for v, variance in ends:
        estimate = torch.cat([predicted, torch.full_like(predicted, v)], 1)
        learned = ancestral.step(iddpm.build(CHAIN), estimate, x, 503, 499, noise, variance="learned", clip=False)
        fixed = ancestral.step(ddpm.build(DDPM()), predicted, x, 503, 499, noise, variance=variance, clip=False)
        torch.testing.assert_close(learned, fixed)


def test_the_last_step_adds_no_noise():
    process, x, estimate = iddpm.build(CHAIN), randn(0), randn(1, (4, 4, 4, 4))
    drawn = [ancestral.step(process, estimate, x, 3, -1, randn(s), variance="learned", clip=False) for s in (5, 6)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(drawn[0], process.clean(estimate, x, torch.full((4,), 3)))


def test_the_loss_falls():
    values = {"training__kimg": 1.6, "optimizer__lr": 3e-3, "optimizer__warmup_kimg": 0}
    recipe = small("tiny-ddpm", **values).replace(LEARNED)
    losses = read_losses(list(train(recipe, small_state(recipe), random_batches(8), device=CPU)))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"network.kind": "unet"}, r"diffusion\.kind: 'iddpm' needs an output for variances; use network\.kind mdt"),
     ({"diffusion.kind": "ddpm", "sampler.kind": "ancestral", "sampler.variance": "learned"},
      r"sampler\.kind: 'ancestral' needs learned variances; use diffusion\.kind iddpm"),
     ({"training.min_snr_gamma": 5.0}, r"training\.min_snr_gamma weighs a squared error"),
     ({"ambient.sigma_n": 0.3}, r"ambient\.sigma_n weighs a squared error")],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(values, message):
    recipe = small("tiny-ddpm").replace(LEARNED)
    with pytest.raises(UserError, match=message):
        recipe.replace(values)
