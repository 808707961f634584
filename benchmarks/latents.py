"""A step's latents from the cache, against encoding its images at every step.

Both select_device the same images and draw fresh posterior samples of them. The autoencoder has the layers of Stable
Diffusion's (84 million parameters) and random weights, which cost the same.
"""

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import make_dataset
from benchmarks.measure import Comparison, Side, console, interleave, settled, show
from scrimp_trainers.codecs.autoencoder import open_codec
from scrimp_trainers.codecs.cache import latent_batches, open_latents
from scrimp_trainers.common import device as devices
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.recipe.techniques import Autoencoder

SIZES = {"cpu": (64, 4), "cuda": (256, 64)}
"""Pixels a side, and images a step: on a GPU those of LD-Diffusion."""
WIDTHS = (128, 256, 512, 512)
"""Of Stable Diffusion's autoencoder."""
MOST_ROUNDS = {"cpu": 3, "cuda": 7}


def main(device: str, threads: int, rounds: int, images: int = 64, widths: tuple[int, ...] = WIDTHS) -> None:
    """Measure and print."""
    size, batch_size = SIZES[device]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder, images, size)
        write_autoencoder(folder / "vae", widths)
        began = settled()
        open_latents(open_dataset(folder / "dataset"), settings(folder), devices.select_device(device))
        filled = settled() - began
        sides = Side(threads, ours, folder, device, batch_size), Side(threads, theirs, folder, device, batch_size)
        cached, encoded = interleave(*sides, min(rounds, MOST_ROUNDS[device]), 4)
        for side in sides:
            side.close()
    what = f"{size}x{size} RGB, {batch_size} images a step"
    found = Comparison(what, "ms", [1000 * one for one in cached], [1000 * one for one in encoded], "below 1")
    show("Latents of a step", [found], "encoded at every step")
    times = statistics.median(1 / ratio for ratio in found.ratios)
    console.print(f"encoding takes {times:,.0f} times as long; filling the cache took {filled:.1f} s, once\n")


def ours(folder: Path, device: str, batch_size: int) -> Iterator[object]:
    """Draw from cached posteriors."""
    where, codec = devices.select_device(device), settings(folder)
    opened, latents = open_codec(codec, where, 3), open_latents(open_dataset(folder / "dataset"), codec, where)
    for batch in latent_batches(latents, None, batch_size=batch_size, seed=0, device=where, flip=True):
        yield opened.encode(batch.values, partial(torch.randn, device=where))


def theirs(folder: Path, device: str, batch_size: int) -> Iterator[object]:
    """Encode, and draw from the posteriors."""
    where = devices.select_device(device)
    opened = open_codec(settings(folder), where, 3)
    dataset = open_dataset(folder / "dataset")
    for batch in batches(dataset, batch_size=batch_size, seed=0, device=where, flip=True):
        yield opened.encode(opened.moments(batch.values), partial(torch.randn, device=where))


def settings(folder: Path) -> Autoencoder:
    """Return the codec that both sides use."""
    return Autoencoder(kind="kl", encoder=str(folder / "vae"), decoder=str(folder / "vae"))


def write_autoencoder(folder: Path, widths: tuple[int, ...]) -> None:
    """Write an AutoencoderKL with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
    }
    AutoencoderKL(**blocks, layers_per_block=2).save_pretrained(folder)
