"""Sparse-to-sparse training (Oliveira et al. 2025): a network most of whose weights are zero from the first step.

Static-DM keeps its random mask; RigL-DM and MagRan-DM drop the smallest weights every so often and grow as many at
other places. Masks are simulated on dense kernels: what is saved is counted (`metrics/cost.py`), not timed.

The paper's own code is not known, so this is a reconstruction from the rule that it states and from what RigL (Evci et
al. 2020) and the in-time over-parametrisation (ITOP) code do. Chosen where the paper says nothing: which layers are
masked, how the level is spread over them, that dense gradients come from the step that changes the mask, and that this
step moves no weights. A just dropped weight may grow back at once; it then keeps its value and moments in RigL-DM and
starts again at zero in MagRan-DM, as in RigL's code for either rule.
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
    """One layer in the table of what is masked."""

    name: str
    """Name of its weight."""
    shape: tuple[int, ...]
    """Shape of its weight."""
    masked: bool
    """Whether it is masked at all: false for what the recipe excludes."""
    density: float
    """Share of its weights that are active."""
    flops_share: float
    """Its share of the FLOPs of all layers, when all are dense."""


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all convolutions and linear layers by name; no bias, norm or embedding is among them."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    modules = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    return {f"{name}.weight".lstrip("."): module.weight for name, module in modules.items()}


def maskable(settings: Sparsity, network: nn.Module) -> dict[str, Tensor]:
    """Return those of them whose name holds none of `settings.exclude`.

    Raises
    ------
    UserError
        If that leaves none.
    """
    found = {
        name: weight
        for name, weight in layer_weights(network).items()
        if not any(part in name.removesuffix("weight") for part in settings.exclude)
    }
    if not found:
        raise UserError(f"sparsity.exclude: {list(settings.exclude)} leaves no layer to mask; exclude fewer")
    return found


def active_weights(settings: Sparsity, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return how many weights of each layer are active: round((1 - level) times all of them) in total, exactly.

    Uniform gives all layers the same density. Erdos-Renyi-kernel gives a layer a density proportional to
    sum(dims) / prod(dims); one that would exceed 1 is dense, and the rest is spread anew over the others.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    parts = {name: sum(shape) for name, shape in shapes.items()} if settings.distribution == "erk" else sizes
    return _spread(round((1 - settings.level) * sum(sizes.values())), parts, sizes)


def densities(settings: Sparsity, network: nn.Module) -> dict[str, float]:
    """Return the share of active weights of each layer that is masked, by the name of its weight."""
    sizes = {name: weight.shape for name, weight in maskable(settings, network).items()}
    return {name: count / sizes[name].numel() for name, count in active_weights(settings, sizes).items()}


def layer_table(settings: Sparsity, network: nn.Module, flops: Mapping[str, int]) -> list[LayerRow]:
    """Return what becomes of each layer; `flops` as `cost.layer_flops` counts them."""
    shares, total = densities(settings, network), sum(flops.values())
    return [
        LayerRow(name, tuple(weight.shape), name in shares, shares.get(name, 1.0), flops[name] / total)
        for name, weight in layer_weights(network).items()
    ]


def write_layer_table(rows: Sequence[LayerRow], path: Path) -> None:
    """Write the table as CSV: layer, shape, masked, density, flops_share."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(LayerRow)])
    writer.writerows(
        [row.name, "x".join(map(str, row.shape)), row.masked, f"{row.density:.6g}", f"{row.flops_share:.6g}"]
        for row in rows
    )
    write_atomic(path, text.getvalue())


def count_dense_gradients(settings: Sparsity, steps: int, total_steps: int) -> int:
    """Count the steps, of the first `steps` of a training of `total_steps`, that need the gradient of all weights."""
    if not settings.on or settings.method != "rigl":
        return 0
    changes, period, each = _changes(settings, total_steps), settings.interval + 1, settings.accumulate
    done = min(steps // period, changes)
    begun = max(steps - done * period - (period - each), 0) if done < changes else 0
    return done * each + begun


@dataclass
class Masks:
    """The masks of a network in training: of its weights, their averages and the optimizer's moments.

    Once gradients are averaged over the ranks, so that all ranks mask alike, every step calls `act` with the number of
    steps taken before. Nothing in it waits for the device.
    """

    settings: Sparsity
    weights: dict[str, Tensor]
    """The weights that are masked, by name; the other dictionaries have the same order."""
    averages: dict[str, Tensor]
    """The same weights of the averaged network."""
    active: dict[str, int]
    """How many of them are active, which never changes."""
    masks: dict[str, Tensor]
    """1 where a weight is active, 0 elsewhere, in the weights' type: gradients are multiplied in one fast call."""
    sums: dict[str, Tensor]
    """Sums of the dense gradients since the first that counts for the next change; empty if only one does."""
    optimizer: torch.optim.Optimizer
    seed: int
    total_steps: int
    nonzero_fraction: float
    """Share of all the network's parameters that may be other than zero."""

    def act(self, step: int) -> bool:
        """Change the masks if that is due, in place of the optimizer's step, or else mask the gradients for it.

        Returns whether the optimizer's step is to be left out.
        """
        due = self.due(step)
        if due:
            self.move(step)
        else:
            self.hold(step)
        return due

    def due(self, step: int) -> bool:
        """Whether the mask changes at this step: after every `interval` others, until `end` of the training."""
        if self.settings.method == "static":
            return False
        changes, rest = divmod(step + 1, self.settings.interval + 1)
        return rest == 0 and changes <= _changes(self.settings, self.total_steps)

    def hold(self, step: int) -> None:
        """Zero the gradients of inactive weights, so that these and their moments, all zero, stay so.

        That holds for Adam, with weight decay in the gradient, and for AdamW: neither moves a zero weight whose
        gradient and moments are zero. Before a change, gradients that count for it are added up first.
        """
        gradients = self._gradients()
        if self.sums and any(self.due(step + ahead) for ahead in range(1, self.settings.accumulate)):
            foreach.add_(list(self.sums.values()), gradients)
        foreach.mul_(gradients, list(self.masks.values()))

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Drop each layer's smallest weights and grow as many others, from zero and with moments of zero.

        What is dropped becomes zero in the weights, their averages and the moments. Ties go to the lower index.
        """
        gradients = self._gradients()
        if self.sums:
            foreach.add_(gradients, list(self.sums.values()))
            foreach.zero_(list(self.sums.values()))
        drop = drop_fraction(self.settings, step, self.total_steps)
        generator = torch.Generator(gradients[0].device).manual_seed(seed_of("growth", self.seed, step))
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            mask, dropped = self.masks[name], math.ceil(drop * self.active[name])
            random = self.settings.method == "magran"
            wanted = torch.rand(mask.shape, generator=generator, device=mask.device) if random else gradient.abs()
            kept, grown = _exchange(weight, mask, wanted, self.active[name] - dropped, dropped)
            stays = kept if random else kept + grown * mask
            mask.copy_(kept + grown)
            self.averages[name].mul_(mask)
            weight.mul_(stays)
            for moment in self.optimizer.state[weight].values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.mul_(stays)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs: the masks, eight weights a byte, and the sums of gradients."""
        masks = {f"mask/{name}": _pack(mask) for name, mask in self.masks.items()}
        return masks | {f"sum/{name}": total for name, total in self.sums.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` returned."""
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
    """Draw the masks, the same for the same seed on every rank and machine, and zero the weights and their averages.

    `total_steps` is the length of the training, of which the schedules are shares.
    """
    weights, averages = maskable(settings, network), maskable(settings, ema)
    active = active_weights(settings, {name: weight.shape for name, weight in weights.items()})
    masks = {name: _draw(weight, active[name], seed_of("mask", seed, name)) for name, weight in weights.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
            averages[name].mul_(mask)
    collects = settings.method == "rigl" and settings.accumulate > 1
    sums = {name: torch.zeros_like(mask) for name, mask in masks.items()} if collects else {}
    everything = sum(parameter.numel() for parameter in network.parameters())
    inactive = sum(weight.numel() - active[name] for name, weight in weights.items())
    return Masks(
        settings, weights, averages, active, masks, sums, optimizer, seed, total_steps, 1 - inactive / everything
    )


def drop_fraction(settings: Sparsity, step: int, total_steps: int) -> float:
    """Return the share p_t of the active weights that move at a step: drop / 2 (1 + cos(pi t / T_end)) if cosine."""
    if settings.schedule == "constant":
        return settings.drop
    return settings.drop / 2 * (1 + math.cos(math.pi * step / (settings.end * total_steps)))


def _changes(settings: Sparsity, total_steps: int) -> int:
    """Count the changes of a whole training."""
    return math.ceil(settings.end * total_steps) // (settings.interval + 1)


def _spread(total: int, parts: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
    """Share a total out in proportion to `parts`, giving none more than its `most`, in whole numbers.

    What is left after rounding down goes one each to those who lost most by it, the earlier first.
    """
    full: dict[str, int] = {}
    while True:
        rest = total - sum(full.values())
        others = {name: part for name, part in parts.items() if name not in full}
        whole = sum(others.values())
        above = {name: most[name] for name, part in others.items() if rest * part > most[name] * whole}
        if not above:
            break
        full |= above
    shares = {name: rest * part // whole for name, part in others.items()}
    losers = sorted(others, key=lambda name: -(rest * others[name] % whole))
    for name in losers[: rest - sum(shares.values())]:
        shares[name] += 1
    return {name: full.get(name, shares.get(name, 0)) for name in parts}


def _draw(weight: Tensor, active: int, seed: int) -> Tensor:
    """Draw a mask with exactly so many ones."""
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(weight.numel(), dtype=weight.dtype).index_fill_(0, order[:active], 1)
    return mask.reshape(weight.shape).to(weight.device)


def _exchange(weight: Tensor, mask: Tensor, wanted: Tensor, keep: int, grow: int) -> tuple[Tensor, Tensor]:
    """Return masks of the `keep` largest active weights and of the `grow` most wanted among all others."""
    kept = _largest(weight.abs().masked_fill(mask == 0, -1), keep)
    return kept, _largest(wanted.masked_fill(kept == 1, -1), grow)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` highest scores."""
    order = scores.flatten().argsort(descending=True, stable=True)  # stable: `topk` breaks ties as it likes
    return torch.zeros_like(scores).flatten().index_fill_(0, order[:count], 1).reshape(scores.shape)


def _pack(mask: Tensor) -> Tensor:
    bits = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).reshape(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten()[: shape.numel()].reshape(shape)
