"""Draw images from a trained network."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scrimp_trainers.codecs.codec import Codec
from scrimp_trainers.codecs.pixels import PIXEL_CODEC
from scrimp_trainers.common import heartbeat, parts
from scrimp_trainers.common.device import autocast, float32_products, product_type
from scrimp_trainers.common.files import atomic_folder
from scrimp_trainers.common.fitting import FittingSize, in_parts
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning.classes import conditioner_for
from scrimp_trainers.conditioning.conditioner import Conditioner
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.data.batch import to_device
from scrimp_trainers.data.modalities.modality import Items, Modality, open_modality, statistics_of
from scrimp_trainers.diffusion import guidance
from scrimp_trainers.diffusion.process import Predict, Process
from scrimp_trainers.networks.compiling import compiled
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.networks.half import with_half_weights
from scrimp_trainers.networks.layout import lay_out
from scrimp_trainers.recipe.recipe import Recipe

GRID_IMAGES = 64
"""Largest number of images in a grid."""
COMPILED_FROM = 1000
"""Samples that are worth the minutes in which a network is compiled."""


def generate(
    network: Denoiser, recipe: Recipe, count: int, *, seed: int, codec: Codec = PIXEL_CODEC, **options: Any
) -> Iterator[Tensor]:
    """Draw items as `generate_items` does, with the same options, and render them as images.

    Yields
    ------
    Tensor
        uint8 [b, C, H, W] on the network's device, b at most `batch_size`.
    """
    items = generate_items(network, recipe, count, seed=seed, codec=codec, **options)
    return rendered(items, modality_for(network, recipe, codec), [])


def rendered(items: Iterable[Items], modality: Modality, statistics: list[Tensor]) -> Iterator[Tensor]:
    """Yield the pictures of items, uint8 [b, C, H, W], and add to a list what their modality measures of them, if any.

    The list is complete once all pictures have been taken.
    """
    for part in items:
        measured = statistics_of(modality, part)
        if measured is not None:
            statistics.append(measured)
        yield modality.render(part)


def modality_for(network: Denoiser, recipe: Recipe, codec: Codec) -> Modality:
    """Return the modality of what a network draws."""
    channels, *_, size = codec.item_shape(tuple(network.shape))
    return open_modality(recipe.codec.modality, size=size, channels=channels)


@torch.no_grad()
def generate_items(
    network: Denoiser,
    recipe: Recipe,
    count: int,
    *,
    seed: int,
    batch_size: int = 256,
    rank: int = 0,
    world: int = 1,
    codec: Codec = PIXEL_CODEC,
    conditioner: Conditioner | None = None,
) -> Iterator[Items]:
    """Draw items with the recipe's sampler, on the network's device. Rank r draws images r, r + world, ...

    At most `batch_size` images are drawn at once, and half as many whenever memory runs out.

    Image i depends only on the network, the seed and i (up to rounding: sums in a larger batch may be computed in
    another order). A class-conditional network draws its classes in turn; one for items of several lengths draws each
    item's length from those of the training items. The `codec` is that of the recipe. A network conditioned on captions
    needs its `conditioner`, whose captions it draws in turn.

    Raises
    ------
    UserError
        If not even one image fits into memory.
    """
    network.eval()
    lay_out(network, recipe.training.precision)
    numbers_of_rank = range(rank, count, world)
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)
    conditioner = conditioner or conditioner_for(network.classes)
    asked = _asked(network, recipe, count)

    def draw(part: slice) -> Items:
        numbers = numbers_of_rank[part]
        noise = _noise_source(network, numbers, seed)
        unconditioned = _drawn_lengths(network, numbers, seed)
        predict = _guided_denoiser(network, asked, process, recipe, conditioner, numbers, unconditioned)
        x = sampler.sample(process, recipe.sampler, predict, noise, clip=recipe.codec.bounded)
        with float32_products(recipe.training.precision):
            items = codec.decode(x)
        return items if unconditioned.mask is None else Items(items.values, unconditioned.mask)

    size = FittingSize(batch_size)
    yield from in_parts(len(numbers_of_rank), size, draw, "sampling")


def image_grid(images: Tensor, columns: int = 8) -> Image.Image:
    """Arrange uint8 images [N, C, H, W] in rows; small ones are magnified."""
    count, channels, height, width = images.shape
    zoom = max(1, 32 // height)
    images = images.cpu().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    height *= zoom
    width *= zoom

    gap = 2
    rows = math.ceil(count / columns)
    sheet_size = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    sheet = torch.full(sheet_size, 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top = gap + row * (height + gap)
        left = gap + column * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_pil(sheet)


def neighbour_grid(samples: Tensor, nearest: Tensor) -> Image.Image:
    """Arrange samples, uint8 [k, C, H, W], each with its nearest training image to its right."""
    return image_grid(torch.stack([samples, nearest], dim=1).flatten(0, 1))


def to_pil(image: Tensor) -> Image.Image:
    """Convert a uint8 image [C, H, W], grey or RGB, to PIL."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    if image.shape[0] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(pixels)


def save_images(batches: Iterable[Tensor], folder: Path) -> None:
    """Write images as numbered PNGs, and a grid of the first ones as `grid.png`, into a new folder.

    Raises
    ------
    UserError
        If the folder exists or cannot be written.
    """
    with atomic_folder(folder) as part:
        _write_images(batches, part)


def save_items(batches: Iterable[Items], modality: Any, folder: Path) -> None:
    """Write pictures of items as `save_images` does, and each as an SVG file in `svg/` if their modality has such.

    Raises
    ------
    UserError
        If the folder exists or cannot be written.
    """
    texts: list[str] = []

    def pictures() -> Iterator[Tensor]:
        for items in batches:
            if hasattr(modality, "svg"):
                texts.extend(modality.svg(item) for item in _unpadded(items))
            yield modality.render(items)

    with atomic_folder(folder) as part:
        _write_images(pictures(), part)
        if texts:
            (part / "svg").mkdir()
        for number, text in enumerate(texts):
            (part / "svg" / f"{number:06d}.svg").write_text(text)


def _write_images(batches: Iterable[Tensor], folder: Path) -> None:
    number = 0
    shown: list[Tensor] = []
    for batch in batches:
        shown.append(batch[: max(0, GRID_IMAGES - number)].cpu())
        for image in batch:
            to_pil(image).save(folder / f"{number:06d}.png")
            number += 1
    image_grid(torch.cat(shown)).save(folder / "grid.png")


def _unpadded(items: Items) -> Iterator[np.ndarray]:
    """Yield each item [points, channels] without its padding."""
    for row, values in enumerate(items.values.cpu()):
        there = slice(None) if items.mask is None else items.mask[row, 0].cpu()
        yield values[:, there].T.numpy()


def _asked(network: Denoiser, recipe: Recipe, count: int) -> nn.Module:
    """Return what is asked in place of the network: its copy in half precision, and what that is compiled to."""
    dtype = product_type(recipe.training.precision, network.device)
    if dtype != torch.float32:
        network = with_half_weights(network, dtype)
    if recipe.training.compile and count >= COMPILED_FROM:
        return compiled(network)
    return network


def _noise_source(network: Denoiser, numbers: range, seed: int) -> Callable[[], Tensor]:
    """Return a function that draws noise [b, *shape], each image's from its own generator."""
    device = network.device
    generators = [torch.Generator(device).manual_seed(seed_of("sample", seed, i)) for i in numbers]

    def noise() -> Tensor:
        drawn = torch.empty(len(numbers), *network.shape, device=device)
        for row, generator in zip(drawn, generators, strict=True):
            row.normal_(generator=generator)
        return drawn

    return noise


def _drawn_lengths(network: Denoiser, numbers: range, seed: int) -> Conditions:
    """Draw each item's length as often as training items have it; return the lengths and their mask [b, 1, size]."""
    if network.lengths is None:
        return NOTHING
    counts = network.lengths.double().cpu()
    drawn = [
        torch.multinomial(counts, 1, generator=torch.Generator().manual_seed(seed_of("length", seed, i)))
        for i in numbers
    ]
    lengths = torch.cat(drawn).numpy()
    mask = np.arange(network.shape[-1]) < lengths[:, None, None]
    return Conditions(mask=to_device(mask, network.device), lengths=lengths)


def _guided_denoiser(
    network: Denoiser,
    asked: nn.Module,
    process: Process,
    recipe: Recipe,
    conditioner: Conditioner | None,
    numbers: range,
    unconditioned: Conditions,
) -> Predict:
    """Return the denoiser that the sampler calls, with classifier-free guidance if the recipe says so.

    It asks `asked`, which is the network or what `_asked` made of it.
    """
    sampler = recipe.sampler
    guided_channels = sampler.guidance_channels or network.shape[0]  # not the variances of some processes' estimates
    device = network.device
    conditions = unconditioned
    if conditioner:
        conditions = replace(unconditioned, **{conditioner.name: conditioner.for_samples(numbers, device)})
        unconditioned = replace(unconditioned, **{conditioner.name: conditioner.null(len(numbers), device)})

    def predict(x: Tensor, levels: Tensor) -> Tensor:
        heartbeat.beat()
        with autocast(recipe.training.precision, device):
            conditional = process.denoise(asked, x, levels, conditions)
            if sampler.guidance == 1:
                return conditional
            unconditional = process.denoise(asked, x, levels, unconditioned)
            scale = guidance.scale_at(sampler, recipe.diffusion, levels)
            return guidance.guided(conditional, unconditional, scale, guided_channels)

    return predict
