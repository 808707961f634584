"""How the weights of a convolutional network lie in memory."""

import torch

from scrimp_trainers.networks.denoiser import Denoiser


def lay_out(network: Denoiser, precision: str) -> None:
    """Lay the weights out as its device convolves fastest in a precision: on a GPU's tensor cores, channels last.

    Images take the layout of the weights. Tensor cores want channels last, and of another layout cuDNN makes it before
    each convolution; exact fp32 is not for them. Names, shapes and values stay as they are.
    """
    if network.convolutional and network.device.type == "cuda" and precision != "fp32":
        network.to(memory_format=torch.channels_last)
