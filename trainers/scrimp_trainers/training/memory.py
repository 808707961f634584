"""How many images fit into a GPU's memory, for the error message of a recipe that asks for too many."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from scrimp_trainers.common.device import autocast, memory_left
from scrimp_trainers.common.errors import DeviceOutOfMemory, UserError
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training import counted_memory
from scrimp_trainers.training.counted_memory import Counted
from scrimp_trainers.training.state import State

SPARE = 0.1
"""Fraction of the computed number of images to leave out, as memory is never used to the last byte."""


@dataclass(frozen=True)
class Memory:
    """A GPU's memory and how much of it training needs, in bytes."""

    total: int
    """Memory of the GPU, or the share of it that the process may take."""
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
    """Measure forward and backward passes with a few images, or count them where these do not fit.

    The state's gradients are lost.
    """
    needed = None
    with contextlib.suppress(torch.OutOfMemoryError):
        needed = _measured(recipe, state, device)
    if needed is None:
        needed = counted_memory.count(recipe, state.network)

    left, most = memory_left(device)
    others = most - left - torch.cuda.memory_reserved(device)
    return Memory(most, others, needed.constant, needed.image)


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


def _measured(recipe: Recipe, state: State, device: torch.device) -> Counted:
    """Measure what a step takes; raises `torch.OutOfMemoryError` where the images of `BATCHES` do not fit."""
    trained = [weight for weight in state.network.parameters() if weight.requires_grad]
    for weight in trained:  # of a step in several parts, all but the first find gradients
        weight.grad = torch.zeros_like(weight)
    moments = 0
    if not state.optimizer.state:  # not allocated yet, so not part of what is measured
        moments = 2 * sum(weight.numel() * weight.element_size() for weight in trained)

    with _without_trials():
        peaks = [_peak(recipe, state.network, images, device) for images in counted_memory.BATCHES]
    image, fixed = counted_memory.split_peaks(peaks)
    return Counted(fixed + moments, image, operations=0)


@contextlib.contextmanager
def _without_trials() -> Iterator[None]:
    """Keep cuDNN from trying algorithms, whose workspaces would count."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _peak(recipe: Recipe, network: Denoiser, images: int, device: torch.device) -> int:
    """Return the peak memory of a step's forward and backward passes on so many images."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(recipe.training.precision, device):
        loss = counted_memory.summed_loss(recipe, network, network, images, device)
    loss.backward()
    return torch.cuda.max_memory_allocated(device)
