"""docs/papers.md says of every preset and space what differs from the paper: compared here with both."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from published_networks import (
    ATTENTION,
    DECODER,
    EMBEDDING,
    ENCODER,
    FIRST,
    LAST,
    MIDDLE,
    RESAMPLING,
    STABLE_DIFFUSION_2,
    latent_unet,
    mdt,
    song_unet,
)
from torch import nn

from scrimp_spaces.space import load_space, names
from scrimp_trainers.networks import unet2d_condition
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.networks import UNet2DCondition
from scrimp_trainers.training.state import build_network

PAGE = (Path(__file__).parent.parent / "docs" / "papers.md").read_text()

EDM: dict[str, Any] = {
    "diffusion.kind": "edm",
    "diffusion.sigma_data": 0.5,
    "diffusion.p_mean": -1.2,
    "diffusion.p_std": 1.2,
    "diffusion.sigma_min": 0.002,
    "diffusion.sigma_max": 80.0,
    "diffusion.rho": 7.0,
    "network.channels": 128,
    "network.blocks": 4,
    "network.attention": (16,),
    "network.decoder_attention": "last",
    "network.resampling": "residual",
    "network.embedding_multiplier": 4,
    "network.head_channels": None,
    "optimizer.kind": "adam",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.warmup_kimg": 10_000.0,
    "optimizer.max_gradient_norm": None,
    "ema.halflife_kimg": 500.0,
    "ema.rampup_ratio": 0.05,
    "sampler.kind": "heun",
}
"""What all models in EDM's code have in common."""
AMBIENT: dict[str, Any] = EDM | {
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.01,
    "ambient.weighting": "released",
    "ambient.noise": "fixed",
    "ambient.order": "augment_first",
    "sampler.steps": 40,
    "sampler.s_churn": 0.0,
}
LATENT: dict[str, Any] = EDM | {
    "codec.kind": "kl",
    "codec.encoder": "stabilityai/sd-vae-ft-mse",
    "codec.decoder": "stabilityai/sd-vae-ft-ema",
    "mafp.p1": 0.1,
    "mafp.p2": 0.1,
}
LOW_SHOT: dict[str, Any] = LATENT | {
    "mafp.trigger": "batch_all_zero",
    "patches.real_p": 1.0,
    "patches.coordinates": True,
    "ood.weight": 1.0,
    "ood.constant": 100.0,
    "network.multipliers": (2, 2, 2),
    "network.dropout": 0.1,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.0,
    "training.kimg": 40_000.0,
    "training.batch_size": 64,
    "training.flip": True,
    "training.precision": "fp16",
    "training.loss_scale": 100.0,
    "training.select": "best",
    "sampler.steps": 256,
    "sampler.s_churn": 40.0,
    "sampler.s_min": 0.05,
    "sampler.s_max": 50.0,
    "sampler.s_noise": 1.003,
}
DDPM: dict[str, Any] = {
    "diffusion.kind": "ddpm",
    "diffusion.timesteps": 1000,
    "diffusion.betas": "linear",
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.prediction": "epsilon",
    "network.channels": 128,
    "network.multipliers": (1, 2, 2, 2),
    "network.blocks": 2,
    "network.attention": (16,),
    "network.decoder_attention": "all",
    "network.resampling": "convolution",
    "network.head_channels": None,
    "network.dropout": 0.1,
    "optimizer.kind": "adam",
    "optimizer.lr": 2e-4,
    "optimizer.max_gradient_norm": 1.0,
    "ema.halflife_kimg": 887.2,  # 0.9999 a step of 128 images
    "ema.rampup_ratio": None,
    "training.kimg": 102_400.0,
    "training.batch_size": 128,
    "training.flip": True,
    "sampler.kind": "ancestral",
    "sampler.steps": 1000,
    "sampler.variance": "fixed_large",
}
SPARSE: dict[str, Any] = {
    "diffusion.kind": "ddpm",
    "diffusion.timesteps": 1000,
    "diffusion.betas": "scaled_linear",
    "diffusion.beta_start": 0.0015,
    "diffusion.beta_end": 0.0195,
    "diffusion.prediction": "epsilon",
    "codec.kind": "vq",
    "network.channels": 224,
    "network.multipliers": (1, 2, 3, 4),
    "network.blocks": 2,
    "network.attention": (8, 16, 32),
    "network.decoder_attention": "all",
    "network.head_channels": 32,
    "optimizer.kind": "adamw",
    "optimizer.lr": 2.4e-5,
    "optimizer.warmup_kimg": 0.0,
    "optimizer.weight_decay": 0.01,
    "training.kimg": 1590.0,  # 150 epochs of 10,598 images
    "training.batch_size": 12,
    "sampler.kind": "ddim",
    "sampler.steps": 200,
    "sampler.eta": 1.0,
}
LDM = {path: value for path, value in SPARSE.items() if path not in ("training.kimg", "sampler.eta")}
"""What its models of all three sets of images have in common."""
CHIRODIFF: dict[str, Any] = {
    "diffusion.kind": "ddpm",
    "diffusion.timesteps": 1000,
    "diffusion.betas": "linear",
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.prediction": "epsilon",
    "codec.kind": "strokes",
    "codec.pen_threshold": 0.8,
    "network.kind": "gru",
    "network.width": 96,
    "network.layers": 3,
    "network.time_features": 8,
    "optimizer.kind": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.warmup_kimg": 0.0,
    "optimizer.weight_decay": 0.01,
    "ema.halflife_kimg": 887.2,  # 0.9999 a step of 128 drawings
    "ema.rampup_ratio": None,
    "training.batch_size": 128,
    "sampler.kind": "ancestral",
    "sampler.steps": 1000,
    "sampler.variance": "fixed_small",
}
"""Of the sparse paper's summary, and where it says nothing of ChiroDiff's code."""
CHIRODIFF_RELEASED: dict[str, Any] = {
    path: value for path, value in CHIRODIFF.items() if path != "training.batch_size"
} | {
    "diffusion.timesteps": 35,
    "diffusion.beta_start": round(1000 / 35 * 1e-4, 6),
    "diffusion.beta_end": round(1000 / 35 * 0.02, 4),
    "codec.form": "absolute",
    "optimizer.max_gradient_norm": 0.1,
    "training.precision": "fp16",
    "sampler.steps": 35,
}
"""Of ChiroDiff's code alone."""
MDT: dict[str, Any] = {
    "diffusion.kind": "iddpm",
    "diffusion.timesteps": 1000,
    "diffusion.betas": "linear",
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.prediction": "epsilon",
    "diffusion.vlb_weight": 0.001,
    "network.kind": "mdt",
    "network.patch_size": 2,
    "codec.kind": "kl",
    "codec.encoder": "stabilityai/sd-vae-ft-mse",
    "codec.decoder": "stabilityai/sd-vae-ft-ema",
    "conditioning.classes": True,
    "conditioning.label_drop": 0.1,
    "masking.ratio": 0.3,
    "optimizer.weight_decay": 0.0,
    "training.batch_size": 256,
    "training.precision": "fp32",
    "ema.halflife_kimg": 1774.4,  # 0.9999 a step of 256 images
    "ema.rampup_ratio": None,
    "sampler.kind": "ancestral",
    "sampler.steps": 250,
    "sampler.variance": "learned",
}
MDT_V2: dict[str, Any] = MDT | {
    "network.version": 2,
    "masking.spread": 0.2,
    "optimizer.kind": "adan",
    "optimizer.lr": 3e-4,
    "optimizer.max_gradient_norm": 1.0,
}
MDT_S: dict[str, Any] = {"network.channels": 384, "network.layers": 12, "network.heads": 6}
GUIDED: dict[str, Any] = {"sampler.guidance": 3.8, "sampler.guidance_power": 4.0, "sampler.guidance_channels": 3}
DCR: dict[str, Any] = {
    "diffusion.kind": "ddpm",
    "diffusion.timesteps": 1000,
    "diffusion.betas": "scaled_linear",
    "diffusion.beta_start": 0.00085,
    "diffusion.beta_end": 0.012,
    "diffusion.prediction": "v",
    "network.kind": "unet2d_condition",
    "codec.kind": "kl",
    "optimizer.lr": 5e-6,
    "optimizer.warmup_kimg": 80.0,  # 5,000 steps of 16 images
    "training.kimg": 1600.0,  # 100,000 steps
    "training.batch_size": 16,
}
"""Of DCR's page, and of Stable Diffusion 2.1."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "ambient-cifar10": AMBIENT | {"training.kimg": 30_000.0, "training.batch_size": 256},
    "ambient-ffhq": AMBIENT
    | {
        "network.multipliers": (1, 2, 2, 2),
        "network.dropout": 0.05,
        "mafp.p1": 0.15,
        "ambient.sigma_n": 0.5,
        "training.kimg": 30_000.0,
        "training.batch_size": 256,
    },
    "ambient-tinyimagenet": AMBIENT | {"training.kimg": 80_000.0, "training.batch_size": 512},
    "chirodiff-kanjivg": CHIRODIFF,
    "chirodiff-kanjivg-magran": CHIRODIFF | {"sparsity.method": "magran"},
    "chirodiff-kanjivg-rigl": CHIRODIFF | {"sparsity.method": "rigl"},
    "chirodiff-kanjivg-static": CHIRODIFF | {"sparsity.method": "static"},
    "chirodiff-quickdraw": CHIRODIFF,
    "chirodiff-quickdraw-magran": CHIRODIFF | {"sparsity.method": "magran"},
    "chirodiff-quickdraw-rigl": CHIRODIFF | {"sparsity.method": "rigl"},
    "chirodiff-quickdraw-static": CHIRODIFF | {"sparsity.method": "static"},
    "chirodiff-released": CHIRODIFF_RELEASED,
    "chirodiff-vmnist": CHIRODIFF,
    "chirodiff-vmnist-magran": CHIRODIFF | {"sparsity.method": "magran"},
    "chirodiff-vmnist-rigl": CHIRODIFF | {"sparsity.method": "rigl"},
    "chirodiff-vmnist-static": CHIRODIFF | {"sparsity.method": "static"},
    "ddpm": DDPM | {"optimizer.warmup_kimg": 640.0},
    "edm": EDM
    | {
        "network.multipliers": (2, 2, 2),
        "network.dropout": 0.13,
        "mafp.p1": 0.12,
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.0,
        "training.kimg": 200_000.0,
        "training.batch_size": 512,
        "training.flip": False,
        "sampler.steps": 18,
        "sampler.s_churn": 0.0,
    },
    "ld-diffusion-ffhq": LATENT
    | {"patches.real_p": 0.5, "patches.sizes": (0.75,), "training.kimg": 20_000.0, "sampler.steps": 40},
    "ld-diffusion-lowshot": LOW_SHOT,
    "ld-diffusion-lowshot-released": LOW_SHOT,
    **{
        name + end: settings | ({"sparsity.method": end[1:]} if end else {})
        for name, settings in {
            "ldm-bedrooms": SPARSE,
            "ldm-celebahq": LDM | {"optimizer.lr": 2e-6, "training.kimg": 1875.0, "sampler.eta": 0.0},
            "ldm-imagenette": LDM,
        }.items()
        for end in ("", "-magran", "-rigl", "-static")
    },
    "magran-dm": SPARSE | {"sparsity.method": "magran"},
    "mdt-b2": MDT_V2
    | {"network.channels": 768, "network.layers": 12, "network.heads": 12, "network.decoder_layers": 4},
    "mdt-s2": MDT_V2 | MDT_S | {"network.decoder_layers": 6, "optimizer.lr": 5e-4},
    "mdt-xl2": MDT_V2
    | GUIDED
    | {"network.channels": 1152, "network.layers": 28, "network.heads": 16, "network.decoder_layers": 4},
    "prune-reweight-cifar10": DDPM
    | {"optimizer.warmup_kimg": 0.0, "conditioning.classes": True, "conditioning.label_drop": 0.1, "coreset.keep": 0.1},
    "prune-reweight-imagenet": {},
    "prune-reweight-sd": {},
    "rigl-dm": SPARSE | {"sparsity.method": "rigl"},
    "sd-ambient": DCR | {"ambient.weighting": "released"},
    "sd-finetune": DCR,
    "static-dm": SPARSE | {"sparsity.method": "static"},
    "tiny-ddpm": {},
    "tiny-edm": {},
    "tiny-mdt": {},
}
"""What is known of each paper's settings, from released code or, where there is none, from the paper's summary."""

PUBLISHED_SPACES: dict[str, dict[str, Any]] = {
    "ambient": {"scoring.samples": 50_000, "budget.rungs_kimg": 30_000.0},
    "chirodiff": {"budget.rungs_kimg": 51_000.0, "sampler.kind": "ancestral", "sampler.steps": 1000},
    "ld-diffusion": {
        "scoring.samples": 5000,
        "budget.repeats": 10,
        "budget.rungs_kimg": 40_000.0,
        "optimizer.warmup_kimg": 10_000.0,
    },
    "ld-diffusion-ffhq": {
        "budget.repeats": 10,
        "budget.rungs_kimg": 20_000.0,
        "optimizer.warmup_kimg": 10_000.0,
        "sampler.steps": 40,
    },
    "ldm": {"budget.rungs_kimg": 1590.0, "sampler.steps": 200},
    "prune-reweight": {"sampler.kind": "ancestral", "sampler.steps": 1000},
    "scrimp": {"budget.rungs_kimg": 200_000.0, "optimizer.warmup_kimg": 10_000.0},
    "sparse-to-sparse": {"budget.rungs_kimg": 1590.0, "sampler.steps": 200},
}
"""Of the spaces with a paper: a length is that of the last rung."""

NETWORKS = {
    "edm": song_unet(32, (2, 2, 2), inputs=3, outputs=3, ncsnpp=False, augment_labels=0),
    "ambient-ffhq": song_unet(64, (1, 2, 2, 2), inputs=3, outputs=3, ncsnpp=True, augment_labels=9),
    "ld-diffusion-lowshot": song_unet(32, (2, 2, 2), inputs=6, outputs=4, ncsnpp=True, augment_labels=9),
    "ldm-bedrooms": latent_unet(),
}
"""The published networks' parameters by part."""
SINUSOIDS = 1000 * 128
"""The table that the PyTorch version of DDPM's network counts among its parameters."""


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table of a section, or of the page's beginning, without quotes and header."""
    section = PAGE.split(f"\n## {heading}\n")[1] if heading else PAGE
    rows = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)[0].splitlines()
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows[2:]]


def number(cell: str) -> int | None:
    return int(cell.replace(",", "")) if cell[:1].isdigit() else None


def value_of(sections: Any, path: str) -> Any:
    for name in path.split("."):
        sections = getattr(sections, name)
    return sections


def network_of(preset: str, items: str) -> Denoiser:
    channels, size = map(int, items.split("x")[:2])
    recipe = recipes.load(preset)
    classes = 1000 if PRESETS[preset][3].startswith("ImageNet") else 10
    if isinstance(recipe.network, UNet2DCondition):
        with torch.device("meta"):
            return unet2d_condition.UNet2DConditionDenoiser(UNet2DConditionModel(**STABLE_DIFFUSION_2))
    with torch.device("meta"):
        return build_network(recipe, size, channels, classes if recipe.conditioning.classes else 0, seed=0)


PRESETS = {row[0]: row for row in table("")}


def test_every_preset_is_on_the_page_and_has_its_published_settings_here():
    assert list(PRESETS) == recipes.presets()
    assert list(PUBLISHED) == recipes.presets()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_that_the_page_states(preset):
    _, _, _, _, _, items, published, here = PRESETS[preset]
    assert sum(parameter.numel() for parameter in network_of(preset, items).parameters()) == number(here)
    like = preset.removesuffix("-released")
    if like in NETWORKS:
        assert NETWORKS[like].total() == number(published)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("edm", 55.73), ("ambient-ffhq", 62.76), ("ld-diffusion-lowshot", 56.41), ("ldm-bedrooms", 274.06)],
)
def test_the_published_structure_has_the_published_count(preset, millions):
    assert round(NETWORKS[preset].total() / 1e6, 2) == millions


def test_ddpms_network_is_the_published_one_but_for_the_table_of_sinusoids():
    here = number(PRESETS["ddpm"][7])
    assert here is not None
    assert here == number(PRESETS["ddpm"][6])
    assert round((here + SINUSOIDS) / 1e6, 2) == 35.87


@pytest.mark.parametrize("preset", ["mdt-b2", "mdt-s2", "mdt-xl2", "prune-reweight-imagenet"])
def test_mdts_networks_have_the_parameters_of_the_published_structure(preset):
    network = recipes.load(preset).network.model_dump(exclude={"kind"})
    assert mdt(**network, side=32, inputs=4, outputs=8, classes=1000) == number(PRESETS[preset][7])


def part_of(name: str) -> str:
    """Name the part of a U-Net that a parameter belongs to."""
    patterns = {
        r"\.attentions\.": ATTENTION,
        r"samplers\.": RESAMPLING,
        r"unet\.down_blocks\.": ENCODER,
        r"unet\.mid_block\.": MIDDLE,
        r"unet\.up_blocks\.": DECODER,
        r"time_embedding|^augment": EMBEDDING,
        r"conv_in": FIRST,
        r"conv_norm_out|conv_out": LAST,
    }
    return next(part for pattern, part in patterns.items() if re.search(pattern, name))


@pytest.mark.parametrize("preset", ["ldm-bedrooms", "ldm-celebahq-rigl"])
def test_latent_diffusions_network_is_normalised_in_32_groups(preset):
    groups = {
        module.num_groups for module in network_of(preset, "3x64x64").modules() if isinstance(module, nn.GroupNorm)
    }
    assert groups == {32}


def test_the_parts_of_networks_that_differ_are_those_on_the_page():
    expected = set()
    for preset, published in NETWORKS.items():
        here: Counter[str] = Counter()
        for name, parameter in network_of(preset, PRESETS[preset][5]).named_parameters():
            here[part_of(name)] += parameter.numel()
        assert here[ATTENTION] == published[ATTENTION] > 0
        expected |= {
            (preset, part, published[part], here[part]) for part in published | here if published[part] != here[part]
        }
    rows = table("Parts of the networks that differ")
    assert {(preset, part, number(one), number(other)) for preset, part, one, other, _ in rows} == expected
    assert len(rows) == len(expected)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_settings_that_differ_are_those_on_the_page():
    expected = []
    for preset, settings in PUBLISHED.items():
        recipe = recipes.load(preset)
        for path in sorted(settings):
            here = value_of(recipe, path)
            if here != settings[path]:
                expected.append([preset, path, plain(settings[path]), plain(here)])
    rows = table("Settings that differ")
    stated = [[preset, path, yaml.safe_load(one), yaml.safe_load(other)] for preset, path, one, other, _ in rows]
    assert stated == expected


def test_each_space_is_beside_its_preset():
    recipes = {name: load_space(name).recipe for name in names()}
    for preset, row in PRESETS.items():
        named = [name for name in row[4].split(", ") if name]
        assert named == [name for name, recipe in recipes.items() if recipe == preset]


def test_the_settings_of_spaces_that_differ_are_those_on_the_page():
    expected = []
    for name, settings in PUBLISHED_SPACES.items():
        space = load_space(name)
        for path in sorted(settings):
            is_own = path.split(".")[0] in ("scoring", "budget")
            here = value_of(space if is_own else space.base(), path)
            if path == "budget.rungs_kimg":
                here = here[-1]
            if here != settings[path]:
                expected.append([name, path, settings[path], here])
    rows = table("Spaces that differ from their paper")
    stated = [[name, path, yaml.safe_load(one), yaml.safe_load(other)] for name, path, one, other, _ in rows]
    assert stated == expected
