"""The training loop, a generator of steps.

`train` updates the state made by `state.initial_state` and yields after every step. It writes and logs nothing; its
caller does. What a step draws at random depends only on the seed and the step (a user's own technique draws by rank,
too), so a run that is interrupted and resumed from a checkpoint gives the same result as one that was not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from scrimp_trainers.common import foreach, parts
from scrimp_trainers.common.device import autocast, float32_products
from scrimp_trainers.common.errors import Diverged
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning.classes import conditioner_for
from scrimp_trainers.conditioning.conditioner import Conditioner, hide
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.diffusion import weighting
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.compiling import compiled
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import ambient, masking, ood, views
from scrimp_trainers.training.inputs import NOTHING_PREPARED, Prepared
from scrimp_trainers.training.microbatch import Microbatch
from scrimp_trainers.training.state import State, ema_decay, learning_rate

EXPLOSION_FACTOR = 10.0
"""Training has exploded when its loss is this many times the lowest so far."""


@dataclass(frozen=True)
class StepLosses:
    """The losses of one rank's images in a step, and a function that computes those of another network."""

    losses: Tensor
    """[b], detached from the graph."""
    labels: Tensor | None
    """int64 [b], the images' classes; none if the dataset has none."""
    of_network: Callable[[nn.Module], Tensor]
    """Returns the losses [b] of another network on the same images, with the same noise."""


WeighLosses = Callable[[StepLosses], Tensor]
"""Returns the factor [b] on each image's loss. A step calls it again if memory ran out the first time."""


@dataclass(frozen=True)
class Step:
    """A completed step. Its loss is still on the device: reading it waits for the device."""

    step: int
    """Steps taken so far, including this one."""
    images: int
    """Images seen so far, over all ranks."""
    loss: Tensor
    """Mean loss of this rank's images, 0-d."""


def train(
    recipe: Recipe,
    state: State,
    batches: Iterator[Batch],
    prepared: Prepared = NOTHING_PREPARED,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    weigh: WeighLosses | None = None,
    microbatch: Microbatch | None = None,
) -> Iterator[Step]:
    """Train from the current state until the recipe's number of images is reached; yield after every step.

    Nothing in a step waits for the device. With `world` > 1 a process group must be initialised.

    Parameters
    ----------
    batches
        This rank's part of the batch of `state.step` and of all steps after it.
    weigh
        Returns a factor on each image's loss, instead of the prepared class weights.
    microbatch
        How many images are computed at once; the caller may make it smaller between steps.
    """
    training = recipe.training
    process = parts.build("diffusion", recipe.diffusion)
    conditioner = prepared.conditioner or conditioner_for(state.network.classes)
    global_batch = training.batch_size
    rank_batch = global_batch // world
    rank_slice = slice(rank * rank_batch, (rank + 1) * rank_batch)
    microbatch = microbatch or Microbatch(training, rank_batch)

    network = compiled(state.network) if training.compile else state.network
    pairs = zip(state.network.parameters(), state.ema.parameters(), strict=True)
    trained = [(weight, average) for weight, average in pairs if weight.requires_grad]
    parameters: list[Tensor] = [weight for weight, _ in trained]
    averages: list[Tensor] = [average for _, average in trained]
    state.network.train()
    generator = torch.Generator(device)
    own_generator = torch.Generator(device)

    while state.images < training.kimg * 1000:
        batch = next(batches)
        # Every rank draws for the global batch and uses its slice: results do not depend on the number of ranks.
        generator.manual_seed(seed_of("step", state.seed, state.step))
        draw = partial(_draw_normal, generator, global_batch, rank_slice)

        # Encode: scale pixels to [-1, 1], or sample latents from an autoencoder's moments.
        images = prepared.codec.encode(batch.values, draw)

        # Augment.
        ambient_noise = None
        augment_labels = None
        coordinates = None
        if recipe.ambient.on:
            ambient_noise = views.draw_ambient_noise(recipe.ambient, prepared.noise_keys, batch, images.shape, draw)
        if recipe.mafp.on:
            images, ambient_noise, augment_labels = views.augment_with_noise(
                recipe, images, ambient_noise, generator, rank_slice
            )
        if recipe.technique.on:
            own_generator.manual_seed(seed_of("technique", state.seed, state.step, rank))
            images = recipe.technique.augment(images, own_generator)

        # Patch: cut all images of a step to one size, each at its own position.
        if recipe.patches.on:
            size_seed = seed_of("patch", state.seed, state.step)
            images, ambient_noise, coordinates = views.cut_with_noise(
                recipe, images, ambient_noise, generator, rank_slice, size_seed
            )

        # Add noise. Ambient training's target at high noise is a noisy copy of the image.
        levels = process.levels(global_batch, generator)[rank_slice]
        noise = draw(images.shape)
        if ambient_noise is None:
            noisy = process.add_noise(images, noise, levels)
            target = images
        else:
            noisy, target = ambient.add_noise(recipe.ambient, process, images, ambient_noise, noise, levels)
        negative = None
        if recipe.ood.on:
            negative = ood.jigsaw(target, generator, global_batch=global_batch, rank_slice=rank_slice)

        # Condition.
        condition = _drawn_condition(conditioner, batch, recipe, generator, rank_slice)
        conditions = Conditions(
            augment_labels=augment_labels,
            coordinates=coordinates,
            mask=batch.mask,
            lengths=batch.lengths,
            **condition,
        )
        class_factors = None
        if prepared.loss_weights is not None:
            class_factors = prepared.loss_weights[batch.labels]

        unpadded_share = None  # of each item's elements
        if batch.mask is not None:
            unpadded_share = batch.mask.expand_as(images).flatten(1).float().mean(1)

        # Hide tokens: a second pass sees a part of each image's tokens.
        masked_conditions = None
        if recipe.masking.on:
            kept = masking.draw_kept(
                recipe.masking,
                state.network.tokens,
                generator,
                global_batch=global_batch,
                rank_slice=rank_slice,
                step_seed=seed_of("mask", state.seed, state.step),
            )
            masked_conditions = replace(conditions, kept=kept)

        elements = images[0].numel() if process.sums else 1
        scale = elements * training.loss_scale / rank_batch
        dropout_seed = seed_of("dropout", state.seed, state.step)

        def losses_of(model: nn.Module, part: slice) -> Tensor:
            """Return a model's loss on each image of a part of the step: the sum over its passes."""
            losses = losses_of_pass(model, part, conditions[part])
            if masked_conditions is not None:
                losses = losses + losses_of_pass(model, part, masked_conditions[part])
            return losses

        def losses_of_pass(model: nn.Module, part: slice, part_conditions: Conditions) -> Tensor:
            # Denoise.
            dropout_masks = dropout.of_step(model, global_batch, rank_slice.start + part.start, dropout_seed)
            with autocast(training.precision, device), dropout_masks:
                estimate = process.denoise(model, noisy[part], levels[part], part_conditions)

            # Loss: one value per image, the mean over all that is not padding.
            compared = without_padding(part_conditions.mask, estimate, target[part], noise[part])
            if ambient_noise is None:
                losses = process.losses(*compared, levels[part])
            else:
                losses = ambient.losses(recipe.ambient, process, *compared, levels[part])
            if unpadded_share is not None:
                losses = losses / unpadded_share[part]
            if training.min_snr_gamma is not None:
                losses = losses * weighting.min_snr(process, levels[part], training.min_snr_gamma)
            if negative is not None:
                losses = losses + ood.ood_loss(recipe.ood, process, estimate, negative[part], levels[part])
            if recipe.technique.on:
                own_term = recipe.technique.term(process, estimate, noisy[part], target[part], levels[part])
                losses = losses if own_term is None else losses + own_term
            return losses

        def accumulate(size: int) -> Tensor:
            """Accumulate the gradients of the step, `size` images at a time; return the sum of the losses."""
            if weigh is not None:
                return accumulate_weighed(size, weigh)

            loss_sum = torch.zeros((), device=device)
            for part in microbatch_slices(rank_batch, size):
                losses = losses_of(network, part)
                loss_sum += losses.detach().sum()
                if class_factors is not None:
                    losses = losses * class_factors[part]

                # Backward.
                (losses.sum() * scale).backward()
            return loss_sum

        def accumulate_weighed(size: int, weigh: WeighLosses) -> Tensor:
            """Do the same with factors that depend on all losses of the step."""

            def losses_of_step(model: nn.Module) -> Tensor:
                # The factors need all losses before the first backward pass, so it recomputes each part's activations.
                compute = losses_of if size >= rank_batch else partial(recomputed, losses_of, use_reentrant=False)
                slices = microbatch_slices(rank_batch, size)
                return torch.cat([cast(Tensor, compute(model, part)) for part in slices])

            losses = losses_of_step(network)
            factors = weigh(StepLosses(losses.detach(), batch.labels, losses_of_step))
            ((losses * factors.to(losses.dtype)).sum() * scale).backward()
            return losses.detach().sum()

        with float32_products(training.precision):
            loss_sum = microbatch.fit(accumulate, state.optimizer.zero_grad)
        finish_gradients(parameters, world, 1 / training.loss_scale)

        # Mask weights and step. A step that changes the masks does not update the weights.
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, state.images + global_batch)
        if not (state.masks and state.masks.apply(state.step)):
            if recipe.optimizer.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(parameters, recipe.optimizer.max_gradient_norm)
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        # Average.
        decay = ema_decay(recipe.ema, state.images, global_batch)
        with torch.no_grad():  # otherwise the averages would keep every step's graph alive
            foreach.lerp_(averages, parameters, 1 - decay)
            if state.power:
                state.power.update(parameters, state.images, state.images + global_batch)

        state.step += 1
        state.images += global_batch
        yield Step(state.step, state.images, loss_sum / rank_batch)


def read_losses(steps: Sequence[Step], world: int = 1) -> list[float]:
    """Wait for the device and return the losses of these steps, each the mean over all ranks.

    Raises
    ------
    Diverged
        If a loss is not finite.
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
    """Require that a mean loss is not many times the lowest so far.

    Raises
    ------
    Diverged
        If it is.
    """
    if loss > EXPLOSION_FACTOR * lowest:
        raise Diverged(f"step {step}: loss has exploded to {loss:.4g} from {lowest:.4g}")


def microbatch_slices(rank_batch: int, size: int) -> list[slice]:
    """Split a rank's images of a step into parts of at most `size` images."""
    return [slice(first, min(first + size, rank_batch)) for first in range(0, rank_batch, size)]


def without_padding(mask: Tensor | None, estimate: Tensor, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a process compares, with zeros at padding.

    A process's target is a linear combination of x and noise: where both are zero, an estimate of zero has no loss.
    """
    if mask is None:
        return estimate, x, noise
    return estimate * mask, x * mask, noise * mask


def finish_gradients(parameters: Sequence[Tensor], world: int, scale: float) -> None:
    """Replace gradients by their mean over the ranks, times `scale`, and what is not finite as EDM does.

    NaN becomes 0, and infinity 1e5. The gradients are copied to one tensor and back: a few kernels and one all-reduce a
    step, however many there are. DistributedDataParallel would average them during the last backward pass: a rank that
    ran out of memory there could not recompute its step without the others.
    """
    gradients = [_in_memory_order(parameter.grad, parameter) for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if world > 1:
        dist.all_reduce(flat)
        flat /= world
    if scale != 1:
        flat *= scale
    torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)

    finished = flat.split([gradient.numel() for gradient in gradients])
    foreach.copy_(gradients, [part.view_as(gradient) for part, gradient in zip(finished, gradients, strict=True)])


def _in_memory_order(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return a gradient with its sides in the order in which the weight lies in memory: flattening copies nothing."""
    if weight.ndim == 4 and not weight.is_contiguous():
        return gradient.permute(0, 2, 3, 1)
    return gradient


def _draw_normal(generator: torch.Generator, global_batch: int, rank_slice: slice, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise for all ranks' images, and return this rank's, of the shape [b, C, H, W]."""
    return torch.randn(global_batch, *shape[1:], generator=generator, device=generator.device)[rank_slice]


def _drawn_condition(
    conditioner: Conditioner | None, batch: Batch, recipe: Recipe, generator: torch.Generator, rank_slice: slice
) -> dict[str, Any]:
    """Return the condition of the batch by its name, hidden for some images at random; none without conditions."""
    known = conditioner.of(batch) if conditioner else None
    if conditioner is None or known is None:
        return {}

    drop_probability = recipe.conditioning.label_drop
    if drop_probability:
        uniform = torch.rand(recipe.training.batch_size, generator=generator, device=generator.device)[rank_slice]
        known = hide(conditioner, known, uniform < drop_probability)
    return {conditioner.name: known}
