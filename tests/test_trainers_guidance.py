import math

import pytest
import torch
from trainers_small import small, small_state

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.diffusion import ddpm
from scrimp_trainers.diffusion.guidance import guided, scale_at
from scrimp_trainers.recipe.diffusion import DDPM
from scrimp_trainers.recipe.samplers import Ancestral
from scrimp_trainers.sampling import generate

CONDITIONAL = {"conditioning__classes": True, "conditioning__label_drop": 0.1}


def scale(t, guidance=3.8, power=4.0, timesteps=1000):
    found = scale_at(Ancestral(guidance=guidance, guidance_power=power), DDPM(timesteps=timesteps), torch.tensor([t]))
    assert isinstance(found, torch.Tensor)
    return float(found)


def test_the_power_cosine_begins_at_one_and_ends_at_the_guidance():
    assert scale(1000) == pytest.approx(1)
    assert scale(0) == pytest.approx(3.8)
    assert scale(0, guidance=1.5) == pytest.approx(1.5)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_the_power_cosine_is_half_way_where_its_power_of_the_share_is_a_half(power):
    t = 1000 * (1 - 0.5 ** (1 / power))
    assert scale(t, power=power) == pytest.approx(1 + 2.8 / 2, rel=1e-5)


def test_the_power_cosine_in_between():
    assert scale(500) == pytest.approx(1 + 2.8 * (1 - math.cos(math.pi / 16)) / 2, rel=1e-5)
    assert scale(100, power=2.0, timesteps=400) == pytest.approx(
        1 + 2.8 * (1 - math.cos(math.pi * 0.5625)) / 2, rel=1e-5
    )


def test_each_image_is_guided_by_its_own_scale_in_the_first_channels_alone():
    with_class, without = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    estimate = guided(with_class, without, torch.tensor([1.0, 3.0]), 3)
    torch.testing.assert_close(estimate[0], with_class[0])
    torch.testing.assert_close(estimate[1, :3], without[1, :3] + 3 * (with_class[1, :3] - without[1, :3]))
    assert torch.equal(estimate[:, 3], with_class[:, 3])


def test_without_a_schedule_all_channels_are_guided_alike():
    with_class, without = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    estimate = guided(with_class, without, 2.5, 4)
    torch.testing.assert_close(estimate, without + 2.5 * (with_class - without))
    assert scale_at(Ancestral(guidance=2.5), DDPM(), torch.tensor([7])) == 2.5


def test_a_recipe_samples_by_its_schedule(monkeypatch):
    """At the first step, t = 999, guidance by the schedule is all but none."""
    recipe = small("tiny-ddpm", **CONDITIONAL, sampler__steps=1, sampler__guidance=9.0, diffusion__prediction="epsilon")
    network = small_state(recipe, classes=3).ema

    def denoise(process, net, noisy, levels, conditions):
        return noisy * 0 + (0.0 if conditions.labels.item() == 3 else 0.1)

    seen = []

    def clean(process, estimate, noisy, t):
        seen.append(estimate)
        return noisy * 0

    monkeypatch.setattr(ddpm.DDPMProcess, "denoise", denoise)
    monkeypatch.setattr(ddpm.DDPMProcess, "clean", clean)
    list(generate(network, recipe, 1, seed=0))
    list(generate(network, recipe.replace({"sampler.guidance_power": 4.0}), 1, seed=0))
    assert seen[0].unique().item() == pytest.approx(0.9)
    assert seen[1].unique().item() == pytest.approx(0.1)


def test_a_schedule_needs_a_chain():
    with pytest.raises(
        UserError, match=r"sampler\.guidance_power goes by the steps of a chain; use diffusion\.kind ddpm"
    ):
        small(**CONDITIONAL, sampler__guidance=2.0, sampler__guidance_power=4.0)
