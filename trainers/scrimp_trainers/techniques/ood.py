"""LD-Diffusion's out-of-distribution loss (Zhang et al. 2025), written from its formula. Off by default; EDM only.

It adds (1 / w) / ((D - y-)^2 + constant) to each element's loss, where w is EDM's weight and y- a jigsaw of the image.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from scrimp_trainers.diffusion.process import Process
from scrimp_trainers.recipe.techniques import OOD


def jigsaw(images: Tensor, generator: torch.Generator, *, global_batch: int, rank_slice: slice) -> Tensor:
    """Reorder the quadrants of each image [b, C, H, W], by one of the 23 orders that change it.

    Orders are drawn for all ranks' images, and this rank's are used. One of the released code's 23 orders leaves the
    image as it is; here none does.
    """
    order_index = torch.randint(1, 24, (global_batch,), generator=generator, device=generator.device)[rank_slice]
    order = _orders(images.device)[order_index]
    b, c, h, w = images.shape
    tiles = images.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles.take_along_dim(order[:, :, None, None, None], 1).unflatten(1, (2, 2))
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def ood_loss(settings: OOD, process: Process, estimate: Tensor, negative: Tensor, levels: Tensor) -> Tensor:
    """Return the term [b] to add to `Process.losses`: like them, a mean over each image's elements."""
    closeness = 1 / ((estimate - negative).square() + settings.constant)
    return settings.weight / process.weight(levels) * closeness.flatten(1).mean(1)


@cache
def _orders(device: torch.device) -> Tensor:
    """Return all orders of four quadrants, [24, 4]; the first is the identity."""
    return torch.tensor(list(permutations(range(4))), device=device)
