"""How many images a GPU takes at once, for whoever asked it for too many."""

import math
from dataclasses import dataclass

import torch

from scrimp_trainers.common.device import autocast
from scrimp_trainers.common.errors import DeviceOutOfMemory, UserError
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training.state import State

SPARE = 0.1
"""Share of the images that would fit that is not counted on: memory is not used to the last byte."""


@dataclass(frozen=True)
class Memory:
    """A GPU's memory and what training needs of it, in bytes."""

    total: int
    """What it has."""
    others: int
    """What other processes and the driver hold of it."""
    constant: int
    """Weights, their average, gradients and moments."""
    image: int
    """Activations of one image."""

    def images(self, room: int) -> int:
        """Return how many images fit into so many bytes."""
        return max(0, math.floor((1 - SPARE) * (room - self.constant) / self.image))


def measure_memory(recipe: Recipe, state: State, device: torch.device) -> Memory:
    """Measure a forward and a backward pass of one image and of two; the state's gradients are lost."""
    network = state.network
    moments = 0 if state.optimizer.state else 2 * sum(p.numel() * p.element_size() for p in network.parameters())
    one, two = (_peak(recipe, network, count, device) for count in (1, 2))
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return Memory(total, others, 2 * one - two + moments, max(1, two - one))


def out_of_memory_error(recipe: Recipe, memory: Memory) -> UserError:
    """Say what would fit; an error that is not final if it is other processes that leave too little."""
    asked = recipe.training.microbatch
    fits = memory.images(memory.total - memory.others)
    if asked == "auto":
        asked = 1
        what = "not even one image fits into the memory of a device"
    else:
        what = f"training.microbatch {asked} does not fit: a device took {fits} of {asked} images at once"
    if memory.images(memory.total) >= asked:
        return UserError(f"{what}; other processes hold {memory.others / 2**30:.1f} GiB of its memory, end them")
    if not fits:
        return DeviceOutOfMemory(f"{what}; make the network smaller")
    return DeviceOutOfMemory(
        f"{what}; set training.microbatch to auto, or to {fits}, which trains the same in more parts"
    )


def _peak(recipe: Recipe, network: Denoiser, count: int, device: torch.device) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    images = torch.zeros(count, *network.shape, device=device)
    with autocast(recipe.training.precision, device):
        output = network(images, torch.ones(count, device=device))
    output.float().square().sum().backward()
    return torch.cuda.max_memory_allocated(device)
