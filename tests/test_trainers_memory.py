"""A GPU without enough memory. Without a GPU a network that refuses larger batches stands for it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from techniques_small import TRANSFORMER
from trainers_small import random_batches, small, small_state

from scrimp_trainers.common.errors import DeviceOutOfMemory, NonRetryable, UserError
from scrimp_trainers.networks.unet import UNetDenoiser
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.run import train_repeat
from scrimp_trainers.training import memory
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.memory import Memory
from scrimp_trainers.training.state import State

GIB = 2**30
RECIPE = small(training__batch_size=32, training__kimg=0.128, sampler__steps=1)


def of_24_gib(others: int = GIB) -> Memory:
    """A GPU on which weights and moments take 2 GiB and each image a quarter of one."""
    return Memory(total=24 * GIB, others=others, constant=2 * GIB, image=GIB // 4)


def test_what_fits_is_reckoned_from_what_is_constant_and_what_an_image_takes():
    assert of_24_gib().images_in(23 * GIB) == 75  # nine tenths of (23 - 2) / 0.25
    assert of_24_gib().images_in(GIB) == 0


def test_a_stated_microbatch_that_is_too_large_is_refused_with_one_that_fits():
    recipe = RECIPE.replace({"training.batch_size": 256, "training.microbatch": 100})
    error = memory.out_of_memory_error(recipe, of_24_gib())
    assert isinstance(error, DeviceOutOfMemory)
    assert isinstance(error, NonRetryable)
    assert "training.microbatch 100 does not fit: a device took 75 of 100 images" in str(error)
    assert str(error).endswith("set training.microbatch to auto, or to 75, which trains the same in more parts")


def test_a_network_of_which_not_one_image_fits_is_too_large():
    tight = Memory(total=24 * GIB, others=GIB, constant=23 * GIB, image=GIB)
    error = memory.out_of_memory_error(RECIPE, tight)
    assert isinstance(error, DeviceOutOfMemory)
    assert str(error) == "not even one image fits into the memory of a device; make the network smaller"


def test_a_gpu_that_others_use_is_no_fault_of_the_recipe():
    recipe = RECIPE.replace({"training.batch_size": 64, "training.microbatch": 64})
    error = memory.out_of_memory_error(recipe, of_24_gib(others=18 * GIB))
    assert isinstance(error, UserError)
    assert not isinstance(error, NonRetryable)
    assert "other processes hold 18.0 GiB" in str(error)


@pytest.fixture
def holds_five(monkeypatch):
    """A device that holds the activations of five images."""
    forward = UNetDenoiser.forward

    def limited(self, images, *arguments, **inputs):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, images, *arguments, **inputs)

    monkeypatch.setattr(UNetDenoiser, "forward", limited)
    monkeypatch.setattr(memory, "measure_memory", lambda *_: Memory(total=60, others=2, constant=2, image=10))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "last" / "network.safetensors")


def test_a_run_that_meets_a_lack_of_memory_goes_on_in_halves_that_fit(digits_dataset, tmp_path, holds_five):
    found = list(train_repeat(RECIPE, digits_dataset, tmp_path / "auto", 5, rungs_kimg=[]))[-1]
    assert found.images == 128
    assert found.microbatch == 4  # 32, 16, 8, 4

    stated = RECIPE.replace({"training.microbatch": 4})
    expected = list(train_repeat(stated, digits_dataset, tmp_path / "four", 5, rungs_kimg=[]))[-1]
    assert found.loss == expected.loss
    for name, tensor in weights(tmp_path / "auto").items():
        assert torch.equal(tensor, weights(tmp_path / "four")[name])


def test_a_step_that_is_computed_again_forgets_the_gradients_of_its_first_parts(monkeypatch):
    """The whole step fails, then the second of its halves, after the first has left its gradients."""
    forward, calls = UNetDenoiser.forward, []

    def failing(self, *arguments, **inputs):
        calls.append(1)
        if len(calls) in (1, 3):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, *arguments, **inputs)

    expected = trained(small(**ONE_STEP, training__microbatch=2))
    monkeypatch.setattr(UNetDenoiser, "forward", failing)
    found = trained(small(**ONE_STEP))
    assert len(calls) == 1 + 2 + 4
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_stated_microbatch_that_does_not_fit_ends_the_repeat(digits_dataset, tmp_path, holds_five):
    recipe = RECIPE.replace({"training.microbatch": 8})
    with pytest.raises(DeviceOutOfMemory, match=r"training\.microbatch 8 does not fit"):
        list(train_repeat(recipe, digits_dataset, tmp_path / "large", 5, rungs_kimg=[]))


def test_where_not_one_image_fits_the_repeat_ends(digits_dataset, tmp_path, monkeypatch):
    forward = UNetDenoiser.forward

    def failing(self, images, *arguments, **inputs):
        if images.device.type == "cpu":  # FLOPs are counted on another
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images, *arguments, **inputs)

    monkeypatch.setattr(UNetDenoiser, "forward", failing)
    monkeypatch.setattr(memory, "measure_memory", lambda *_: Memory(total=60, others=2, constant=57, image=10))
    with pytest.raises(DeviceOutOfMemory, match="not even one image fits"):
        list(train_repeat(RECIPE, digits_dataset, tmp_path / "none", 5, rungs_kimg=[]))


def test_a_comparison_of_samples_that_does_not_fit_is_named(digits_dataset, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def score(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB.")

    monkeypatch.setattr("scrimp_trainers.metrics.score.Scorer", Full)
    scoring = Scoring(extractor="classifier", samples=20)
    with pytest.raises(DeviceOutOfMemory, match="scoring: to compare 20 samples with the dataset's images takes more"):
        list(train_repeat(RECIPE, digits_dataset, tmp_path, 5, rungs_kimg=[], scoring=scoring))


# One step from the same weights, in which eps keeps the update proportional to the gradient.
ONE_STEP: dict[str, Any] = {
    "training__batch_size": 8, "training__kimg": 0.008, "optimizer__eps": 1.0, "optimizer__warmup_kimg": 0,
}  # fmt: skip
DRAWS: dict[str, dict[str, Any]] = {
    "dropout": {"network__dropout": 0.4},
    "labels": {"conditioning__classes": True, "conditioning__label_drop": 0.5},
    "mafp": {"mafp__p1": 0.5, "mafp__p2": 0.5},
    "patches": {"patches__sizes": (0.5,), "patches__real_p": 0.0, "network__attention": []},
    "masking": {"masking__ratio": 0.4} | TRANSFORMER,
    "ood": {"ood__weight": 10.0, "ood__constant": 1.0},
}


def without_zeros(recipe) -> State:
    """A network without the layers of zeros with which training begins: behind them no draw would matter."""
    state = small_state(recipe, classes=10)
    generator = torch.Generator().manual_seed(0)
    for parameter in state.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return state


def trained(recipe) -> torch.Tensor:
    state = without_zeros(recipe)
    for _ in train(recipe, state, random_batches(8), device=torch.device("cpu")):
        pass
    return torch.nn.utils.parameters_to_vector(state.network.parameters())


@pytest.mark.parametrize("name", DRAWS)
def test_gradients_do_not_depend_on_the_microbatch(name):
    recipe = small(**ONE_STEP).replace({path.replace("__", "."): value for path, value in DRAWS[name].items()})
    start = torch.nn.utils.parameters_to_vector(without_zeros(recipe).network.parameters())
    whole = trained(recipe)
    moved = (whole - start).abs().max()
    assert moved > 0
    for size in (1, 2, 3, 4):
        parts = trained(recipe.replace({"training.microbatch": size}))
        assert (parts - whole).abs().max() < 1e-3 * moved


@pytest.mark.gpu
def test_on_a_gpu_what_is_said_to_fit_fits(digits_dataset, tmp_path):
    recipe = small(
        training__batch_size=2**22,
        training__microbatch=2**22,
        training__kimg=5000,
        network__channels=256,
        sampler__steps=1,
    )
    with pytest.raises(DeviceOutOfMemory) as caught:
        list(train_repeat(recipe, digits_dataset, tmp_path / "large", 5, rungs_kimg=[]))
    fits = int(re.findall(r"or to (\d+)", str(caught.value))[0])
    smaller = recipe.replace({"training.batch_size": fits, "training.microbatch": fits, "training.kimg": fits / 1000})
    assert list(train_repeat(smaller, digits_dataset, tmp_path / "smaller", 5, rungs_kimg=[]))[-1].images == fits
