"""The formulas of class weights: DoReMi (Xie et al. 2023) and group DRO (Sagawa et al. 2020) over classes."""

import torch
from torch import Tensor


def update_class_weights(alpha: Tensor, excess: Tensor, eta: float, smoothing: float) -> Tensor:
    """Move class weights [K] by exponentiated gradient ascent: the larger a class's excess [K], the more it gains.

    alpha_c exp(eta e_c), normalised, then mixed with the uniform distribution: none falls below smoothing / K.
    """
    moved = torch.softmax(alpha.log() + eta * excess, dim=0)
    return (1 - smoothing) * moved + smoothing / len(alpha)


def excess_losses(losses: Tensor, reference: Tensor, labels: Tensor, last: Tensor) -> Tensor:
    """Average over each class by how much its images' losses [b] exceed the reference's [b], none below 0: [K].

    A class without an image in the batch keeps its `last`. With zeros for a reference these are group DRO's losses.
    """
    members = _members(labels, len(last))
    means = (losses.double() - reference.double()).clamp(min=0) @ members / members.sum(0).clamp(min=1)
    return torch.where(members.any(0), means, last)


def relative_excess(excess: Tensor) -> Tensor:
    """Divide excess losses [K] by their mean. As they are, about 1e-3 in diffusion, they would move nothing."""
    return excess / excess.mean().clamp(min=torch.finfo(excess.dtype).tiny)


def loss_factors(alpha: Tensor, labels: Tensor, *, grouped: bool) -> Tensor:
    """Return the factor on each image's loss [b] in the proxy's.

    DoReMi's is sum_i alpha_{y_i} l_i / sum_i alpha_{y_i}. Group DRO's (`grouped`) is sum_c alpha_c L_c, where L_c is
    the mean over the batch's images of class c.
    """
    if grouped:
        return (alpha / _members(labels, len(alpha)).sum(0).clamp(min=1))[labels]
    return alpha[labels] / alpha[labels].sum()


def _members(labels: Tensor, classes: int) -> Tensor:
    """Return which image [b] is of which class: float64 [b, K], 0 or 1."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).double()
