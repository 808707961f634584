"""A network as one compiled graph."""

from typing import cast

import torch
from torch import nn

from scrimp_trainers.networks.denoiser import Denoiser


def compiled(network: Denoiser) -> nn.Module:
    """Compile a network with `torch.compile`; it shares its weights, and its first call takes a minute or more.

    Each pass is one graph, but for a GRU, which torch does not compile. Where shapes change from call to call, such as
    those of patches or of the last part of a step, the second one compiles a graph for all that follow. What is
    compiled is kept in the folder of temporary files, or in `TORCHINDUCTOR_CACHE_DIR`, for other repeats on the node.
    """
    # The place of a part in its step, which dropout knows, is a number like any other, and no reason to compile again.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    return cast(nn.Module, torch.compile(network))
