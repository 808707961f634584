"""Sparse-to-sparse training (Oliveira et al. 2025): most weights of the network are zero from the first step.

Static-DM keeps its random mask. RigL-DM and MagRan-DM periodically drop the smallest weights and grow as many others.
Masks are simulated on dense kernels: savings are counted (`metrics/cost.py`), not timed.

The paper's code is not public. This is a reconstruction from the paper's rule, RigL's code (Evci et al. 2020) and the
in-time over-parametrisation (ITOP) code. Where the paper is silent, these are our choices: which layers are masked, how
the sparsity is distributed over them, that dense gradients come from the step that changes the mask, and that this step
does not update weights. A weight that was just dropped may grow back at once. It then keeps its value and moments in
RigL-DM and restarts at zero in MagRan-DM, as RigL's code does for either rule.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from scrimp_trainers.common import foreach
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.recipe.techniques import Sparsity


@dataclass(frozen=True)
class LayerRow:
    """One layer in the table of masked layers."""

    name: str
    """Name of its weight."""
    shape: tuple[int, ...]
    """Shape of its weight."""
    masked: bool
    """Whether it is masked; false for layers that the recipe excludes."""
    density: float
    """Fraction of its weights that are active."""
    flops_share: float
    """Fraction of the FLOPs of all layers that it takes when all are dense."""


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all convolutions, linear and recurrent layers, without biases, norms and embeddings.

    A recurrent layer has several: for what comes in and for its state, a layer and a direction.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            weights[f"{name}.weight".lstrip(".")] = module.weight
        elif isinstance(module, nn.RNNBase):
            own = dict(module.named_parameters(recurse=False))
            weights |= {f"{name}.{each}".lstrip("."): own[each] for each in own if each.startswith("weight_")}
    return weights


def maskable(settings: Sparsity, network: nn.Module) -> dict[str, Tensor]:
    """Return the layer weights whose names contain none of `settings.exclude`.

    Raises
    ------
    UserError
        If none is left.
    """
    masked: dict[str, Tensor] = {}
    for name, weight in layer_weights(network).items():
        layer_name = name.removesuffix("weight")
        if not any(part in layer_name for part in settings.exclude):
            masked[name] = weight
    if not masked:
        raise UserError(f"sparsity.exclude: {list(settings.exclude)} leaves no layer to mask; exclude fewer")
    return masked


def active_weights(settings: Sparsity, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the number of active weights of each layer; their sum is exactly round((1 - level) * all weights).

    Uniform gives all layers the same density. Erdos-Renyi-kernel gives a layer a density proportional to
    sum(dims) / prod(dims); a layer that would exceed 1 is dense, and the remainder is distributed over the others.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    proportions = sizes
    if settings.distribution == "erk":
        proportions = {name: sum(shape) for name, shape in shapes.items()}

    total = round((1 - settings.level) * sum(sizes.values()))
    return _apportion(total, proportions, sizes)


def densities(settings: Sparsity, network: nn.Module) -> dict[str, float]:
    """Return the fraction of active weights of each masked layer, by the name of its weight."""
    shapes = {name: weight.shape for name, weight in maskable(settings, network).items()}
    active = active_weights(settings, shapes)
    return {name: count / shapes[name].numel() for name, count in active.items()}


def layer_table(settings: Sparsity, network: nn.Module, flops: Mapping[str, int]) -> list[LayerRow]:
    """Return a row for each layer; `flops` are those of `cost.layer_flops`."""
    density = densities(settings, network)
    total_flops = sum(flops.values())
    return [
        LayerRow(
            name=name,
            shape=tuple(weight.shape),
            masked=name in density,
            density=density.get(name, 1.0),
            flops_share=flops[name] / total_flops,
        )
        for name, weight in layer_weights(network).items()
    ]


def write_layer_table(rows: Sequence[LayerRow], path: Path) -> None:
    """Write the table as CSV, with a column for each field of `LayerRow`."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(LayerRow)])
    for row in rows:
        shape = "x".join(map(str, row.shape))
        writer.writerow([row.name, shape, row.masked, f"{row.density:.6g}", f"{row.flops_share:.6g}"])
    write_atomic(path, text.getvalue())


def count_dense_gradients(settings: Sparsity, steps: int, total_steps: int) -> int:
    """Count the steps, among the first `steps` of a training of `total_steps`, that need the gradients of all weights.

    RigL alone needs them, at the last `accumulate` steps of each period of `interval` + 1 steps.
    """
    if not settings.on or settings.method != "rigl":
        return 0

    period = settings.interval + 1
    all_changes = _count_changes(settings, total_steps)
    changes = min(steps // period, all_changes)
    dense_steps = changes * settings.accumulate

    if changes < all_changes:  # count the dense steps of the period that is not complete
        steps_in_period = steps - changes * period
        dense_steps += max(steps_in_period - (period - settings.accumulate), 0)
    return dense_steps


@dataclass
class Masks:
    """The masks of a network in training, applied to its weights, their averages and the optimizer's moments.

    Every step calls `apply` with the number of steps taken before it, once gradients are averaged over the ranks, so
    that all ranks have the same masks. Nothing in it waits for the device.
    """

    settings: Sparsity
    weights: dict[str, Tensor]
    """The masked weights, by name; the other dictionaries have the same order."""
    averages: dict[str, Tensor]
    """The same weights of the averaged network."""
    active: dict[str, int]
    """The number of active weights of each, which never changes."""
    masks: dict[str, Tensor]
    """1 where a weight is active, 0 elsewhere, in the weights' type: gradients are multiplied in one fast call."""
    sums: dict[str, Tensor]
    """Sums of the dense gradients accumulated for the next change; empty if a change needs those of one step only."""
    optimizer: torch.optim.Optimizer
    seed: int
    total_steps: int
    nonzero_fraction: float
    """Fraction of the network's parameters that may differ from zero."""

    def apply(self, step: int) -> bool:
        """Change the masks if that is due at this step; otherwise mask the gradients for the optimizer.

        Returns whether the masks changed. The optimizer's step is then skipped.
        """
        change_due = self.is_change_due(step)
        if change_due:
            self.change(step)
        else:
            self.mask_gradients(step)
        return change_due

    def is_change_due(self, step: int) -> bool:
        """Whether the masks change at this step: after every `interval` other steps, until `end` of the training."""
        if self.settings.method == "static":
            return False
        changes, remainder = divmod(step + 1, self.settings.interval + 1)
        return remainder == 0 and changes <= _count_changes(self.settings, self.total_steps)

    def mask_gradients(self, step: int) -> None:
        """Zero the gradients of inactive weights, so that these weights and their moments stay zero.

        That holds for Adam, with weight decay in the gradient, and for AdamW: neither moves a zero weight whose
        gradient and moments are zero. Dense gradients that the next change needs are accumulated first.
        """
        gradients = self._gradients()
        if self.sums:
            next_steps = range(step + 1, step + self.settings.accumulate)
            if any(self.is_change_due(next_step) for next_step in next_steps):
                foreach.add_(list(self.sums.values()), gradients)
        foreach.mul_(gradients, list(self.masks.values()))

    @torch.no_grad()
    def change(self, step: int) -> None:
        """Drop each layer's smallest weights and grow as many others, from zero and with moments of zero.

        Dropped weights become zero, also in the averages and the moments. Ties go to the lower index.
        """
        gradients = self._gradients()
        if self.sums:
            foreach.add_(gradients, list(self.sums.values()))
            foreach.zero_(list(self.sums.values()))

        drop = drop_fraction(self.settings, step, self.total_steps)
        grow_at_random = self.settings.method == "magran"
        generator = torch.Generator(gradients[0].device).manual_seed(seed_of("growth", self.seed, step))

        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            mask = self.masks[name]
            if grow_at_random:
                growth_scores = torch.rand(mask.shape, generator=generator, device=mask.device)
            else:
                growth_scores = gradient.abs()

            count = math.ceil(drop * self.active[name])
            kept, grown = _drop_and_grow(weight, mask, growth_scores, keep=self.active[name] - count, grow=count)

            # A weight that was dropped and has grown back keeps its value in RigL and restarts at zero in MagRan.
            unchanged = kept if grow_at_random else kept + grown * mask
            mask.copy_(kept + grown)
            self.averages[name].mul_(mask)
            weight.mul_(unchanged)
            for moment in self.optimizer.state[weight].values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.mul_(unchanged)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs: the masks, packed to one bit a weight, and the sums of gradients."""
        masks = {f"mask/{name}": _pack(mask) for name, mask in self.masks.items()}
        return masks | {f"sum/{name}": total for name, total in self.sums.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, mask in self.masks.items():
            mask.copy_(_unpack(tensors[f"mask/{name}"], mask.shape))
        for name, total in self.sums.items():
            total.copy_(tensors[f"sum/{name}"])

    def _gradients(self) -> list[Tensor]:
        return [cast(Tensor, weight.grad) for weight in self.weights.values()]


def start_masks(
    settings: Sparsity,
    network: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: int,
    total_steps: int,
) -> Masks:
    """Draw the masks, the same for the same seed on every rank and machine, and apply them to weights and averages.

    `total_steps` is the length of the whole training, which the schedules refer to.
    """
    weights = maskable(settings, network)
    averages = maskable(settings, ema)
    active = active_weights(settings, {name: weight.shape for name, weight in weights.items()})
    masks = {name: _draw_mask(weight, active[name], seed_of("mask", seed, name)) for name, weight in weights.items()}

    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
            averages[name].mul_(mask)

    sums: dict[str, Tensor] = {}
    if settings.method == "rigl" and settings.accumulate > 1:
        sums = {name: torch.zeros_like(mask) for name, mask in masks.items()}

    parameters = sum(parameter.numel() for parameter in network.parameters())
    inactive = sum(weight.numel() - active[name] for name, weight in weights.items())
    nonzero_fraction = 1 - inactive / parameters
    return Masks(settings, weights, averages, active, masks, sums, optimizer, seed, total_steps, nonzero_fraction)


def drop_fraction(settings: Sparsity, step: int, total_steps: int) -> float:
    """Return the fraction p_t of active weights that a change at step t drops.

    The cosine schedule is drop / 2 (1 + cos(pi t / T_end)).
    """
    if settings.schedule == "constant":
        return settings.drop
    return settings.drop / 2 * (1 + math.cos(math.pi * step / (settings.end * total_steps)))


def _count_changes(settings: Sparsity, total_steps: int) -> int:
    """Count the mask changes of a whole training."""
    return math.ceil(settings.end * total_steps) // (settings.interval + 1)


def _apportion(total: int, proportions: Mapping[str, int], limits: Mapping[str, int]) -> dict[str, int]:
    """Split a total into whole numbers in given proportions, none above its limit, by the largest remainder.

    Of equal remainders the earlier one is rounded up.
    """
    # Names that would exceed their limit get exactly the limit, until the remainder fits the others.
    at_limit: dict[str, int] = {}
    while True:
        remaining = total - sum(at_limit.values())
        others = {name: part for name, part in proportions.items() if name not in at_limit}
        whole = sum(others.values())
        exceeding = {name: limits[name] for name, part in others.items() if remaining * part > limits[name] * whole}
        if not exceeding:
            break
        at_limit |= exceeding

    # Round down, and give what is left over to those with the largest remainders.
    counts = {name: remaining * part // whole for name, part in others.items()}
    by_remainder = sorted(others, key=lambda name: -(remaining * others[name] % whole))
    for name in by_remainder[: remaining - sum(counts.values())]:
        counts[name] += 1
    return {name: at_limit.get(name, counts.get(name, 0)) for name in proportions}


def _draw_mask(weight: Tensor, active: int, seed: int) -> Tensor:
    """Draw a mask with exactly `active` ones."""
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(weight.numel(), dtype=weight.dtype).index_fill_(0, order[:active], 1)
    return torch.empty_like(weight).copy_(mask.reshape(weight.shape))  # laid out as it is


def _drop_and_grow(
    weight: Tensor, mask: Tensor, growth_scores: Tensor, *, keep: int, grow: int
) -> tuple[Tensor, Tensor]:
    """Return masks of the `keep` largest active weights, and of the `grow` highest growth scores among all others."""
    kept = _largest(weight.abs().masked_fill(mask == 0, -1), keep)
    grown = _largest(growth_scores.masked_fill(kept == 1, -1), grow)
    return kept, grown


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` highest scores."""
    order = scores.flatten().argsort(descending=True, stable=True)  # `topk` does not order ties
    return torch.zeros_like(scores).flatten().index_fill_(0, order[:count], 1).reshape(scores.shape)


def _pack(mask: Tensor) -> Tensor:
    """Pack a mask into bytes of eight bits, padded with zeros."""
    bits = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).reshape(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack a mask of this shape from bytes."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten()[: shape.numel()].reshape(shape)
