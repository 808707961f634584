"""Training on parts of images: Patch Diffusion (Wang et al. 2023), and LD-Diffusion's sizes for it.

One size is drawn for a step, one place for each image. The network is told the place by two coordinate channels.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from scrimp_trainers.recipe.techniques import Patches


@dataclass(frozen=True)
class Window:
    """Where to cut the images of one step."""

    size: int
    """Side in pixels, the same for all."""
    tops: Tensor
    """int64 [b], first row of each."""
    lefts: Tensor
    """int64 [b], first column of each."""


def size_probabilities(settings: Patches, side: int) -> dict[int, float]:
    """Return the sizes in pixels that a step may have, with their probabilities; `side` stands for whole images."""
    found = {side: settings.real_p}
    for share, weight in zip(settings.sizes, settings.shares, strict=True):
        size = round(share * side)
        found[size] = found.get(size, 0.0) + (1 - settings.real_p) * weight / sum(settings.shares)
    return found


def mean_area(settings: Patches, side: int) -> float:
    """Return the expected size of a training image, as a share of a whole one's pixels.

    It is for FLOPs alone. An image counts as one image in kimg, whatever its size, so a run with patches is as long in
    steps as one without, and cheaper. The released code of LD-Diffusion counts 4/3 images for each part that it trains
    on, which is not reproduced.
    """
    return sum(chance * (size / side) ** 2 for size, chance in size_probabilities(settings, side).items())


def draw_window(
    settings: Patches, side: int, generator: torch.Generator, *, total: int, mine: slice, step_seed: int
) -> Window | None:
    """Draw one step's size, a pure function of `step_seed`, and places for `total` images, of which `mine` are given.

    None means whole images. Nothing waits for the device, where the places are drawn.
    """
    sizes = size_probabilities(settings, side)
    size = random.Random(step_seed).choices(list(sizes), list(sizes.values()))[0]
    if size == side:
        return None
    corners = torch.randint(side - size + 1, (2, total), generator=generator, device=generator.device)
    tops, lefts = corners[:, mine]
    return Window(size, tops, lefts)


def cut_patches(images: Tensor, window: Window) -> Tensor:
    """Cut one part [b, C, s, s] out of each image [b, C, H, W]."""
    rows, columns = _places(window)
    flat = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)
    parts = images.flatten(2).gather(2, flat[:, None].expand(-1, images.shape[1], -1))
    return parts.unflatten(2, (window.size, window.size))


def coordinates(window: Window, side: int, device: torch.device) -> Tensor:
    """Return the parts' coordinates [b, 2, s, s]: x, then y, in [-1, 1] of the full frame of `side` pixels."""
    line = torch.linspace(-1, 1, side, device=device)
    rows, columns = _places(window)
    x, y = line[columns][:, None, :], line[rows][:, :, None]
    return torch.stack(torch.broadcast_tensors(x, y), dim=1)


def _places(window: Window) -> tuple[Tensor, Tensor]:
    """Return the rows [b, s] and columns [b, s] that a window takes."""
    steps = torch.arange(window.size, device=window.tops.device)
    return window.tops[:, None] + steps, window.lefts[:, None] + steps
