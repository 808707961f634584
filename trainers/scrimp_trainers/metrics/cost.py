"""What a repeat costs: parameters, floating-point operations, device time.

FLOPs follow RigL's convention, which the sparse-to-sparse paper follows too: two for each multiply-add of convolutions
and matrix products, and a training step as three forward passes: one forward, two for the gradients of activations and
of weights. A masked layer counts in proportion to its density. They are counted on one image, on the meta device:
nothing is computed or allocated. What kernels for dense weights save of it in time is nothing.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.recipe.techniques import Sparsity
from scrimp_trainers.techniques import sparsity


def parameters(network: nn.Module) -> int:
    """Count the network's trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())


def nonzero_parameters(network: nn.Module) -> int:
    """Count those that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in network.parameters())


def forward_flops(network: nn.Module, *inputs: Tensor | Conditions) -> int:
    """Count the FLOPs of one forward pass.

    Parameters
    ----------
    network
        Left as it is.
    inputs
        Its arguments for one image; only shapes and types are looked at.
    """
    return _count(network, inputs).get_total_flops()


def layer_flops(network: nn.Module, *inputs: Tensor | Conditions) -> dict[str, int]:
    """Count the FLOPs of one forward pass that each weight of `sparsity.layer_weights` takes, by its name.

    What is missing from `forward_flops` is matrix products of activations: attention. A recurrent layer uses each of
    its weights once at every point, so their sizes share its FLOPs.
    """
    counts = _count(network, inputs).get_flop_counts()
    root = type(network).__name__
    weights = sparsity.layer_weights(network)
    modules = {name: f"{root}.{name}".rpartition(".")[0] for name in weights}
    sizes = Counter[str]()
    for name, module in modules.items():
        sizes[module] += weights[name].numel()

    flops = {}
    for name, module in modules.items():
        module_flops = sum(counts[module].values()) if module in counts else 0
        flops[name] = module_flops * weights[name].numel() // sizes[module]
    return flops


def sparse_flops(flops: int, layers: Mapping[str, int], densities: Mapping[str, float]) -> int:
    """Return the FLOPs f_S of the sparse network's forward pass from f_D of the dense one's.

    Parameters
    ----------
    flops, layers
        From `forward_flops` and `layer_flops`.
    densities
        Of the layers that are masked, from `sparsity.densities`.
    """
    return round(flops - sum(layers[name] * (1 - density) for name, density in densities.items()))


def training_flops(
    settings: Sparsity, dense: float, sparse: float, *, steps: int, total_steps: int, batch_size: int
) -> float:
    """Return the FLOPs of the first `steps` of a training of `total_steps`, by RigL's formula.

    A step costs 3 f_S an image, and 2 f_S + f_D where RigL needs the gradient of all weights: where the mask changes,
    and at the steps before it whose gradients are averaged. On average over an interval and its change, for RigL, that
    is (interval 3 f_S + 2 f_S + f_D) / (interval + 1), until the last change. For images of several sizes, multiply.

    Parameters
    ----------
    dense, sparse
        FLOPs f_D and f_S of a forward pass on one image, the same if nothing is masked.
    """
    gradients = sparsity.count_dense_gradients(settings, steps, total_steps)
    return batch_size * (3 * sparse * steps + (dense - sparse) * gradients)


def _count(network: nn.Module, inputs: tuple[Tensor | Conditions, ...]) -> FlopCounterMode:
    own = [*network.named_parameters(), *network.named_buffers()]
    tensors = {name: value.detach().to("meta") for name, value in own}
    arguments = tuple(value.to("meta") for value in inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(network, tensors, arguments)
    return counter


def cost(
    network: nn.Module,
    flops: int,
    *,
    nfe: int,
    samples: int,
    seconds: float,
    devices: float,
) -> dict[str, float]:
    """Gather what a repeat has cost so far, besides the FLOPs of its training.

    Parameters
    ----------
    network
        The network, with its pruned weights at zero.
    flops
        Its forward pass on one image, from `forward_flops` or `sparse_flops`.
    nfe
        Network evaluations that one sample costs.
    samples
        Samples whose cost is stated.
    seconds, devices
        Wall-clock time, and the devices that were held for it.
    """
    return {
        "parameters": float(parameters(network)),
        "nonzero_parameters": float(nonzero_parameters(network)),
        "sample_flops": float(nfe) * flops * samples,
        "device_hours": seconds * devices / 3600,
    }
