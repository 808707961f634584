"""Latent diffusion as the presets `ldm-*` have it, in a small form: the loss falls, and a resume changes no bit."""

import numpy as np
import pytest
from techniques_small import autoencoder, session, train_and_resume

from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.diffusion import ddpm
from scrimp_trainers.ingest import prepare
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.diffusion import DDPM
from scrimp_trainers.training.loop import read_losses


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where 64 digits and a small VQModel lie."""
    folder = tmp_path_factory.mktemp("latents")
    prepare("digits", folder / "digits", Options(limit=64, size=16, classifier=False))
    return folder


def small(name, files, **values):
    """Return a preset with a network and latents of 8x8 that train in seconds."""
    folder = autoencoder(files, "vq")
    width = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 8}
    shrunk = {f"network.{field}": value for field, value in width.items()}
    shrunk |= {"codec.encoder": folder, "codec.decoder": folder, "training.batch_size": 16}
    return recipes.load(name).replace(shrunk | {path.replace("__", "."): value for path, value in values.items()})


def test_linear_betas_of_latent_diffusion_are_linear_in_their_square_roots():
    diffusion = recipes.load("ldm-bedrooms").diffusion
    assert isinstance(diffusion, DDPM)
    roots = np.linspace(0.0015**0.5, 0.0195**0.5, 1000)
    assert ddpm.build(diffusion).alpha_bar(99) == pytest.approx(np.prod(1 - roots[:100] ** 2), rel=1e-5)
    assert round(ddpm.build(diffusion).alpha_bar(99), 3) == 0.825


def test_the_loss_falls_on_64_images(files, tmp_path):
    recipe = small("ldm-bedrooms", files, optimizer__lr=1e-3, training__kimg=2.4)
    losses = read_losses(list(session(recipe, open_dataset(files / "digits"), tmp_path).steps()))
    assert np.mean(losses[-25:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("method", ["dense", "static", "rigl", "magran"])
def test_an_interrupted_training_ends_with_the_same_weights(method, files, tmp_path):
    name = "ldm-bedrooms" if method == "dense" else f"ldm-bedrooms-{method}"
    recipe = small(name, files, training__kimg=0.16, sparsity__interval=3)
    dataset = open_dataset(files / "digits")
    whole = train_and_resume(recipe, dataset, tmp_path / "run", 80, 160)
    assert whole.state.step == 10
