"""A made-up GPU: tensors that say they are on `cuda:0` and hold nothing, to check what a step does to them.

No GPU is needed. Devices, shapes and types are what they would be on one, and nothing is computed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scrimp_trainers.diffusion import ddpm, iddpm
from scrimp_trainers.techniques import ood
from scrimp_trainers.training import state

CUDA = torch.device("cuda:0")
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution"}
"""Operations that refuse factors of different types. Fake tensors look at those of the last one alone."""
COPIES = {"_to_copy", "copy_"}
FROM_NUMPY = torch.from_numpy


class WaitsForDevice(Exception):
    """A step copies between host and device, for which the host waits until the device has done all its work."""


class MixedTypes(Exception):
    """A step multiplies numbers of different types."""


ASKS_DEVICE = (WaitsForDevice, DataDependentOutputException, DynamicOutputShapeException)
"""What is raised where a step waits for the device: for a copy, or because it asks for a number that is there."""


class Generator(torch.Generator):
    """A generator that says it is on the device that it was asked for."""

    named: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        """Make one on the host."""
        generator = super().__new__(cls)
        generator.named = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it draws."""
        return self.named


class Watch(TorchDispatchMode):
    """Refuse what fake tensors let pass: copies that wait for the device, and products of different types."""

    making_table = False
    """Whether a table is made that is kept for all steps, which may wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes into an operation, and what a copy makes of it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = _tensors((*args, *kwargs.values()))
        if name in PRODUCTS and len({tensor.dtype for tensor in given}) > 1:
            raise MixedTypes(f"{func}: {[tensor.dtype for tensor in given]}")

        # A number on the host goes along with the launch of a kernel; any other tensor is copied.
        involved = [*given, out] if name in COPIES else [tensor for tensor in given if tensor.ndim]
        waits = len({tensor.device for tensor in involved}) > 1 and not kwargs.get("non_blocking")
        if waits and not self.making_table:
            raise WaitsForDevice(f"{func}: {[tensor.device for tensor in involved]}")
        return out


@contextmanager
def made_up() -> Iterator[None]:
    """Let everything inside run as if there were a GPU, on fake tensors; others are refused."""
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        patch("torch.Generator", Generator),
        patch("torch.from_numpy", _from_numpy),
        patch.object(Tensor, "pin_memory", Tensor.clone),
        patch.object(nn.Module, "to", _moved),
        patch.object(state, "copy", SimpleNamespace(deepcopy=_copied)),
        patch.object(Tensor, "backward", backward),
        patch.object(ddpm, "_alpha_bars", _table(ddpm._alpha_bars)),
        patch.object(iddpm, "_tables", _table(iddpm._tables)),
        patch.object(ood, "_orders", _table(ood._orders)),
        FakeTensorMode(),
    ):
        yield


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Do what `Tensor.backward` does, node by node: torch's own engine asks the driver of the GPU for its streams."""
    received: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in _from_the_loss_down(loss.grad_fn):
        gradients = received.pop(node, None)
        if gradients is None:
            continue
        if hasattr(node, "variable"):  # a leaf of the graph
            leaf = node.variable
            leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
            continue

        passed_on = node(*(gradients.get(place) for place in range(len(node._input_metadata))))
        if not isinstance(passed_on, tuple):
            passed_on = (passed_on,)
        for gradient, (below, place) in zip(passed_on, node.next_functions, strict=True):
            if gradient is None or below is None:
                continue
            expected = below._input_metadata[place]
            if gradient.shape != expected.shape:
                gradient = gradient.sum_to_size(expected.shape)
            if gradient.dtype != expected.dtype:
                gradient = gradient.to(expected.dtype)
            sums = received.setdefault(below, {})
            sums[place] = sums[place] + gradient if place in sums else gradient


def _from_the_loss_down(root: Any) -> Iterator[Any]:
    """Return the nodes of a graph, each after all that pass a gradient to it."""
    order = []
    seen = {root}
    path = [(root, iter(root.next_functions))]
    while path:
        node, children = path[-1]
        unseen = next((child for child, _ in children if child is not None and child not in seen), None)
        if unseen is None:
            order.append(node)
            path.pop()
        else:
            seen.add(unseen)
            path.append((unseen, iter(unseen.next_functions)))
    return reversed(order)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among an operation's arguments, also those in lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(each for each in value if isinstance(each, Tensor))
    return found


def _from_numpy(array: np.ndarray) -> Tensor:
    """Return a fake tensor on the host: `torch.from_numpy` makes a true one."""
    return torch.empty(array.shape, dtype=FROM_NUMPY(array).dtype)


def _moved(network: nn.Module, *_: object, memory_format: torch.memory_format = torch.preserve_format) -> nn.Module:
    """Move a network to the device. `nn.Module.to` swaps tensors, which fake ones refuse."""
    for module in network.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                layout = memory_format if weight.ndim == 4 else torch.preserve_format
                moved = weight.detach().to(CUDA, memory_format=layout)
                setattr(module, name, nn.Parameter(moved, weight.requires_grad))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(CUDA)
    return network


def _copied(network: nn.Module) -> nn.Module:
    """Copy a network. `copy.deepcopy` would also copy what its fake tensors have in common."""
    memo: dict[int, Any] = {id(weight): nn.Parameter(weight.detach().clone()) for weight in network.parameters()}
    memo |= {id(buffer): buffer.clone() for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def _table(function: Any) -> Callable[..., Any]:
    """Return a function whose results are kept, without what it has kept of true tensors, and unwatched."""

    @cache
    def made_once(*arguments: Any) -> Any:
        Watch.making_table = True
        try:
            return function.__wrapped__(*arguments)
        finally:
            Watch.making_table = False

    return made_once
