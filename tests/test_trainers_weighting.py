"""Min-SNR weighting against the squared error of the clean image, diffusers' signal-to-noise ratio and its formula."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common import parts
from scrimp_trainers.diffusion.weighting import min_snr
from scrimp_trainers.recipe.diffusion import DDPM, EDM
from scrimp_trainers.training.loop import read_losses, train

PROCESSES = [EDM(), EDM(sigma_data=0.3), DDPM(), DDPM(prediction="v")]


@pytest.mark.parametrize("settings", PROCESSES, ids=["edm", "edm-0.3", "epsilon", "v"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_the_clean_images_error_weighs_the_smaller_of_snr_and_gamma(settings: EDM | DDPM, gamma: float):
    process = parts.build("diffusion", settings)
    generator = torch.Generator().manual_seed(0)
    images, noise, estimate = torch.randn(3, 64, 1, 4, 4, generator=generator, dtype=torch.float64)
    levels = process.levels(64, generator)
    levels = levels.double() if levels.is_floating_point() else levels
    alpha, sigma = process.scales(levels)
    snr = (alpha / sigma).double().square()
    assert (snr > gamma).any()
    assert (snr < gamma).any()

    noisy = process.add_noise(images, noise, levels)
    weighted = process.losses(estimate, images, noise, levels) * min_snr(process, levels, gamma)
    error = (process.clean(estimate, noisy, levels) - images).square().flatten(1).mean(1)
    torch.testing.assert_close(weighted, snr.clamp(max=gamma) * error, rtol=1e-3, atol=1e-6, check_dtype=False)


def test_factors_on_a_chain_are_those_of_diffusers_training_scripts():
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02)
    t = torch.arange(1000)
    snr = compute_snr(scheduler, t)
    factors = min_snr(parts.build("diffusion", DDPM()), t, 5.0)
    torch.testing.assert_close(factors, snr.clamp(max=5.0) / snr, rtol=1e-3, atol=1e-6)
    factors = min_snr(parts.build("diffusion", DDPM(prediction="v")), t, 5.0)
    torch.testing.assert_close(factors, snr.clamp(max=5.0) / (snr + 1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_training_weighs_losses_and_goes_down(preset: str):
    gamma = 0.05

    def losses(**values: object) -> list[float]:
        recipe = small(preset, training__kimg=0.8, optimizer__lr=3e-3, optimizer__warmup_kimg=0, **values)
        state = small_state(recipe)
        batches = random_batches(recipe.training.batch_size)
        return read_losses(list(train(recipe, state, batches, device=CPU)))

    plain = losses()
    weighted = losses(training__min_snr_gamma=gamma)
    # No sample weighs more than gamma, and EDM's own weight of a clean image is at least 4.
    assert weighted[0] < plain[0]
    assert sum(weighted[-20:]) < 0.7 * sum(weighted[:20])
