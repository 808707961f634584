"""The training loop: one readable story, told as a generator.

`train` changes the state that `start` made and yields after every step. It writes nothing and logs nothing: whoever
drains it (`run.py`) does. What a step draws at random depends on the seed, the step and the rank alone, so a run that
is interrupted and continued from a checkpoint is the run that never stopped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from scrimp_trainers.codecs.pixels import scaled
from scrimp_trainers.common import foreach
from scrimp_trainers.common import parts as part_files
from scrimp_trainers.common.device import autocast
from scrimp_trainers.common.errors import Diverged
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.diffusion import weighting
from scrimp_trainers.networks import dropout
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient, ood, views
from scrimp_trainers.training.inputs import NOTHING_PREPARED, Prepared
from scrimp_trainers.training.microbatch import Microbatch
from scrimp_trainers.training.state import State, ema_decay, learning_rate

EXPLOSION_FACTOR = 10.0
"""A loss this many times the lowest so far has exploded."""


@dataclass(frozen=True)
class StepLosses:
    """The losses of one rank's images in a step, and how to compare them with another network's."""

    losses: Tensor
    """[b], without a graph."""
    labels: Tensor | None
    """int64 [b], the images' classes; none where the dataset has none."""
    of: Callable[[nn.Module], Tensor]
    """Returns the losses [b] of another network on the same images, with the same noise."""


Weigh = Callable[[StepLosses], Tensor]
"""Returns the factor [b] on each image's loss. It may be asked twice for one step, if memory ran out the first time."""


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


def train(
    recipe: Recipe,
    state: State,
    batches: Iterator[Batch],
    prepared: Prepared = NOTHING_PREPARED,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    weigh: Weigh | None = None,
) -> Iterator[Step]:
    """Train from where the state is until the recipe's number of images is reached; yield after every step.

    `batches` gives this rank's share of the batch of `state.step` and of all steps after it. Nothing in a step waits
    for the device. With `world` > 1 a process group must be initialised. `weigh` puts a factor on each image's loss,
    in the place of the prepared class weights.
    """
    training = recipe.training
    process = part_files.build("diffusion", recipe.diffusion)
    total, share = training.batch_size, training.batch_size // world
    mine = slice(rank * share, (rank + 1) * share)
    microbatch = Microbatch(training, share)
    network = cast(nn.Module, torch.compile(state.network)) if training.compile else state.network
    parameters: list[Tensor] = list(state.network.parameters())
    averages: list[Tensor] = list(state.ema.parameters())
    state.network.train()
    generator = torch.Generator(device)
    own_generator = torch.Generator(device)

    while state.images < training.kimg * 1000:
        batch = next(batches)
        # Every rank draws for the whole batch and takes its share, so any number of ranks trains alike.
        generator.manual_seed(seed_of("step", state.seed, state.step))
        draw = partial(_normal, generator, total, mine)

        # Encode: pixels become numbers in [-1, 1], or a codec's moments a draw of latents.
        images = prepared.codec.draw(batch.images, draw) if prepared.codec else scaled(batch.images)

        # Augment.
        hidden, augment_labels, coordinates = None, None, None
        if recipe.ambient.on:
            hidden = views.draw_ambient_noise(recipe.ambient, prepared.image_keys, batch, images.shape, draw)
        if recipe.mafp.on:
            images, hidden, augment_labels = views.augment_with_noise(recipe, images, hidden, generator, mine)
        if recipe.technique.on:
            own_generator.manual_seed(seed_of("technique", state.seed, state.step, rank))
            images = recipe.technique.augment(images, own_generator)

        # Patch: all images of a step are cut to one size, each at its own place.
        if recipe.patches.on:
            seed = seed_of("patch", state.seed, state.step)
            images, hidden, coordinates = views.cut_with_noise(recipe, images, hidden, generator, mine, seed)

        # Noise. What ambient training hides is known by a noisy copy alone.
        levels = process.levels(total, generator)[mine]
        noise = draw(images.shape)
        if hidden is None:
            noisy = process.add_noise(images, noise, levels)
            target = images
        else:
            noisy, target = ambient.add_noise(recipe.ambient, process, images, hidden, noise, levels)
        negative = ood.jigsaw(target, generator, total=total, mine=mine) if recipe.ood.on else None
        shown = _hide(batch.labels, recipe, state.network.classes, generator, mine)
        factors = prepared.loss_weights[batch.labels] if prepared.loss_weights is not None else None
        conditions = Conditions(shown, augment_labels, coordinates)

        elements = images[0].numel() if process.sums else 1
        scale = elements * training.loss_scale / share
        dropped = seed_of("dropout", state.seed, state.step)

        def losses_of(model: nn.Module, part: slice) -> Tensor:
            """Return a model's loss on each image of a part of the step."""
            # Denoise.
            dropping = dropout.of_step(model, total, mine.start + part.start, dropped)
            with autocast(training.precision, device), dropping:
                estimate = process.denoise(model, noisy[part], levels[part], conditions[part])

            # Loss: one value an image.
            seen = target[part], noise[part], levels[part]
            if hidden is None:
                values = process.losses(estimate, *seen)
            else:
                values = ambient.losses(recipe.ambient, process, estimate, *seen)
            if training.min_snr_gamma is not None:
                values = values * weighting.min_snr(process, levels[part], training.min_snr_gamma)
            if negative is not None:
                values = values + ood.ood_loss(recipe.ood, process, estimate, negative[part], levels[part])
            if recipe.technique.on:
                own_term = recipe.technique.term(process, estimate, noisy[part], target[part], levels[part])
                values = values if own_term is None else values + own_term
            return values

        def accumulate(size: int) -> Tensor:
            """Add up the gradients of all parts of the step, each of `size` images; return the sum of the losses."""
            if weigh is not None:
                return accumulate_weighed(size, weigh)
            loss = torch.zeros((), device=device)
            for part in microbatch_slices(share, size):
                values = losses_of(network, part)
                loss += values.detach().sum()
                if factors is not None:
                    values = values * factors[part]

                # Backward.
                (values.sum() * scale).backward()
            return loss

        def accumulate_weighed(size: int, weigh: Weigh) -> Tensor:
            """Do the same with factors that depend on the losses of the whole step."""

            def of(model: nn.Module) -> Tensor:
                # All losses are needed before the first backward pass, which computes a part's activations anew.
                compute = losses_of if size >= share else partial(recomputed, losses_of, use_reentrant=False)
                return torch.cat([cast(Tensor, compute(model, part)) for part in microbatch_slices(share, size)])

            values = of(network)
            chosen = weigh(StepLosses(values.detach(), batch.labels, of))
            ((values * chosen.to(values.dtype)).sum() * scale).backward()
            return values.detach().sum()

        loss = microbatch.fit(accumulate, state.optimizer.zero_grad)
        average_gradients(parameters, world)

        # Mask, and step: where masks move, that takes the place of the optimizer's step.
        unscale_gradients(parameters, 1 / training.loss_scale)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, state.images + total)
        if not (state.masks and state.masks.act(state.step)):
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        # Average.
        kept = ema_decay(recipe.ema, state.images, total)
        with torch.no_grad():  # or the averages would hold on to every step's graph
            foreach.lerp_(averages, parameters, 1 - kept)

        state.step += 1
        state.images += total
        yield Step(state.step, state.images, loss / share, microbatch.size)


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
    if loss > EXPLOSION_FACTOR * lowest:
        raise Diverged(f"step {step}: loss has exploded to {loss:.4g} from {lowest:.4g}")


def microbatch_slices(share: int, size: int) -> list[slice]:
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


def unscale_gradients(parameters: list[Tensor], scale: float) -> None:
    """Undo the loss scale and replace what is not finite, as EDM does: NaN by 0, infinity by 1e5."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scale != 1:
        foreach.mul_(gradients, scale)
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
