"""The training loop: one readable story, told as a generator.

`train` changes the state that `start` made and yields after every step. It writes nothing and logs nothing: whoever
drains it (`run.py`) does. What a step draws at random depends on the seed, the step and the rank alone, so a run that
is interrupted and continued from a checkpoint is the run that never stopped.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scrimp_trainers.data.loading import Batch
from scrimp_trainers.diffusion.process import process_of, seed_of
from scrimp_trainers.errors import Diverged, UserError
from scrimp_trainers.networks.unet import UNet, build
from scrimp_trainers.recipe import Recipe
from scrimp_trainers.sections import EDM, EMA, Optimizer

EXPLODED = 10.0
"""A loss this many times the lowest so far has exploded."""


@dataclass
class State:
    """What training changes, and what a checkpoint holds."""

    network: UNet
    ema: UNet
    """The average of the network's weights: what is sampled, scored and exported."""
    optimizer: torch.optim.Optimizer
    seed: int
    step: int = 0
    images: int = 0
    """Images seen, over all ranks."""


@dataclass(frozen=True)
class Step:
    """One step that was taken. The loss is still on the device: reading it waits for the device."""

    step: int
    """Steps taken so far, this one included."""
    images: int
    """Images seen so far, over all ranks."""
    loss: Tensor
    """Mean loss of this rank's images, 0-d."""


def start(recipe: Recipe, *, image_size: int, channels: int, classes: int, seed: int, device: torch.device) -> State:
    """Make the state before the first step: the same weights for the same seed on every rank and machine."""
    network = _new_network(recipe, image_size, channels, classes, seed).to(device)
    ema = copy.deepcopy(network).eval().requires_grad_(False)
    return State(network, ema, _new_optimizer(recipe.optimizer, network), seed)


def train(
    recipe: Recipe, state: State, batches: Iterator[Batch], *, device: torch.device, rank: int = 0, world: int = 1
) -> Iterator[Step]:
    """Train from where the state is until the recipe's number of images is reached; yield after every step.

    `batches` gives this rank's share of the batch of `state.step` and of all steps after it. Nothing in a step waits
    for the device. With `world` > 1 a process group must be initialised.
    """
    settings, process, training = recipe.diffusion, process_of(recipe.diffusion), recipe.training
    share = training.batch_size // world
    mine = slice(rank * share, (rank + 1) * share)
    parts = [slice(i, i + (training.microbatch or share)) for i in range(0, share, training.microbatch or share)]
    network, unaveraged = _prepare(state.network, training.compile, device, world)
    parameters: list[Tensor] = list(state.network.parameters())
    averages: list[Tensor] = list(state.ema.parameters())
    state.network.train()

    # EDM sums the loss over an image's elements, DDPM averages it. To Adam it is nearly the same: only eps and L2
    # weight decay, which is added to the gradient, know the difference.
    elements = state.network.shape.numel() if isinstance(settings, EDM) else 1
    gradient_scale = elements * training.loss_scale / share
    generator = torch.Generator(device)
    all_noise = torch.empty(training.batch_size, *state.network.shape, device=device)

    while state.images < training.kimg * 1000:
        batch = next(batches)

        # Encode: pixels become numbers in [-1, 1].
        images = batch.images.float().div_(127.5).sub_(1)

        # Noise. Every rank draws for the whole batch and takes its share, so any number of ranks trains alike.
        generator.manual_seed(seed_of("noise", state.seed, state.step))
        levels = process.levels(settings, training.batch_size, generator)[mine]
        noise = all_noise.normal_(generator=generator)[mine]
        shown = _hide(batch.labels, recipe, state.network.classes, generator, mine)
        if recipe.network.dropout > 0:
            torch.manual_seed(seed_of("dropout", state.seed, state.step, rank))

        loss = torch.zeros((), device=device)
        for part in parts:
            # Denoise, with as many images at a time as the recipe allows.
            noisy = process.add_noise(settings, images[part], noise[part], levels[part])
            with autocast(recipe, device):
                estimate = process.denoise(settings, network, noisy, levels[part], labels=_part(shown, part))

            # Loss: one value an image.
            losses = process.losses(
                settings, estimate, images[part], noise[part], levels[part], _part(batch.labels, part)
            )
            loss += losses.values.detach().sum()

            # Backward. Gradients add up over the parts, and are averaged over the ranks with the last one.
            with unaveraged() if part != parts[-1] else nullcontext():
                (losses.values.sum() * gradient_scale).backward()

        # Step.
        _sanitise(parameters, 1 / training.loss_scale)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, state.images + training.batch_size)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        # Average.
        kept = ema_decay(recipe.ema, state.images, training.batch_size)
        torch._foreach_lerp_(averages, parameters, 1 - kept)

        state.step += 1
        state.images += training.batch_size
        yield Step(state.step, state.images, loss / share)


def learning_rate(optimizer: Optimizer, images: int) -> float:
    """Return the learning rate of the step with which so many images will have been seen: linear, then constant."""
    warmup = optimizer.warmup_kimg * 1000
    return optimizer.lr * min(images / warmup, 1) if warmup else optimizer.lr


def ema_decay(ema: EMA, images: int, batch_size: int) -> float:
    """Return the share of the average that a step keeps, 0.5^(batch / half-life), after so many images before it."""
    halflife = ema.halflife_kimg * 1000
    if ema.rampup_ratio is not None:
        halflife = min(halflife, images * ema.rampup_ratio)
    return 0.5 ** (batch_size / halflife) if halflife else 0.0


def read_losses(steps: Sequence[Step]) -> list[float]:
    """Wait for the device and return the losses of these steps, each the mean over all ranks.

    Raises
    ------
    Diverged
        If one is not finite.
    """
    losses = torch.stack([step.loss for step in steps])
    if dist.is_initialized():
        dist.all_reduce(losses)
        losses /= dist.get_world_size()
    values = losses.tolist()
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            raise Diverged(f"step {step.step}: loss is {value}")
    return values


def refuse_explosion(step: int, loss: float, lowest: float) -> None:
    """Compare a mean loss with the lowest so far.

    Raises
    ------
    Diverged
        If it is many times as large.
    """
    if loss > EXPLODED * lowest:
        raise Diverged(f"step {step}: loss has exploded to {loss:.4g} from {lowest:.4g}")


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which the network computes with the recipe's precision."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.training.precision]
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)


def _new_network(recipe: Recipe, image_size: int, channels: int, classes: int, number: int) -> UNet:
    if recipe.conditioning.classes and not classes:
        raise UserError(
            "conditioning.classes: the dataset has no labels; prepare it from labelled images or turn it off"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("network", number))
        return build(
            recipe.network,
            image_size=image_size,
            channels=channels,
            classes=classes if recipe.conditioning.classes else 0,
        )


def _new_optimizer(optimizer: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.kind]
    return kind(
        network.parameters(),
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )


def _prepare(
    network: nn.Module, compiled: bool, device: torch.device, world: int
) -> tuple[nn.Module, Callable[[], AbstractContextManager[None]]]:
    """Return what a step calls for the network, and the context in which gradients are not averaged over ranks."""
    unaveraged = nullcontext
    if world > 1:
        devices = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        unaveraged = network.no_sync
    return (cast(nn.Module, torch.compile(network)) if compiled else network), unaveraged


def _hide(
    labels: Tensor | None, recipe: Recipe, classes: int, generator: torch.Generator, mine: slice
) -> Tensor | None:
    """Return the labels that the network is shown: none, all, or all but those dropped at random."""
    if not classes or labels is None:
        return None
    if not recipe.conditioning.label_drop:
        return labels
    chance = torch.rand(recipe.training.batch_size, generator=generator, device=generator.device)[mine]
    return labels.masked_fill(chance < recipe.conditioning.label_drop, classes)


def _part(labels: Tensor | None, part: slice) -> Tensor | None:
    return None if labels is None else labels[part]


def _sanitise(parameters: list[Tensor], scale: float) -> None:
    """Undo the loss scale and replace what is not finite, as EDM does: NaN by 0, infinity by 1e5."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scale != 1:
        torch._foreach_mul_(gradients, scale)
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
