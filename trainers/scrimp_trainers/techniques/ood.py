"""LD-Diffusion's out-of-distribution term (Zhang et al. 2025), from its formula: off by default, and only with EDM.

Each element's loss gets (1 / w) / ((D - y-)^2 + constant) added, where w is EDM's weight and y- a jigsaw of the image.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from scrimp_trainers.diffusion.process import Process
from scrimp_trainers.recipe.techniques import OOD


def jigsaw(images: Tensor, generator: torch.Generator, *, total: int, mine: slice) -> Tensor:
    """Return the images [b, C, H, W] with their quadrants in another order, each image's drawn from the other 23.

    Draws for all `total` images and takes `mine`. In the released code 1 of its 23 orders gives the image back;
    here none does.
    """
    drawn = torch.randint(1, 24, (total,), generator=generator, device=generator.device)[mine]
    order = _orders(images.device)[drawn]
    b, c, h, w = images.shape
    tiles = images.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles.take_along_dim(order[:, :, None, None, None], 1).unflatten(1, (2, 2))
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def ood_loss(settings: OOD, process: Process, estimate: Tensor, negative: Tensor, levels: Tensor) -> Tensor:
    """Return what is added to `Process.losses` [b], like it the mean over an image's elements."""
    closeness = 1 / ((estimate - negative).square() + settings.constant)
    return settings.weight / process.weight(levels) * closeness.flatten(1).mean(1)


@cache
def _orders(device: torch.device) -> Tensor:
    """Return the orders of four quadrants [24, 4], of which the first is the identity."""
    return torch.tensor(list(permutations(range(4))), device=device)
