"""A training step's memory, counted on tensors without content: nothing is computed, and no GPU is needed."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import masking, sparsity
from scrimp_trainers.training.posthoc_ema import WIDTHS

BATCHES = (4, 8)
"""Images of the two passes from whose peaks the memory of one image follows. With fewer, what a pass takes whatever its
batch would weigh too much."""

RECURRENT_KEPT = 8
"""Numbers that a recurrent layer is assumed to keep for backward, at each point for each of its units."""


@dataclass(frozen=True)
class Counted:
    """What a step takes, in bytes, and how many operations its forward passes launch."""

    constant: int
    """Memory of the weights, their average, gradients, moments and masks, and of copies in half precision."""
    image: int
    """Memory of one image's activations."""
    operations: int
    """Operations of the forward passes, however many images they see."""


def count(recipe: Recipe, network: Denoiser) -> Counted:
    """Count the memory of a step as a GPU allocates it, but for the workspaces of its libraries.

    The peak is at the end of the forward passes: backward frees activations faster than it makes gradients of them.
    What augmentation takes before, and the images themselves, are not counted.

    Parameters
    ----------
    network
        The recipe's network, on any device; left as it is.
    """
    passes = [_forward(recipe, network, images) for images in BATCHES]
    image, fixed = split_peaks([live.peak for live in passes])
    return Counted(_kept_bytes(recipe, network) + fixed, image, passes[0].operations)


def split_peaks(peaks: Sequence[int]) -> tuple[int, int]:
    """Return the bytes that each image adds to the peaks of `BATCHES`, at least 1, and those that none does."""
    fewer, more = BATCHES
    image = max(1, (peaks[1] - peaks[0]) // (more - fewer))
    return image, max(0, peaks[0] - fewer * image)


def summed_loss(
    recipe: Recipe, network: Denoiser, call: Callable[..., Tensor], images: int, device: torch.device
) -> Tensor:
    """Return some loss of all of a step's passes on so many images, 0-d.

    Parameters
    ----------
    call
        Stands for the network: takes what it takes.
    """
    arguments = torch.zeros(images, *network.shape, device=device), torch.ones(images, device=device)
    conditions = network.example(images).to(device)
    loss = call(*arguments, conditions).float().square().sum()
    if recipe.masking.on:  # the pass on a part of the tokens, at its most
        kept = masking.count_kept(network.tokens, recipe.masking.ratio)
        shown = torch.arange(kept, device=device).expand(images, -1)
        loss = loss + call(*arguments, replace(conditions, kept=shown)).float().square().sum()
    return loss


def _forward(recipe: Recipe, network: Denoiser, images: int) -> "_Live":
    """Follow the memory of the forward passes on so many images, on a CPU whose arithmetic is a GPU's."""
    device = torch.device("cpu")
    half = recipe.training.precision in ("bf16", "fp16")
    with FakeTensorMode(allow_non_fake_inputs=True):
        own = [*network.named_parameters(), *network.named_buffers()]
        tensors = {
            name: torch.empty_like(tensor, device=device).requires_grad_(tensor.requires_grad) for name, tensor in own
        }
        live = _Live(tensors)
        with live, _LikeCUDA(live), torch.autocast("cpu", torch.bfloat16, enabled=half):
            summed_loss(recipe, network, lambda *inputs: functional_call(network, tensors, inputs), images, device)
    return live


def _kept_bytes(recipe: Recipe, network: Denoiser) -> int:
    """Return the bytes of weights and their averages, of gradients and both moments of what is trained, of masks."""
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in network.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    kept = 2 * sum(size for size, _ in sizes) + 3 * trained
    if recipe.ema.snapshots:
        kept += len(WIDTHS) * trained
    if recipe.sparsity.on:
        masks = 1 if recipe.sparsity.accumulate == 1 else 2  # and as many sums of dense gradients
        masked = sparsity.maskable(recipe.sparsity, network).values()
        kept += masks * sum(weight.numel() * weight.element_size() for weight in masked)
    return kept


class _Live(TorchDispatchMode):
    """Follows how many bytes the tensors hold that are made while it is active, besides those that are `known`."""

    def __init__(self, known: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.operations = 0
        self._storages = weakref.WeakSet(tensor.untyped_storage() for tensor in known.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


class _LikeCUDA(TorchFunctionMode):
    """Makes a CPU do what CUDA does, where they differ.

    Under autocast, CUDA computes norms in fp32, and keeps that for backward. A recurrent layer is one call of cuDNN,
    and on a CPU many for each of its points.
    """

    def __init__(self, live: _Live) -> None:
        super().__init__()
        self.live = live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.gru:
            return self._gru(*args)
        if func in (F.group_norm, F.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))

    def _gru(self, items: Tensor, state: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        """Return outputs [B, points, D] of a GRU that goes first by items, which hold what cuDNN keeps for backward."""
        rows, count, width = state.shape  # a row for each layer and direction
        _, _, layers, _, _, _, _ = settings
        points = items.shape[1]
        self.live.operations += 2 * rows * points
        kept = items.new_empty(rows, count, points, RECURRENT_KEPT * width)
        return kept[0, :, :, : rows // layers * width], state
