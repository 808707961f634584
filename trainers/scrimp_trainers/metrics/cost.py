"""What a repeat costs: parameters, floating-point operations, device time.

FLOPs follow RigL's convention, which the sparse-to-sparse paper follows too: two for each multiply-add of convolutions
and matrix products, and a training step as three forward passes. They are counted on one image, on the meta device:
nothing is computed or allocated.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Count the network's trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())


def nonzero_parameters(network: nn.Module) -> int:
    """Count those that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in network.parameters())


def forward_flops(network: nn.Module, *inputs: Tensor | None) -> int:
    """Count the FLOPs of one forward pass.

    Parameters
    ----------
    network
        Left as it is.
    inputs
        Its arguments for one image; only shapes and types are looked at.
    """
    own = [*network.named_parameters(), *network.named_buffers()]
    tensors = {name: value.detach().to("meta") for name, value in own}
    arguments = tuple(None if value is None else value.to("meta") for value in inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(network, tensors, arguments)
    return counter.get_total_flops()


def cost(
    network: nn.Module, flops: int, *, images: int, nfe: int, samples: int, seconds: float, devices: int
) -> dict[str, float]:
    """Gather what a repeat has cost so far.

    Parameters
    ----------
    network
        The network, with its pruned weights at zero.
    flops
        Its forward pass on one image, from `forward_flops`.
    images
        Images seen in training.
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
        "train_flops": 3.0 * flops * images,
        "sample_flops": float(nfe) * flops * samples,
        "device_hours": seconds * devices / 3600,
    }
