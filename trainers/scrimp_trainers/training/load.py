"""What a recipe asks of GPUs that are not here: memory is counted, time follows from FLOPs at an assumed speed."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.gpus import CONTEXT, GPU
from scrimp_trainers.data.manifest import RESIDENT, Manifest
from scrimp_trainers.data.modalities.modality import modality_of, train_bytes
from scrimp_trainers.metrics import cost
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.techniques import patches
from scrimp_trainers.training import counted_memory, expected_cost
from scrimp_trainers.training.counted_memory import Counted
from scrimp_trainers.training.memory import Memory
from scrimp_trainers.training.posthoc_ema import WIDTHS
from scrimp_trainers.training.state import build_network

LAUNCH_S = 5e-6
"""Assumed time to launch an operation: a small network cannot be faster."""
LINK_BYTES = 10e9
"""Assumed bytes a second between the GPUs of a machine, over which gradients go."""
SAMPLED_AT_ONCE = 256
"""Assumed images that are sampled at once."""
EXTRACTOR_S = 2e-3
"""Assumed time in which an extractor sees a sample."""
EXTRACTOR_WEIGHTS = {"vitg14": 1_136_000_000, "dinov2": 304_000_000, "vgg16": 138_000_000, "clip": 151_000_000}
OTHER_WEIGHTS = 26_000_000
"""Weights of feature extractors; of others at most these, which are those of a ResNet-50."""
FEATURES = 2048
"""Numbers of an extractor's features, at most."""


@dataclass(frozen=True)
class LatentSpace:
    """An autoencoder as published, for a recipe whose own is not on this machine."""

    channels: int
    """Channels of a latent."""
    factor: int
    """Pixels to a latent cell, along each side."""
    decoder_flops: float
    """FLOPs of decoding, for each pixel of a side of 256."""
    weights: int
    """Numbers in encoder and decoder."""


LATENTS = {
    "kl": LatentSpace(4, 8, 9.49e6, 83_653_863),
    "tiny": LatentSpace(4, 8, 0.54e6, 2_445_063),
    "vq": LatentSpace(3, 4, 10.23e6, 55_322_782),
}
"""By `codec.kind`: Stable Diffusion's, its tiny one, and latent diffusion's VQ-f4."""


@dataclass(frozen=True)
class Load:
    """What a recipe asks of a GPU, whichever GPU."""

    counted: Counted
    """Memory of a step, and what its forward passes launch."""
    side: int
    """Side of what the network sees."""
    weights: int
    """The network's numbers."""
    trained: int
    """Those that are trained."""
    forward_flops: float
    """FLOPs of a forward pass on one image, which masks save nothing of."""
    step_flops: float
    """FLOPs of all forward passes of a step on one whole image."""
    decoder_flops: float
    """FLOPs of decoding a sample."""
    snapshots: int = 0
    """How often a training keeps further averages."""

    @property
    def bytes(self) -> int:
        """Bytes of a repeat's files: two checkpoints with weights, average and both moments, and the model.

        With snapshots checkpoints hold two more averages, and each snapshot both in half precision.
        """
        plain = 4 * (2 * (2 * self.weights + 2 * self.trained) + self.weights)
        averages = 4 * len(WIDTHS) * self.trained
        return plain + (2 * averages + self.snapshots * averages // 2 if self.snapshots else 0)


def load_of(recipe: Recipe, manifest: Manifest) -> Load:
    """Count what a recipe asks for on a dataset; a few seconds, and no memory.

    An autoencoder, or Stable Diffusion's network, that is not on this machine is taken to be as published.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset.
    """
    recipe = with_published_network(recipe)
    shape = x_shape(recipe, manifest)
    with torch.device("meta"):
        network = build_network(recipe, shape[-1], shape[0], len(manifest.classes or []), seed=0)

    # Kernels for dense weights save no time by masks.
    dense = recipe.replace({"sparsity.method": "dense"})
    forward, _, _ = expected_cost.network_flops(dense, network, manifest.mean_length)
    step, _ = expected_cost.step_flops(dense, network, forward, forward)

    decoder_flops = 0.0
    if recipe.codec.kind in LATENTS:
        decoder_flops = LATENTS[recipe.codec.kind].decoder_flops * manifest.size**2
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    counted = counted_memory.count(recipe, network)
    weights = cost.parameters(network)
    return Load(counted, shape[-1], weights, trained, forward, step, decoder_flops, recipe.ema.snapshots)


def x_shape(recipe: Recipe, manifest: Manifest) -> tuple[int, ...]:
    """Return the shape of what a recipe's network sees of a dataset's items, by the published autoencoder if need be.

    Raises
    ------
    UserError
        If the images do not divide into latent cells.
    """
    items = modality_of(manifest).shape
    published = LATENTS.get(recipe.codec.kind)
    part = parts.module("codecs", recipe.codec.part)
    if published is None:
        return part.shape(recipe.codec, items)
    if not _is_absent(getattr(recipe.codec, "encoder", "")):
        shape = part.shape(recipe.codec, items)
        if shape is not None:  # it is if only the hub knows
            return shape

    if items[-1] % published.factor:
        raise UserError(f"codec.kind {recipe.codec.kind}: {items[-1]} pixels are not a multiple of {published.factor}")
    return published.channels, *(side // published.factor for side in items[1:])


def gpu_memory(load: Load, recipe: Recipe, manifest: Manifest, scoring: Scoring, gpu: GPU) -> Memory:
    """Return a GPU's memory and how much of it training needs beside the scores' features and the dataset's items."""
    extractors = sum(EXTRACTOR_WEIGHTS.get(each.extractor, OTHER_WEIGHTS) for each in scoring.each)
    compared = sum(split.count for split in manifest.splits.values()) * FEATURES * len(scoring.each)
    codec = LATENTS[recipe.codec.kind].weights if recipe.codec.kind in LATENTS else 0
    items = train_bytes(manifest)
    if items > RESIDENT:  # it is streamed
        items = 0
    others = CONTEXT + 4 * (extractors + compared + codec) + items
    return Memory(gpu.memory * 2**30, others, load.counted.constant, load.counted.image)


def seconds_per_kimg(load: Load, recipe: Recipe, gpu: GPU, gpus: int, microbatch: int) -> float:
    """Return the time of training on 1,000 images, `microbatch` of them at once on each of so many GPUs."""
    batch = recipe.training.batch_size
    images = math.ceil(batch / gpus)
    area = patches.mean_area(recipe.patches, load.side)
    computing = 3 * load.step_flops * area * images / gpu.rate(recipe.training.precision)
    launching = 3 * load.counted.operations * math.ceil(images / microbatch) * LAUNCH_S
    exchanging = 2 * (gpus - 1) / gpus * 4 * load.trained / LINK_BYTES
    return (max(computing, launching) + exchanging) * 1000 / batch


def seconds_per_score(load: Load, recipe: Recipe, scoring: Scoring, gpu: GPU, gpus: int) -> float:
    """Return the time in which so many GPUs draw samples, decode them and extract their features."""
    samples = math.ceil(scoring.samples / gpus)
    computing = samples * load.forward_flops / gpu.rate(recipe.training.precision)
    launching = math.ceil(samples / SAMPLED_AT_ONCE) * load.counted.operations * LAUNCH_S
    decoding = samples * load.decoder_flops / gpu.rate("fp32")
    extracting = samples * len(scoring.each) * EXTRACTOR_S
    return recipe.nfe * max(computing, launching) + decoding + extracting


def with_published_network(recipe: Recipe) -> Recipe:
    """Return a recipe whose network needs no file: one of Stable Diffusion 2.1's size in place of an absent one.

    Raises
    ------
    UserError
        If the network only adds to the absent one.
    """
    network = recipe.network
    pretrained = getattr(network, "pretrained", None)
    if pretrained is None or not _is_absent(pretrained):
        return recipe
    if not network.is_trained_whole:
        raise UserError(f"network.pretrained {pretrained}: is not on this machine, and lora_rank needs it; get it")
    # Without `pretrained` guidance would need captions that are hidden.
    return recipe.replace({"network.pretrained": None, "network.text_width": 1024, "conditioning.label_drop": 0.1})


def _is_absent(name: str) -> bool:
    """Whether this is an absolute path at which there is nothing; a relative one may be the hub's."""
    return Path(name).is_absolute() and not Path(name).exists()
