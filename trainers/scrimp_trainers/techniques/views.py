"""Augment and crop a step's images before noise is added; ambient training's noise is transformed with them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from scrimp_trainers.data.batch import Batch, mirror
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Ambient
from scrimp_trainers.techniques import ambient, mafp, patches


def draw_ambient_noise(
    settings: Ambient,
    noise_keys: Tensor | None,
    batch: Batch,
    shape: torch.Size,
    draw: Callable[[Sequence[int]], Tensor],
) -> Tensor:
    """Return the noise [b, C, H, W] of the images' noisy copies.

    With the order `noise_first` it belongs to the unmirrored images, so it is mirrored with them.

    Parameters
    ----------
    noise_keys
        Those of all training images, from `ambient.noise_keys`.
    draw
        Draws fresh noise of a shape.
    """
    if settings.noise == "fresh":
        return draw(shape)

    noise = ambient.fixed_noise(cast(Tensor, noise_keys)[batch.index], shape[1:])
    if settings.order == "noise_first":
        return mirror(noise, batch.flipped)
    return noise


def augment_with_noise(
    recipe: Recipe,
    images: Tensor,
    ambient_noise: Tensor | None,
    generator: torch.Generator,
    rank_slice: slice,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Augment images, and with the order `noise_first` also their ambient noise.

    Returns
    -------
    tuple
        The images, the ambient noise, and the augmentation labels for the network.
    """
    augment = partial(
        mafp.augment,
        recipe.mafp,
        generator=generator,
        global_batch=recipe.training.batch_size,
        rank_slice=rank_slice,
    )
    if ambient_noise is None or recipe.ambient.order != "noise_first":
        images, labels = augment(images)
        return images, ambient_noise, labels

    both, labels = augment(torch.cat([images, ambient_noise], 1))
    images, ambient_noise = both.chunk(2, 1)
    return images, ambient_noise, labels


def cut_with_noise(
    recipe: Recipe,
    images: Tensor,
    ambient_noise: Tensor | None,
    generator: torch.Generator,
    rank_slice: slice,
    size_seed: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Cut patches out of images, and the same patches out of their ambient noise.

    Returns
    -------
    tuple
        The images, the ambient noise, and the patches' coordinates; none where the step takes whole images.
    """
    side = images.shape[-1]
    global_batch = recipe.training.batch_size
    window = patches.draw_window(
        recipe.patches, side, generator, global_batch=global_batch, rank_slice=rank_slice, step_seed=size_seed
    )
    if window is None:
        return images, ambient_noise, None

    if ambient_noise is not None:
        ambient_noise = patches.cut_patches(ambient_noise, window)
    return patches.cut_patches(images, window), ambient_noise, patches.coordinates(window, side, images.device)
