"""How many images fit into a GPU's memory, for the error message of a recipe that asks for too many."""

import math
from dataclasses import dataclass

import torch

from scrimp_trainers.common.device import autocast
from scrimp_trainers.common.errors import DeviceOutOfMemory, UserError
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training.state import State

SPARE = 0.1
"""Fraction of the computed number of images to leave out, as memory is never used to the last byte."""


@dataclass(frozen=True)
class Memory:
    """A GPU's memory and how much of it training needs, in bytes."""

    total: int
    """Memory of the GPU."""
    others: int
    """Memory that other processes and the driver use."""
    constant: int
    """Memory of the weights, their average, gradients and moments."""
    image: int
    """Memory of one image's activations."""

    def images_in(self, available: int) -> int:
        """Return how many images can be trained on at once with `available` bytes."""
        return max(0, math.floor((1 - SPARE) * (available - self.constant) / self.image))


def measure_memory(recipe: Recipe, state: State, device: torch.device) -> Memory:
    """Measure a forward and a backward pass with one image and with two. The state's gradients are lost."""
    network = state.network

    moments = 0
    if not state.optimizer.state:  # not allocated yet, so not part of what is measured
        moments = 2 * sum(p.numel() * p.element_size() for p in network.parameters())

    peak_of_one = _peak(recipe, network, 1, device)
    peak_of_two = _peak(recipe, network, 2, device)
    free, total = torch.cuda.mem_get_info(device)
    return Memory(
        total=total,
        others=total - free - torch.cuda.memory_reserved(device),
        constant=2 * peak_of_one - peak_of_two + moments,
        image=max(1, peak_of_two - peak_of_one),
    )


def out_of_memory_error(recipe: Recipe, memory: Memory) -> UserError:
    """Return an error that says what would fit. It is retryable if other processes use the memory."""
    microbatch = recipe.training.microbatch
    fits = memory.images_in(memory.total - memory.others)
    if microbatch == "auto":
        needed = 1
        problem = "not even one image fits into the memory of a device"
    else:
        needed = microbatch
        problem = f"training.microbatch {needed} does not fit: a device took {fits} of {needed} images at once"

    if memory.images_in(memory.total) >= needed:
        return UserError(f"{problem}; other processes hold {memory.others / 2**30:.1f} GiB of its memory, end them")
    if not fits:
        return DeviceOutOfMemory(f"{problem}; make the network smaller")
    return DeviceOutOfMemory(
        f"{problem}; set training.microbatch to auto, or to {fits}, which trains the same in more parts"
    )


def _peak(recipe: Recipe, network: Denoiser, count: int, device: torch.device) -> int:
    """Return the peak memory of a forward and a backward pass with `count` images."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    images = torch.zeros(count, *network.shape, device=device)
    with autocast(recipe.training.precision, device):
        output = network(images, torch.ones(count, device=device), network.example(count).to(device))
    output.float().square().sum().backward()
    return torch.cuda.max_memory_allocated(device)
