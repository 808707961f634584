"""What each technique adds to a training step, as a share of the step without it.

A difference of a few per cent drowns in the noise of whole steps, so what the loop does more is timed by itself, in
turns with whole steps. Each technique has its own preset's batch and image size; on CPU cores the network has a
quarter of its width, which makes a step cheaper and the shares larger than the preset's.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.measure import Side, console, settled
from scrimp_trainers.common import device as devices
from scrimp_trainers.common import parts
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.techniques import ambient, mafp, patches, sparsity
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import State, initial_state

PLAIN = {
    "codec.kind": "none", "mafp.p1": 0.0, "mafp.p2": 0.0, "patches.real_p": 1.0, "patches.coordinates": False,
    "ood.weight": 0.0, "ambient.sigma_n": 0.0, "sparsity.method": "dense", "training.kimg": 1e6,
}  # fmt: skip
CALLS = 30
"""Calls between two steps; the median counts."""


@dataclass(frozen=True)
class Case:
    """A technique, on the preset and the images that it is measured with."""

    name: str
    preset: str
    channels: int
    goal: float

    def recipe(self, device: str) -> Recipe:
        """Return the preset, which on CPU cores is narrow and computes in fp32."""
        recipe = load(self.preset).replace({"network.dropout": 0.0})
        assert isinstance(recipe.network, UNet)
        small = {"network.channels": recipe.network.channels // 4, "training.precision": "fp32"}
        return recipe.replace(small if device == "cpu" else {})


CASES = [
    Case("mafp", "ld-diffusion-lowshot", 4, 0.10),
    Case("patches", "ld-diffusion-ffhq", 4, 0.10),
    Case("ambient", "ambient-cifar10", 3, 0.02),
    Case("sparsity", "rigl-dm", 3, 0.05),
]
SIDE = 32
"""Of CIFAR-10's images, and of the latents of 256x256 ones."""
MOST_ROUNDS = {"cpu": 3, "cuda": 20}


def main(device: str, threads: int, rounds: int, cases: list[Case] = CASES) -> None:
    """Measure and print."""
    table = Table("technique", "measured with", "adds", "to a step of", "share", "goal")
    table.title, table.title_justify = "What a technique adds to a training step", "left"
    for case in cases:
        recipe = case.recipe(device)
        side = Side(threads, plain_steps, recipe, case.channels, device)
        side.warm()
        steps, calls = [], []
        for _ in range(min(rounds, MOST_ROUNDS[device])):
            steps.append(side.seconds(1))
            calls.append(side.call(added, case.name, recipe, case.channels, device)[0])
        side.close()
        step, more = statistics.median(steps), statistics.median(calls)
        what = f"{case.preset}, batch {recipe.training.batch_size}, {case.channels}x{SIDE}x{SIDE}"
        table.add_row(
            case.name,
            what,
            f"{more * 1000:.2f} ms",
            f"{step * 1000:.0f} ms",
            f"{more / step:.2%}",
            f"under {case.goal:.0%}",
        )
    console.print(table, "")


def plain_steps(recipe: Recipe, channels: int, device: str) -> Iterator[object]:
    """Train without any technique, on noise for images."""
    plain, where = recipe.replace(PLAIN), devices.select_device(device)
    return train(plain, new_state(plain, channels, where), same_batch(plain, channels, where), device=where)


def new_state(recipe: Recipe, channels: int, device: torch.device) -> State:
    """Return the state before the first step."""
    return initial_state(recipe, image_size=SIDE, channels=channels, classes=0, seed=0, device=device)


def same_batch(recipe: Recipe, channels: int, device: torch.device) -> Iterator[Batch]:
    """Yield one batch for ever: loading is not what is measured."""
    size = recipe.training.batch_size
    images = torch.randint(256, (size, channels, SIDE, SIDE), dtype=torch.uint8, device=device)
    index = torch.arange(size, device=device)
    while True:
        yield Batch(images, None, index, torch.zeros(size, dtype=torch.bool, device=device))


def added(name: str, recipe: Recipe, channels: int, device: str) -> float:
    """Return the seconds that the technique adds: with it less without it, each the median of some calls."""
    where, size = torch.device(device), recipe.training.batch_size
    images = torch.randn(size, channels, SIDE, SIDE, device=where)
    generator = torch.Generator(where)
    extra, instead = {"mafp": _mafp, "patches": _patches, "ambient": _ambient, "sparsity": _sparsity}[name](
        recipe, images, generator
    )
    return _seconds(extra) - _seconds(instead)


Call = Callable[[], object]


def _mafp(recipe: Recipe, images: Tensor, generator: torch.Generator) -> tuple[Call, Call]:
    whole = {"global_batch": len(images), "rank_slice": slice(None)}
    return lambda: mafp.augment(recipe.mafp, images, generator, **whole), lambda: None


def _patches(recipe: Recipe, images: Tensor, generator: torch.Generator) -> tuple[Call, Call]:
    always = recipe.patches.model_copy(update={"real_p": 0.0})
    whole = {"global_batch": len(images), "rank_slice": slice(None)}

    def cut() -> None:
        window = patches.draw_window(always, SIDE, generator, **whole, step_seed=0)
        assert window  # real_p is 0
        patches.cut_patches(images, window)
        patches.coordinates(window, SIDE, images.device)

    return cut, lambda: None


def _ambient(recipe: Recipe, images: Tensor, generator: torch.Generator) -> tuple[Call, Call]:
    process = parts.build("diffusion", recipe.diffusion)
    keys = torch.arange(len(images), device=images.device)
    noise = torch.randn_like(images)
    levels = process.levels(len(images), generator)

    def hidden() -> None:
        copies = ambient.fixed_noise(keys, images.shape[1:])
        noisy, target = ambient.add_noise(
            recipe.ambient, parts.build("diffusion", recipe.diffusion), images, copies, noise, levels
        )
        estimate = noisy.requires_grad_()
        ambient.losses(
            recipe.ambient, parts.build("diffusion", recipe.diffusion), estimate, target, noise, levels
        ).sum().backward()

    def ordinary() -> None:
        estimate = process.add_noise(images, noise, levels).requires_grad_()
        process.losses(estimate, images, noise, levels).sum().backward()

    return hidden, ordinary


def _sparsity(recipe: Recipe, images: Tensor, generator: torch.Generator) -> tuple[Call, Call]:
    del generator
    state = new_state(recipe, images.shape[1], images.device)
    for parameter in state.network.parameters():
        parameter.grad = torch.randn_like(parameter)
    masks = state.masks
    assert isinstance(masks, sparsity.Masks)
    return lambda: masks.mask_gradients(0), lambda: None


def _seconds(call: Call) -> float:
    call()
    taken = []
    for _ in range(CALLS):
        began = settled()
        call()
        taken.append(settled() - began)
    return statistics.median(taken)
