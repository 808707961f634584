"""A network whose weights are in half precision already, for many calls under autocast."""

import copy
from typing import Any

import torch
from torch import nn

from scrimp_trainers.networks.denoiser import Denoiser

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights and biases autocast makes half precision in each call, unless they are trained."""


def with_half_weights(network: Denoiser, dtype: torch.dtype) -> Denoiser:
    """Return a copy of a network for calls under autocast with this type, in which nothing is left to cast.

    What autocast leaves in float32, such as norms and embeddings, is not copied: both networks share it.
    """
    tensors = [*network.parameters(), *network.buffers()]
    copies: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    for module in network.modules():
        if type(module) in PRODUCTS:
            for weight in module.parameters(recurse=False):
                copies[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(network, copies)
