"""Every sampler against its own discrete closed form, where the exact denoiser is known: Gaussian data.

For data N(0, s^2) the posterior mean is linear in the noisy image, so a sampler is a linear map of the noise that it
draws. Its coefficients are worked out here in float64, from the published update rules. Those of every kind of network
(U-Net on pixels and latents, GRU on pen strokes, MDT with learned variances) are here, with the shapes of their x.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from scrimp_trainers.codecs.codec import Codec
from scrimp_trainers.common import parts
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.diffusion import ddpm
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.diffusion import DDPM, EDM, IDDPM, Chain
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.samplers import DDIM, Ancestral, AnySampler, DPMSolver, Heun
from scrimp_trainers.sampling import generate_items

COUNT = 1000


@dataclass(frozen=True)
class Data:
    """Gaussian data: their deviation, and whether their estimates are clipped to [-1, 1], as pixels are."""

    std: float
    clip: bool
    shape: tuple[int, ...] = (1, 1, 1)


# A pixel of +-1 is four deviations away: 6 of 100,000 draws are clipped, and none of those in these tests.
DATA = {
    "pixels": Data(0.25, clip=True),
    "latents": Data(1.0, clip=False),
    "latents of vq": Data(1.0, False, (3, 1, 1)),
    "strokes": Data(0.5, False, (3, 2)),
}


class Noise:
    """Standard normal draws, the first of which starts the sampling."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = (COUNT, *shape)
        self.generator = torch.Generator().manual_seed(0)
        self.drawn: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.drawn.append(torch.randn(self.shape, generator=self.generator, dtype=torch.float64))
        return self.drawn[-1]


@cache
def abars(betas: str, start: float, end: float, timesteps: int) -> list[float]:
    return ddpm.exact_alpha_bars(betas, start, end, timesteps).float().tolist()


def abar(settings: Chain, t: int) -> float:
    if t < 0:
        return 1.0
    return abars(settings.betas, settings.beta_start, settings.beta_end, settings.timesteps)[t]


def grid_of(settings: Chain, sampler: AnySampler) -> list[int]:
    """Return the steps of the chain that a sampler takes, and -1 for the clean image."""
    return [math.ceil(settings.timesteps * (sampler.steps - i) / sampler.steps) - 1 for i in range(sampler.steps + 1)]


def noise_share(settings: Chain, t: int, std: float) -> float:
    """Return what x_t is multiplied by to estimate the noise in it."""
    share = abar(settings, t)
    return math.sqrt(1 - share) / (std**2 * share + 1 - share)


def exact_variance(settings: Chain, t: int, before: int, std: float) -> float:
    """Return the variance of x_before that is left when x_t is known."""
    alpha = abar(settings, t) / abar(settings, before)
    whole = std**2 * abar(settings, before) + 1 - abar(settings, before)
    return whole * (1 - alpha) / (alpha * whole + 1 - alpha)


def fixed_variances(settings: Chain, t: int, before: int) -> tuple[float, float]:
    """Return beta-tilde and beta of a step (Ho et al., section 3.2)."""
    now, after = abar(settings, t), abar(settings, before)
    return (1 - now / after) * (1 - after) / (1 - now), 1 - now / after


def power_cosine(settings: Chain, sampler: AnySampler, t: int) -> float:
    """Return MDT's guidance scale, of which the power is 4 in its code."""
    assert sampler.guidance_power == 4
    return 1 + (sampler.guidance - 1) * (1 - math.cos(math.pi * (1 - t / settings.timesteps) ** 4)) / 2


def chain(settings: Chain, sampler: Ancestral | DDIM, std: float, hidden_std: float | None = None) -> list[float]:
    """Return the coefficients of the noise in what ancestral sampling (Ho et al., eq. 7) or DDIM (eq. 12) draws.

    With guidance, of classes whose data have the deviation `std`, and all data together `hidden_std`.
    """
    coefficients = np.ones(1)
    for t, before in pairwise(grid_of(settings, sampler)):
        now, after = abar(settings, t), abar(settings, before)
        noise = noise_share(settings, t, std)
        if hidden_std is not None:
            hidden = noise_share(settings, t, hidden_std)
            noise = hidden + power_cosine(settings, sampler, t) * (noise - hidden)
        clean = (1 - math.sqrt(1 - now) * noise) / math.sqrt(now)
        small, large = fixed_variances(settings, t, before)
        if isinstance(sampler, Ancestral):
            alpha = now / after
            factor = (math.sqrt(after) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - after)) / (1 - now)
            variances = {"fixed_small": small, "fixed_large": large}
            variances["learned"] = exact_variance(settings, t, before, std)
            fresh = math.sqrt(variances[sampler.variance]) if before >= 0 else 0.0
        else:
            fresh = sampler.eta * math.sqrt(small)
            factor = math.sqrt(after) * clean + math.sqrt(1 - after - fresh**2) * noise
        coefficients = coefficients * factor
        if isinstance(sampler, Ancestral) or sampler.eta > 0:
            coefficients = np.append(coefficients, fresh)
    return coefficients.tolist()


def heun(settings: EDM, sampler: Heun, std: float) -> list[float]:
    """Return the coefficients of the noise in what EDM's sampler draws (Karras et al., algorithm 2)."""
    high, low = settings.sigma_max ** (1 / settings.rho), settings.sigma_min ** (1 / settings.rho)
    levels = [(high + i / (sampler.steps - 1) * (low - high)) ** settings.rho for i in range(sampler.steps)] + [0.0]
    coefficients = [levels[0]]
    gamma = min(sampler.s_churn / sampler.steps, math.sqrt(2) - 1)
    for level, after in pairwise(levels):
        now = level
        if gamma > 0 and sampler.s_min <= level <= sampler.s_max:
            now = level * (1 + gamma)
            coefficients.append(math.sqrt(now**2 - level**2) * sampler.s_noise)
        slope = now / (std**2 + now**2)
        factor = 1 + (after - now) * slope
        if after > 0:
            factor = 1 + (after - now) / 2 * (slope + after / (std**2 + after**2) * factor)
        coefficients = [factor * value for value in coefficients]
    return coefficients


def dpmpp(settings: EDM | Chain, sampler: DPMSolver, std: float) -> list[float]:
    """Return the coefficient of the noise in what DPM-Solver++(2M) draws (Lu et al. 2022, algorithm 2)."""
    if isinstance(settings, EDM):
        high, low = settings.sigma_max ** (1 / settings.rho), settings.sigma_min ** (1 / settings.rho)
        sigmas = [(high + i / (sampler.steps - 1) * (low - high)) ** settings.rho for i in range(sampler.steps)]
        scales = [(1.0, sigma) for sigma in sigmas]
    else:
        grid = [math.ceil(settings.timesteps * (sampler.steps - i) / sampler.steps) - 1 for i in range(sampler.steps)]
        scales = [(math.sqrt(abar(settings, t)), math.sqrt(1 - abar(settings, t))) for t in grid]

    half_log_snrs = [math.log(alpha / sigma) for alpha, sigma in scales]
    coefficient = scales[0][1]
    estimates: list[float] = []
    for i, (alpha, sigma) in enumerate(scales):
        estimates.append(std**2 * alpha / (std**2 * alpha**2 + sigma**2) * coefficient)
        if i == len(scales) - 1:  # at the clean image e^-h is 0
            break
        h = half_log_snrs[i + 1] - half_log_snrs[i]
        target = estimates[i]
        if i > 0:
            r = (half_log_snrs[i] - half_log_snrs[i - 1]) / h
            target = (1 + 1 / (2 * r)) * estimates[i] - 1 / (2 * r) * estimates[i - 1]
        next_alpha, next_sigma = scales[i + 1]
        coefficient = next_sigma / sigma * coefficient - next_alpha * (math.exp(-h) - 1) * target
    return [estimates[-1]]


def predictor(settings: EDM | Chain, sampler: AnySampler, std: float):
    """Return the exact prediction for data N(0, std^2)."""

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        return std**2 / (std**2 + sigma.double().view(-1, *[1] * (x.ndim - 1)) ** 2) * x

    def predicted(x: Tensor, levels: Tensor) -> Tensor:
        assert isinstance(settings, Chain)
        t = int(levels[0])
        noise = noise_share(settings, t, std) * x
        if isinstance(settings, IDDPM):
            return torch.cat([noise, torch.full_like(x, exact_v(settings, sampler, t, std))], 1)
        if settings.prediction == "epsilon":
            return noise
        share = abar(settings, t)
        clean = (x - math.sqrt(1 - share) * noise) / math.sqrt(share)
        return math.sqrt(share) * noise - math.sqrt(1 - share) * clean

    return denoised if isinstance(settings, EDM) else predicted


def exact_v(settings: IDDPM, sampler: AnySampler, t: int, std: float) -> float:
    """Return where the logarithm of the exact variance lies between those of beta-tilde (-1) and beta (1)."""
    grid = grid_of(settings, sampler)
    before = grid[grid.index(t) + 1]
    if before < 0:
        return 0.0  # the last step adds no noise
    small, large = map(math.log, fixed_variances(settings, t, before))
    return 2 * (math.log(exact_variance(settings, t, before, std)) - small) / (large - small) - 1


def drawn(settings: EDM | Chain, sampler: AnySampler, data: Data) -> tuple[Tensor, list[float], Noise]:
    """Return samples, the coefficients that they should have, and the noise that they were made of."""
    noise = Noise(data.shape)
    predict = predictor(settings, sampler, data.std)
    process = parts.build("diffusion", settings)
    part = parts.module("diffusion.samplers", sampler.kind)
    samples = part.sample(process, sampler, predict, noise, clip=data.clip)
    if isinstance(sampler, DPMSolver):
        return samples, dpmpp(settings, sampler, data.std), noise
    if isinstance(sampler, Heun):
        assert isinstance(settings, EDM)
        return samples, heun(settings, sampler, data.std), noise
    assert isinstance(settings, Chain)
    assert isinstance(sampler, Ancestral | DDIM)
    return samples, chain(settings, sampler, data.std), noise


LATENT = DDPM(kind="ddpm", betas="scaled_linear", beta_start=0.0015, beta_end=0.0195)
CHURN = Heun(steps=256, s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.0)
CHIRODIFF = DDPM(kind="ddpm", timesteps=35, beta_start=0.002857, beta_end=0.5714)
SAMPLERS: dict[str, tuple[EDM | Chain, AnySampler]] = {
    "heun": (EDM(sigma_data=0.5), Heun(steps=18)),
    "heun-stochastic": (EDM(sigma_data=0.5), CHURN),
    "ancestral": (DDPM(kind="ddpm"), Ancestral(steps=1000)),
    "ancestral-v": (DDPM(kind="ddpm", prediction="v"), Ancestral(steps=1000)),
    "ancestral-cosine": (DDPM(kind="ddpm", betas="cosine"), Ancestral(steps=1000)),
    "ancestral-50": (DDPM(kind="ddpm"), Ancestral(steps=50)),
    "ancestral-large": (DDPM(kind="ddpm"), Ancestral(steps=1000, variance="fixed_large")),
    "ddim": (DDPM(kind="ddpm"), DDIM(steps=250)),
    "ddim-v": (DDPM(kind="ddpm", prediction="v"), DDIM(steps=250)),
    "ddim-half": (DDPM(kind="ddpm"), DDIM(steps=1000, eta=0.5)),
    "ddim-full": (DDPM(kind="ddpm"), DDIM(steps=1000, eta=1.0)),
    "ldm-bedrooms": (LATENT, DDIM(steps=200, eta=1.0)),
    "ldm-celebahq": (LATENT, DDIM(steps=200)),
    "dpmpp": (DDPM(kind="ddpm"), DPMSolver(steps=100)),
    "dpmpp-v": (DDPM(kind="ddpm", prediction="v"), DPMSolver(steps=100)),
    "dpmpp-edm": (EDM(sigma_data=0.5), DPMSolver(steps=40)),
    "chirodiff, 35 steps": (CHIRODIFF, Ancestral(steps=35)),
    "mdt": (IDDPM(kind="iddpm"), Ancestral(steps=250, variance="learned")),
    "mdt, ddim": (IDDPM(kind="iddpm"), DDIM(steps=50)),
}
each = pytest.mark.parametrize("name", SAMPLERS)
both = pytest.mark.parametrize("data", DATA.values(), ids=DATA)


@each
@both
def test_a_sampler_equals_its_closed_form(name, data):
    samples, coefficients, noise = drawn(*SAMPLERS[name], data)
    expected = sum(c * n for c, n in zip(coefficients, noise.drawn, strict=True))
    assert isinstance(expected, Tensor)
    assert expected.abs().max() > 2 * data.std
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-4)


# Steps with which the true deviation is met within 1%. At 18 steps Heun's is 7% too large for pixels; a chain of 1,000
# linear betas, with the smaller of DDPM's two variances, stays 1.5% too small however many of its steps are taken.
LONG = DDPM(kind="ddpm", timesteps=2000, beta_start=5e-5, beta_end=0.01)
ENOUGH: dict[str, tuple[EDM | Chain, AnySampler]] = {
    "heun, NFE 95": (EDM(sigma_data=0.5), Heun(steps=48)),
    "heun-stochastic, NFE 511": (EDM(sigma_data=0.5), CHURN),
    "ancestral, NFE 2000": (LONG, Ancestral(steps=2000)),
    "ancestral-cosine, NFE 1000": (DDPM(kind="ddpm", betas="cosine"), Ancestral(steps=1000)),
    "ddim, NFE 1000": (DDPM(kind="ddpm"), DDIM(steps=1000)),
    "ddim-half, NFE 1000": (DDPM(kind="ddpm"), DDIM(steps=1000, eta=0.5)),
    "ddim-full, NFE 2000": (LONG, DDIM(steps=2000, eta=1.0)),
    "dpmpp, NFE 100": (DDPM(kind="ddpm"), DPMSolver(steps=100)),
    "dpmpp-edm, NFE 80": (EDM(sigma_data=0.5), DPMSolver(steps=80)),
}


@pytest.mark.parametrize("name", ENOUGH)
@pytest.mark.parametrize("data", [DATA["pixels"], DATA["latents"]], ids=["pixels", "latents"])
def test_with_enough_steps_the_deviation_is_the_datas(name, data):
    settings, sampler = ENOUGH[name]
    samples, coefficients, _ = drawn(settings, sampler, data)
    deviation = math.hypot(*coefficients)
    assert deviation == pytest.approx(data.std, rel=0.01)
    assert samples.std().item() == pytest.approx(deviation, rel=0.08)  # 1,000 samples


@pytest.mark.parametrize("steps", [25, 250])
def test_with_exact_variances_the_deviation_is_the_datas_in_few_steps(steps):
    settings, data = IDDPM(kind="iddpm"), DATA["latents"]
    learned, fixed = Ancestral(steps=steps, variance="learned"), Ancestral(steps=steps)
    assert math.hypot(*chain(settings, learned, data.std)) == pytest.approx(data.std, rel=0.01)
    assert math.hypot(*chain(settings, fixed, data.std)) < 0.985 * data.std


KINDS = ("ldm-", "chirodiff-", "mdt-", "prune-reweight-imagenet")
PRESETS = [
    name for name in recipes.presets() if name.startswith(KINDS) and recipes.load(name).sparsity.method == "dense"
]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("ldm-", "chirodiff-"))])
def test_presets_of_latents_and_strokes_sample_without_clipping_by_a_sampler_tested_here(preset):
    recipe = recipes.load(preset)
    assert not recipe.codec.bounded
    assert (recipe.diffusion, recipe.sampler) in SAMPLERS.values()


# --- what a recipe draws with a network that knows the answer

SHAPES = {"strokes": (3, 6), "kl": (4, 2, 2), "vq": (3, 2, 2)}
STD, HIDDEN_STD = 0.8, 1.1


class Exact(Denoiser):
    """Estimates exactly the noise in Gaussian data, of deviation `STD` if a class is told, and else `HIDDEN_STD`."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.shape = torch.Size(SHAPES[recipe.codec.kind])
        self.classes = 2 if recipe.conditioning.classes else 0
        self.weight = torch.nn.Parameter(torch.zeros(1))
        if recipe.codec.kind == "strokes":
            self.register_buffer("lengths", torch.ones(self.shape[-1] + 1))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        settings, t = self.recipe.diffusion, int(levels[0])
        assert isinstance(settings, Chain)
        assert (conditions.mask is not None) == (self.lengths is not None)
        is_hidden = self.classes and bool((conditions.labels == self.classes).all())
        std = HIDDEN_STD if is_hidden else STD
        noise = noise_share(settings, t, std) * images
        if not isinstance(settings, IDDPM):
            return noise
        return torch.cat([noise, torch.full_like(noise, exact_v(settings, self.recipe.sampler, t, std))], 1)


class AsItIs:
    """A codec that does nothing."""

    def decode(self, x: Tensor) -> Items:
        return Items(x)


def noise_of_samples(seed: int, shape: tuple[int, ...], count: int, draws: int) -> list[Tensor]:
    """Return the noise that `generate_items` draws: of each sample by a generator of its own."""
    generators = [torch.Generator().manual_seed(seed_of("sample", seed, i)) for i in range(count)]
    return [torch.stack([torch.randn(shape, generator=each) for each in generators]) for _ in range(draws)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_with_an_exact_network_draws_the_closed_form_of_its_sampler(preset):
    recipe = recipes.load(preset).replace({"training.precision": "fp32"})
    assert isinstance(recipe.diffusion, Chain)
    assert isinstance(recipe.sampler, Ancestral | DDIM)
    network = Exact(recipe)
    samples = next(generate_items(network, recipe, 5, seed=3, codec=cast(Codec, AsItIs()))).values

    plain = chain(recipe.diffusion, recipe.sampler, STD)
    noise = noise_of_samples(3, tuple(network.shape), 5, len(plain))
    guided = recipe.sampler.guidance_channels if recipe.sampler.guidance != 1 else 0
    coefficients = chain(recipe.diffusion, recipe.sampler, STD, HIDDEN_STD) if guided else plain
    split = guided or 0
    expected = torch.cat(
        [
            cast(Tensor, sum(c * n for c, n in zip(coefficients, noise, strict=True)))[:, :split],
            cast(Tensor, sum(c * n for c, n in zip(plain, noise, strict=True)))[:, split:],
        ],
        1,
    )
    torch.testing.assert_close(samples, expected, rtol=0, atol=2e-3)


def test_clipping_would_shrink_latents():
    settings, sampler = SAMPLERS["ancestral"]
    samples, _, _ = drawn(settings, sampler, Data(1.0, clip=True))
    assert samples.std() < 0.75
