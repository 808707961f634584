"""The training loop: one readable story, told as a generator.

`train` changes the state that `start` made and yields after every step. It writes nothing and logs nothing: whoever
drains it (`run.py`) does. What a step draws at random depends on the seed, the step and the rank alone, so a run that
is interrupted and continued from a checkpoint is the run that never stopped.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scrimp_trainers.data.loading import Batch
from scrimp_trainers.diffusion.process import process_of, seed_of
from scrimp_trainers.errors import Diverged, UserError
from scrimp_trainers.microbatch import Microbatch
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.unet import UNet, build
from scrimp_trainers.recipe import Recipe
from scrimp_trainers.sections import EDM, EMA, Optimizer, Training
from scrimp_trainers.techniques import ambient, mafp, ood, sparsity, views
from scrimp_trainers.techniques.prepared import NOTHING, Prepared
from scrimp_trainers.techniques.sparsity import Masks

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
    masks: Masks | None = None
    """Which weights are there, where the network is sparse."""
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
    microbatch: int
    """Images that this rank's device took at once."""


def start(recipe: Recipe, *, image_size: int, channels: int, classes: int, seed: int, device: torch.device) -> State:
    """Make the state before the first step: the same weights for the same seed on every rank and machine."""
    network = new_network(recipe, image_size, channels, classes, seed).to(device)
    ema = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = _new_optimizer(recipe.optimizer, network)
    masks = None
    if recipe.sparsity.on:
        masks = sparsity.start(recipe.sparsity, network, ema, optimizer, seed, steps_of(recipe.training))
    return State(network, ema, optimizer, seed, masks)


def train(
    recipe: Recipe,
    state: State,
    batches: Iterator[Batch],
    prepared: Prepared = NOTHING,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Step]:
    """Train from where the state is until the recipe's number of images is reached; yield after every step.

    `batches` gives this rank's share of the batch of `state.step` and of all steps after it. Nothing in a step waits
    for the device. With `world` > 1 a process group must be initialised.
    """
    settings, process, training = recipe.diffusion, process_of(recipe.diffusion), recipe.training
    total, share = training.batch_size, training.batch_size // world
    mine = slice(rank * share, (rank + 1) * share)
    microbatch = Microbatch(training, share)
    network = cast(nn.Module, torch.compile(state.network)) if training.compile else state.network
    parameters: list[Tensor] = list(state.network.parameters())
    averages: list[Tensor] = list(state.ema.parameters())
    state.network.train()
    generator = torch.Generator(device)

    while state.images < training.kimg * 1000:
        batch = next(batches)
        # Every rank draws for the whole batch and takes its share, so any number of ranks trains alike.
        generator.manual_seed(seed_of("step", state.seed, state.step))
        draw = partial(_normal, generator, total, mine)

        # Encode: pixels become numbers in [-1, 1], or a codec's moments a draw of latents.
        images = prepared.codec.draw(batch.images, draw) if prepared.codec else scaled(batch.images)

        # Augment.
        hidden, told, coordinates = None, None, None
        if recipe.ambient.on:
            hidden = views.hidden_noise(recipe.ambient, prepared.image_keys, batch, images.shape, draw)
        if recipe.mafp.on:
            images, hidden, told = views.augment(recipe, images, hidden, generator, mine)

        # Patch: all images of a step are cut to one size, each at its own place.
        if recipe.patches.on:
            seed = seed_of("patch", state.seed, state.step)
            images, hidden, coordinates = views.cut(recipe, images, hidden, generator, mine, seed)

        # Noise. What ambient training hides is known by a noisy copy alone.
        levels = process.levels(settings, total, generator)[mine]
        noise = draw(images.shape)
        if hidden is None:
            noisy, target = process.add_noise(settings, images, noise, levels), images
        else:
            noisy, target = ambient.add_noise(recipe, images, hidden, noise, levels)
        negative = ood.jigsaw(target, generator, total=total, mine=mine) if recipe.ood.on else None
        shown = _hide(batch.labels, recipe, state.network.classes, generator, mine)
        inputs = {"labels": shown, "augment_labels": told, "coordinates": coordinates}

        # EDM sums the loss over an image's elements, DDPM averages it. To Adam it is nearly the same: only eps and L2
        # weight decay, which is added to the gradient, know the difference.
        elements = images[0].numel() if isinstance(settings, EDM) else 1
        dropped = seed_of("dropout", state.seed, state.step)

        def accumulate(size: int) -> Tensor:
            """Add up the gradients of all parts of the step, each of `size` images; return the sum of the losses."""
            loss = torch.zeros((), device=device)
            for part in parts(share, size):
                # Denoise.
                with autocast(recipe, device), dropout.of_step(network, total, mine.start + part.start, dropped):
                    estimate = process.denoise(
                        settings,
                        network,
                        noisy[part],
                        levels[part],
                        **{name: value[part] for name, value in inputs.items() if value is not None},
                    )

                # Loss: one value an image.
                seen = target[part], noise[part], levels[part], None if batch.labels is None else batch.labels[part]
                if hidden is None:
                    losses = process.losses(settings, estimate, *seen)
                else:
                    losses = ambient.losses(recipe, estimate, *seen)
                values = losses.values
                if negative is not None:
                    values = values + ood.term(recipe.ood, cast(EDM, settings), estimate, negative[part], levels[part])
                loss += values.detach().sum()
                if prepared.loss_weights is not None:
                    values = values * prepared.loss_weights[losses.labels]

                # Backward.
                (values.sum() * (elements * training.loss_scale / share)).backward()
            return loss

        loss = microbatch.fit(accumulate, state.optimizer.zero_grad)
        average_gradients(parameters, world)

        # Mask, and step: where masks move, that takes the place of the optimizer's step.
        sanitise(parameters, 1 / training.loss_scale)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, state.images + total)
        if not (state.masks and state.masks.act(state.step)):
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        # Average.
        kept = ema_decay(recipe.ema, state.images, total)
        with torch.no_grad():  # or the averages would hold on to every step's graph
            torch._foreach_lerp_(averages, parameters, 1 - kept)

        state.step += 1
        state.images += total
        yield Step(state.step, state.images, loss / share, microbatch.size)


def steps_of(training: Training) -> int:
    """Return the number of steps of a whole training."""
    return math.ceil(training.kimg * 1000 / training.batch_size)


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


def read_losses(steps: Sequence[Step], world: int = 1) -> list[float]:
    """Wait for the device and return the losses of these steps, each the mean over all ranks.

    Raises
    ------
    Diverged
        If one is not finite.
    """
    losses = torch.stack([step.loss for step in steps])
    if world > 1:
        dist.all_reduce(losses)
        losses /= world
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
    """Return the context in which the network computes with the recipe's precision; fp32 for fp16 on a processor.

    Few processors multiply in fp16: convolutions then take many times as long as in fp32.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.training.precision]
    if kind == torch.float16 and device.type == "cpu":
        kind = torch.float32
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)


def new_network(recipe: Recipe, image_size: int, channels: int, classes: int, number: int) -> UNet:
    """Make the recipe's network, with weights that depend on the seed `number` alone."""
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
            augment_labels=mafp.LABELS if recipe.mafp.p1 > 0 else 0,
            coordinates=recipe.patches.on or recipe.patches.coordinates,
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


def parts(share: int, size: int) -> list[slice]:
    """Cut a rank's share of a batch into parts of at most so many images."""
    return [slice(first, min(first + size, share)) for first in range(0, share, size)]


def average_gradients(parameters: Sequence[Tensor], world: int) -> None:
    """Replace gradients by their mean over the ranks, once a step, in one exchange.

    Not by DistributedDataParallel, which averages while the last backward pass runs: a rank that runs out of memory
    there could not compute its step again without the others.
    """
    if world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    means = flat.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def scaled(pixels: Tensor) -> Tensor:
    """Turn uint8 into numbers in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def _normal(generator: torch.Generator, total: int, mine: slice, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise for all ranks' images, and return this rank's, of the shape [b, C, H, W]."""
    return torch.randn(total, *shape[1:], generator=generator, device=generator.device)[mine]


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


def sanitise(parameters: list[Tensor], scale: float) -> None:
    """Undo the loss scale and replace what is not finite, as EDM does: NaN by 0, infinity by 1e5."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scale != 1:
        torch._foreach_mul_(gradients, scale)
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
