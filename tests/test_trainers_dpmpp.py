"""DPM-Solver++(2M) against diffusers' schedulers, and its order against the exact solution for Gaussian data."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scrimp_trainers.common import parts
from scrimp_trainers.diffusion import ddpm, edm
from scrimp_trainers.diffusion.samplers import dpmpp
from scrimp_trainers.recipe.diffusion import DDPM, EDM
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.samplers import DPMSolver

CHAINS = [DDPM(), DDPM(prediction="v"), DDPM(betas="cosine")]


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


def predict(x: Tensor, levels: Tensor) -> Tensor:
    """Some smooth function of both."""
    return torch.tanh(0.7 * x + 0.01 * levels.view(-1, 1, 1, 1).to(x.dtype).clamp(max=50))


@pytest.mark.parametrize("steps", [4, 20, 50])
@pytest.mark.parametrize("chain", CHAINS, ids=["epsilon", "v", "cosine"])
def test_on_a_chain_it_makes_the_steps_of_diffusers(chain: DDPM, steps: int):
    process = ddpm.build(chain)
    found = dpmpp.sample(process, DPMSolver(steps=steps), predict, start, clip=False)

    scheduler: Any = dpmpp.export(process, DPMSolver(steps=steps), clip=False).scheduler
    scheduler.alphas_cumprod = process.alpha_bars(torch.device("cpu"))  # theirs are multiplied in fp32
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == process.grid(steps)
    x = start() * float(process.scales(torch.tensor([chain.timesteps - 1]))[1])
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(5)), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 18, 40])
def test_on_edms_levels_it_makes_the_steps_of_diffusers(steps: int):
    settings = EDM(sigma_data=0.6)
    process = edm.build(settings)

    def raw(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(0.7 * x + c_noise.view(-1, 1, 1, 1).to(x.dtype))

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        skip, out, scale = process.preconditioning(sigma.view(-1, 1, 1, 1))
        return x * skip + raw(x * scale, sigma.log() / 4) * out

    found = dpmpp.sample(process, DPMSolver(steps=steps), denoised, start, clip=False)
    scheduler: Any = dpmpp.export(process, DPMSolver(steps=steps), clip=False).scheduler
    scheduler.set_timesteps(steps)
    x = start() * settings.sigma_max
    for t in scheduler.timesteps:
        x = scheduler.step(raw(scheduler.scale_model_input(x, t), t.expand(5)), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_its_error_falls_with_the_square_of_the_steps():
    std = 0.5
    settings = EDM(sigma_min=1e-3)
    exact = start() * settings.sigma_max * std / math.hypot(std, settings.sigma_max)

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.view(-1, 1, 1, 1).square()
        return std**2 / (std**2 + variance) * x

    errors = []
    for steps in (32, 64, 128):
        found = dpmpp.sample(edm.build(settings), DPMSolver(steps=steps), denoised, start, clip=False)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@pytest.mark.parametrize("values", [{}, {"diffusion.kind": "ddpm"}])
def test_a_recipe_of_any_process_takes_it_and_counts_one_evaluation_a_step(values: dict[str, Any]):
    recipe = Recipe().replace(values | {"sampler.kind": "dpmpp", "sampler.steps": 12})
    assert recipe.nfe == 12
    assert parts.module("diffusion.samplers", recipe.sampler.kind) is dpmpp
