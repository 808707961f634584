"""A GPU without enough memory. Without a GPU a network that refuses larger batches stands for it."""

import re

import pytest
import torch
from trainers_small import small

from scrimp_trainers import memory
from scrimp_trainers.errors import Final, TooLarge, UserError
from scrimp_trainers.memory import Memory
from scrimp_trainers.networks.unet import UNet
from scrimp_trainers.run import run

GIB = 2**30
RECIPE = small(training__batch_size=32, training__kimg=0.128, sampler__steps=1)


def of_24_gib(others: int = GIB) -> Memory:
    """A GPU on which weights and moments take 2 GiB and each image a quarter of one."""
    return Memory(total=24 * GIB, others=others, constant=2 * GIB, image=GIB // 4)


def test_what_fits_is_reckoned_from_what_is_constant_and_what_an_image_takes():
    assert of_24_gib().images(23 * GIB) == 75  # nine tenths of (23 - 2) / 0.25
    assert of_24_gib().images(GIB) == 0


def test_the_batch_that_would_fit_is_named():
    recipe = RECIPE.replace({"training.batch_size": 256})
    error = memory.refusal(recipe, 1, of_24_gib())
    assert isinstance(error, TooLarge)
    assert isinstance(error, Final)
    assert "training.batch_size 256 does not fit" in str(error)
    assert "75 would fit as training.microbatch" in str(error)
    shared = memory.refusal(recipe, 2, of_24_gib())
    assert "75 of 128 images" in str(shared)
    parts = memory.refusal(recipe.replace({"training.microbatch": 100}), 2, of_24_gib())
    assert "training.microbatch 100 does not fit" in str(parts)


def test_a_network_of_which_not_one_image_fits_is_too_large():
    tight = Memory(total=24 * GIB, others=GIB, constant=23 * GIB, image=GIB)
    assert str(memory.refusal(RECIPE, 1, tight)).endswith("make the network smaller")


def test_a_gpu_that_others_use_is_no_fault_of_the_recipe():
    recipe = RECIPE.replace({"training.batch_size": 64})
    error = memory.refusal(recipe, 1, of_24_gib(others=18 * GIB))
    assert isinstance(error, UserError)
    assert not isinstance(error, Final)
    assert "other processes hold 18.0 GiB" in str(error)


@pytest.fixture
def holds_five(monkeypatch):
    """A device that holds the activations of five images."""
    forward = UNet.forward

    def limited(self, images, *arguments, **inputs):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, images, *arguments, **inputs)

    monkeypatch.setattr(UNet, "forward", limited)
    monkeypatch.setattr(memory, "measure", lambda *_: Memory(total=60, others=2, constant=2, image=10))


def test_a_run_that_takes_too_much_at_once_says_what_fits_and_that_does(digits_dataset, tmp_path, holds_five):
    with pytest.raises(TooLarge, match=r"training\.batch_size 32 does not fit") as caught:
        list(run(RECIPE, digits_dataset, tmp_path / "large", 5, rungs_kimg=[]))
    fits = int(re.findall(r"(\d+) would fit as training.microbatch", str(caught.value))[0])
    smaller = RECIPE.replace({"training.microbatch": fits})
    assert list(run(smaller, digits_dataset, tmp_path / "parts", 5, rungs_kimg=[]))[-1]["images"] == 128


@pytest.mark.gpu
def test_on_a_gpu_what_is_said_to_fit_fits(digits_dataset, tmp_path):
    recipe = small(training__batch_size=2**22, training__kimg=5000, network__channels=256, sampler__steps=1)
    with pytest.raises(TooLarge) as caught:
        list(run(recipe, digits_dataset, tmp_path / "large", 5, rungs_kimg=[]))
    fits = int(re.findall(r"(\d+) would fit", str(caught.value))[0])
    smaller = recipe.replace({"training.batch_size": fits, "training.kimg": fits / 1000})
    assert list(run(smaller, digits_dataset, tmp_path / "smaller", 5, rungs_kimg=[]))[-1]["images"] == fits
