"""The training state: networks, optimizer, masks and progress."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.networks.layout import lay_out
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.sections import EMA, Optimizer, Training
from scrimp_trainers.techniques import mafp, sparsity
from scrimp_trainers.techniques.sparsity import Masks
from scrimp_trainers.training.posthoc_ema import PowerAverages


@dataclass
class State:
    """Everything that training changes and a checkpoint stores."""

    network: Denoiser
    ema: Denoiser
    """The network with averaged weights, which is sampled, scored and exported."""
    optimizer: torch.optim.Optimizer
    seed: int
    masks: Masks | None = None
    """Which weights are active, if the network is sparse."""
    power: PowerAverages | None = None
    """Further averages, of which others are made after training, if the recipe keeps snapshots."""
    step: int = 0
    images: int = 0
    """Images seen, over all ranks."""


def initial_state(
    recipe: Recipe, *, image_size: int, channels: int, classes: int, seed: int, device: torch.device
) -> State:
    """Return the state before the first step: the same weights for the same seed on every rank and machine."""
    network = build_network(recipe, image_size, channels, classes, seed).to(device)
    lay_out(network, recipe.training.precision)
    ema = copy.deepcopy(network).to(device).eval().requires_grad_(False)  # `to` lays recurrent weights out anew
    optimizer = _new_optimizer(recipe.optimizer, network)

    masks = None
    if recipe.sparsity.on:
        masks = sparsity.start_masks(recipe.sparsity, network, ema, optimizer, seed, count_steps(recipe.training))
    power = PowerAverages.of(network) if recipe.ema.snapshots else None
    return State(network, ema, optimizer, seed, masks, power)


def count_steps(training: Training) -> int:
    """Return the number of steps of a whole training."""
    return math.ceil(training.kimg * 1000 / training.batch_size)


def learning_rate(optimizer: Optimizer, images: int) -> float:
    """Return the learning rate of the step after which `images` have been seen: linear warmup, then constant."""
    warmup_images = optimizer.warmup_kimg * 1000
    if not warmup_images:
        return optimizer.lr
    return optimizer.lr * min(images / warmup_images, 1)


def ema_decay(ema: EMA, images: int, batch_size: int) -> float:
    """Return the decay of the average at a step that follows `images` images: 0.5^(batch / half-life)."""
    halflife = ema.halflife_kimg * 1000
    if ema.rampup_ratio is not None:
        halflife = min(halflife, images * ema.rampup_ratio)
    if not halflife:
        return 0.0
    return 0.5 ** (batch_size / halflife)


def build_network(recipe: Recipe, image_size: int, channels: int, classes: int, seed: int) -> Denoiser:
    """Build the recipe's network. Its initial weights depend only on the seed."""
    if recipe.conditioning.classes and not classes:
        raise UserError(
            "conditioning.classes: the dataset has no labels; prepare it from labelled images or turn it off"
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("network", seed))
        return parts.build(
            "networks",
            recipe.network,
            image_size=image_size,
            channels=channels,
            classes=classes if recipe.conditioning.classes else 0,
            augment_labels=mafp.LABELS if recipe.mafp.p1 > 0 else 0,
            coordinates=recipe.patches.on or recipe.patches.coordinates,
            **recipe.network.options(recipe),
        )


def _new_optimizer(optimizer: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.kind]
    return kind(
        [weight for weight in network.parameters() if weight.requires_grad],
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
