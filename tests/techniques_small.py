"""Every technique at its smallest, for tests that walk through all of them, alone and in pairs."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import torch
from trainers_small import small

from scrimp_trainers.common import ranks
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe import techniques
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training.session import Session

NAMES = [name for name, section in Recipe() if type(section).__module__ == techniques.__name__]
"""The techniques: the sections of a recipe that `recipe/techniques.py` defines."""

TRANSFORMER: dict[str, Any] = {
    "network.kind": "mdt",
    "network.channels": 16,
    "network.layers": 4,
    "network.decoder_layers": 2,
    "network.heads": 2,
}
"""The smallest network whose tokens can be hidden."""

PAIRS = list(itertools.combinations(NAMES, 2))


@cache
def autoencoder(folder: Path, kind: str = "kl") -> str:
    """Write an autoencoder of random weights that halves images, and return its folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(0)
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    blocks |= {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    network = VQModel(**blocks) if kind == "vq" else AutoencoderKL(**blocks)
    network.save_pretrained(folder / f"autoencoder-{kind}")
    return str(folder / f"autoencoder-{kind}")


@cache
def plain_recipe(folder: Path) -> str:
    """Write a small recipe without techniques, and return its path."""
    (folder / "plain.yaml").write_text(small().to_yaml())
    return str(folder / "plain.yaml")


def examples(folder: Path, codec: str = "kl") -> dict[str, dict[str, Any]]:
    """Return for each technique what turns it on and lets it act within ten steps; its files lie in `folder`."""
    files = autoencoder(folder, codec)
    return {
        "codec": {"codec.kind": codec, "codec.encoder": files, "codec.decoder": files},
        "mafp": {"mafp.p1": 0.3, "mafp.p2": 0.3},
        "patches": {"patches.real_p": 0.5, "patches.sizes": [0.5]},
        "masking": {"masking.ratio": 0.3, "masking.spread": 0.2} | TRANSFORMER,
        "ood": {"ood.weight": 10.0, "ood.constant": 1.0},
        "ambient": {"ambient.sigma_n": 0.3},
        "sparsity": {"sparsity.method": "rigl", "sparsity.interval": 5, "sparsity.accumulate": 3},
        "coreset": {"coreset.keep": 0.5, "coreset.score": "random"},
        "reweighting": {
            "reweighting.method": "dro",
            "reweighting.recipe": plain_recipe(folder),
            "reweighting.kimg": 0.1,
        },
    }


def with_techniques(
    names: tuple[str, ...], folder: Path, preset: str = "tiny-edm", codec: str = "kl", **values: object
) -> Recipe:
    """Return a small recipe of ten steps with these techniques on."""
    on = {path: value for name in names for path, value in examples(folder, codec)[name].items()}
    base = {"training__kimg": 0.08, "training__flip": True, "sampler__steps": 2, "network__attention": []}
    base |= {"conditioning__classes": True, "conditioning__label_drop": 0.2}
    return small(preset, **base | values).replace(on)


def session(recipe: Recipe, dataset: Dataset, folder: Path, seed: int = 3) -> Session:
    """Prepare what the techniques need, and start a session without scores."""
    device = torch.device("cpu")
    return Session(
        recipe,
        dataset,
        folder,
        seed,
        prepare_techniques(recipe, dataset, seed, device, *ranks.rank_and_world()),
        device=device,
    )


def train_and_resume(recipe: Recipe, dataset: Dataset, folder: Path, half: int, images: int) -> Session:
    """Train to so many images, and again from half of them; both end with the same bits. Return the whole training."""
    whole, resumed = (session(recipe, dataset, folder) for _ in range(2))
    steps = whole.steps()
    whole.train_to(half, steps, 1e9)
    whole.save("last")
    whole.train_to(images, steps, 1e9)

    resumed.resume()
    assert resumed.state.images == half
    resumed.train_to(images, resumed.steps(), 1e9)
    assert resumed.state.step == whole.state.step
    weights = resumed.state.network.state_dict()
    for name, expected in whole.state.network.state_dict().items():
        assert torch.equal(expected, weights[name]), name
    return whole
