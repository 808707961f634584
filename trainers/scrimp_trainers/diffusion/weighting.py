"""Weights of the noise levels in the training loss."""

from torch import Tensor

from scrimp_trainers.diffusion.process import Process


def min_snr(process: Process, levels: Tensor, gamma: float) -> Tensor:
    """Return the factor [B] that turns a process's losses into min(SNR, gamma) times the clean image's squared error.

    "Efficient Diffusion Training via Min-SNR Weighting Strategy" (Hang et al. 2023), with SNR = (alpha / sigma)^2.
    Where the noise is predicted the factor is min(SNR, gamma) / SNR, for the velocity min(SNR, gamma) / (SNR + 1).
    """
    alpha, sigma = process.scales(levels)
    signal_to_noise = (alpha / sigma).square()
    return signal_to_noise.clamp(max=gamma) / process.weight(levels)
