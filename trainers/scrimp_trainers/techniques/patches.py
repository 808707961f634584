"""Training on patches of images: Patch Diffusion (Wang et al. 2023), and LD-Diffusion's patch sizes.

Each step draws one size, and a position for each image. Two coordinate channels give the position to the network.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from scrimp_trainers.recipe.techniques import Patches


@dataclass(frozen=True)
class Window:
    """Where the patches of one step lie in their images."""

    size: int
    """Side in pixels, the same for all."""
    tops: Tensor
    """int64 [b], the first row of each patch."""
    lefts: Tensor
    """int64 [b], the first column of each patch."""


def size_probabilities(settings: Patches, side: int) -> dict[int, float]:
    """Return the patch sizes in pixels that a step may have, with their probabilities; `side` means whole images."""
    probabilities = {side: settings.real_p}
    for fraction, weight in zip(settings.sizes, settings.shares, strict=True):
        size = round(fraction * side)
        probability = (1 - settings.real_p) * weight / sum(settings.shares)
        probabilities[size] = probabilities.get(size, 0.0) + probability
    return probabilities


def mean_area(settings: Patches, side: int) -> float:
    """Return the expected area of a patch, as a fraction of the whole image's.

    Only for counting FLOPs. In kimg a patch counts as one image, whatever its size, so a run with patches has as many
    steps as one without, and is cheaper. The released code of LD-Diffusion counts 4/3 images for each patch, which is
    not reproduced.
    """
    probabilities = size_probabilities(settings, side)
    return sum(probability * (size / side) ** 2 for size, probability in probabilities.items())


def draw_window(
    settings: Patches, side: int, generator: torch.Generator, *, global_batch: int, rank_slice: slice, step_seed: int
) -> Window | None:
    """Draw the patches of one step for all ranks, and return this rank's; none means whole images.

    The size depends on `step_seed` alone. The positions are drawn on the generator's device, and nothing waits for it.
    """
    probabilities = size_probabilities(settings, side)
    size = random.Random(step_seed).choices(list(probabilities), list(probabilities.values()))[0]
    if size == side:
        return None

    corners = torch.randint(side - size + 1, (2, global_batch), generator=generator, device=generator.device)
    tops, lefts = corners[:, rank_slice]
    return Window(size, tops, lefts)


def cut_patches(images: Tensor, window: Window) -> Tensor:
    """Cut one patch [b, C, s, s] out of each image [b, C, H, W]."""
    _, channels, _, width = images.shape
    rows, columns = _rows_and_columns(window)
    pixel_index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    patches = images.flatten(2).gather(2, pixel_index[:, None].expand(-1, channels, -1))
    return patches.unflatten(2, (window.size, window.size))


def coordinates(window: Window, side: int, device: torch.device) -> Tensor:
    """Return the coordinates [b, 2, s, s] of the patches' pixels: x, then y, from -1 to 1 over the whole image."""
    line = torch.linspace(-1, 1, side, device=device)
    rows, columns = _rows_and_columns(window)
    x = line[columns][:, None, :]
    y = line[rows][:, :, None]
    return torch.stack(torch.broadcast_tensors(x, y), dim=1)


def _rows_and_columns(window: Window) -> tuple[Tensor, Tensor]:
    """Return the rows [b, s] and columns [b, s] that the patches cover."""
    offsets = torch.arange(window.size, device=window.tops.device)
    rows = window.tops[:, None] + offsets
    columns = window.lefts[:, None] + offsets
    return rows, columns
