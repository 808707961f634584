"""What every preset promises: it is found here by its file."""

import pytest
import torch
import yaml
from drawings_small import small_drawings
from techniques_small import autoencoder, plain_recipe, session

from benchmarks import text_digits
from scrimp_platform.cli import commands
from scrimp_trainers.common import metrics_log
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.recipe import recipe as recipes

NARROW = {
    "unet": {"network.channels": 8, "network.blocks": 1, "network.head_channels": None},
    "mdt": {"network.channels": 16, "network.layers": 4, "network.decoder_layers": 2, "network.heads": 2},
    "gru": {"network.width": 8, "network.layers": 1},
    "unet2d_condition": {},  # the stand-in is narrow
}
DATA = {"images": "digits", "strokes": "data"}
SLOW = pytest.mark.slow
TOO_LARGE = ("ldm-", "mdt-b2", "mdt-xl2")
"""Presets whose networks train here only where they are narrow."""


def is_like_another(name):
    """Whether a preset differs from the one of Bedrooms in numbers alone."""
    return name.startswith(("ldm-celebahq", "ldm-imagenette"))


EVERY = pytest.mark.parametrize("name", recipes.presets())
DRAWING_MOST = {"ambient-cifar10", "chirodiff-vmnist", "ld-diffusion-lowshot"}
"""Presets that between them draw whatever a preset draws; the others' gradients are compared in the slow tests."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, stand_in):
    """Where a dataset of each modality lies, and what else a preset names."""
    folder = tmp_path_factory.mktemp("presets")
    (folder / "stable-diffusion").symlink_to(stand_in)
    text_digits.write_images(folder / "images")
    prepare(str(folder / "images"), folder / "captioned", Options(size=32, limit=96, classifier=False))
    small_drawings(folder, 64)
    prepare("digits", folder / "digits", Options(size=32, limit=96, classifier=False))
    return folder


def without_downloads(name, files, **values):
    """Return a preset that asks for no weights of others and for a short sampler."""
    recipe = recipes.load(name)
    stand_ins = {
        "coreset.score": "random",
        "reweighting.recipe": plain_recipe(files),
        "reweighting.kimg": 0.02,
        "sampler.steps": 2,
        "training.batch_size": 8,
    }
    if recipe.codec.modality == "images":
        codec = autoencoder(files, "vq" if recipe.codec.kind == "vq" else "kl")
        stand_ins |= {"codec.encoder": codec, "codec.decoder": codec}
    if recipe.conditioning.text:
        model = str(files / "stable-diffusion")
        stand_ins |= {"conditioning.text": model, "network.pretrained": model}
        stand_ins |= {"codec.encoder": model, "codec.decoder": model}
    return recipe.replace(stand_ins | {path.replace("__", "."): value for path, value in values.items()})


def narrowed(name, files, **values):
    """Return such a preset with a small network."""
    recipe = without_downloads(name, files, **values)
    return recipe.replace(NARROW[recipe.network.kind])


def data_of(recipe, files):
    """Return the folder of a dataset that fits a recipe."""
    return files / ("captioned" if recipe.conditioning.text else DATA[recipe.codec.modality])


def trained(recipe, files, folder, kimg=None):
    """Train as `scrimp train` does, and return the lines that were written."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    data = data_of(recipe, files)
    commands.train(str(folder / "recipe.yaml"), data, folder / "out", kimg, 0, None, 1000)
    return metrics_log.read_rows(folder / "out" / "metrics.jsonl")


@EVERY
def test_a_preset_says_what_it_is_and_survives_a_round_trip(name):
    recipe = recipes.load(name)
    assert recipe.about
    assert recipes.parse(yaml.safe_load(recipe.to_yaml()), name) == recipe


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if is_like_another(name) else ()) for name in recipes.presets()]
)
def test_a_preset_trains_with_a_narrow_network(name, files, tmp_path):
    recipe = narrowed(name, files, training__kimg=0.08)
    check(recipe, trained(recipe, files, tmp_path), kimg=0.08)


def first_gradients(recipe, files, folder):
    """Return the gradients that the optimizer is given at the first step, of a network without layers of zeros.

    Behind such layers, with which training begins, nothing that is dropped would matter.
    """
    repeat = session(recipe, open_dataset(data_of(recipe, files)), folder)
    generator = torch.Generator().manual_seed(0)
    for parameter in repeat.state.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    seen = []

    def note(*_):
        gradients = [parameter.grad for parameter in repeat.state.network.parameters()]
        seen.append([gradient.clone() for gradient in gradients if gradient is not None])

    repeat.state.optimizer.register_step_pre_hook(note)
    next(repeat.steps())
    return torch.cat([gradient.flatten() for gradient in seen[0]])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DRAWING_MOST else pytest.mark.slow) for name in recipes.presets()]
)
def test_a_presets_gradients_do_not_depend_on_the_microbatch(name, files, tmp_path):
    recipe = narrowed(name, files, training__kimg=0.016, training__precision="fp32")
    whole = first_gradients(recipe, files, tmp_path / "whole")
    parts = first_gradients(recipe.replace({"training.microbatch": 3}), files, tmp_path / "parts")
    assert whole.abs().max() > 0
    assert (parts - whole).abs().max() < 1e-4 * whole.abs().max()


def test_cutting_a_preset_short_cuts_its_reference_short_too(files, tmp_path):
    recipe = narrowed("prune-reweight-cifar10", files, reweighting__kimg=0.04)
    check(recipe, trained(recipe, files, tmp_path, kimg=0.016), kimg=0.016)
    assert recipes.load(tmp_path / "out" / "recipe.yaml").reweighting.kimg == 0.016


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes.presets() if not name.startswith(TOO_LARGE)])
def test_a_preset_trains(name, files, tmp_path):
    recipe = without_downloads(name, files, training__kimg=0.016)
    check(recipe, trained(recipe, files, tmp_path), kimg=0.016)


def check(recipe, written, kimg):
    assert written
    for line in written:
        assert line.kimg == pytest.approx(kimg)
        assert 0 < line.loss < 10
        assert line.seconds > 0
        assert line.train_flops > 0
        assert line.nonzero_fraction < 0.75 if recipe.sparsity.on else line.nonzero_fraction == 1
