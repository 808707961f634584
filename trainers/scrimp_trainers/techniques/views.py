"""What a step makes of its images before noise is put on them; the noise that ambient training hides goes with them."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.data.batch import Batch, mirror
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Ambient
from scrimp_trainers.techniques import ambient, mafp, patches


def draw_ambient_noise(
    settings: Ambient,
    keys: Tensor | None,
    batch: Batch,
    shape: torch.Size,
    draw: Callable[[Sequence[int]], Tensor],
) -> Tensor:
    """Return the noise [b, C, H, W] of the images' noisy copies; where it was there first it is mirrored with them.

    `keys` are of all training images, from `ambient.keys`; `draw` gives fresh noise.
    """
    if settings.noise == "fresh":
        return draw(shape)
    noise = ambient.fixed_noise(cast(Tensor, keys)[batch.index], shape[1:])
    return mirror(noise, batch.flipped) if settings.order == "noise_first" else noise


def augment_with_noise(
    recipe: Recipe, images: Tensor, hidden: Tensor | None, generator: torch.Generator, mine: slice
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Augment images, and with them the noise of their copies if it was there first; return what was done, too."""
    total, together = recipe.training.batch_size, hidden is not None and recipe.ambient.order == "noise_first"
    if hidden is None or not together:
        images, told = mafp.augment(recipe.mafp, images, generator, total=total, mine=mine)
        return images, hidden, told
    both, told = mafp.augment(recipe.mafp, torch.cat([images, hidden], 1), generator, total=total, mine=mine)
    images, hidden = both.chunk(2, 1)
    return images, hidden, told


def cut_with_noise(
    recipe: Recipe, images: Tensor, hidden: Tensor | None, generator: torch.Generator, mine: slice, size_seed: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Cut parts out of images, and the same parts of their copies' noise; return their coordinates, too."""
    side, total = images.shape[-1], recipe.training.batch_size
    window = patches.draw_window(recipe.patches, side, generator, total=total, mine=mine, step_seed=size_seed)
    if window is None:
        return images, hidden, None
    hidden = None if hidden is None else patches.cut_patches(hidden, window)
    return patches.cut_patches(images, window), hidden, patches.coordinates(window, side, images.device)
