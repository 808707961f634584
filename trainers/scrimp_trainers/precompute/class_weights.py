"""The formulas of class weights: DoReMi (Xie et al. 2023) and group DRO (Sagawa et al. 2020) over classes."""

import torch
from torch import Tensor


def update_class_weights(alpha: Tensor, excess: Tensor, eta: float, smoothing: float) -> Tensor:
    """Update class weights [K] by exponentiated gradient ascent: the larger a class's excess [K], the more it gains.

    The update is alpha_c exp(eta e_c), normalised, then mixed with the uniform distribution, so that no weight falls
    below smoothing / K.
    """
    updated = torch.softmax(alpha.log() + eta * excess, dim=0)
    return (1 - smoothing) * updated + smoothing / len(alpha)


def excess_losses(losses: Tensor, reference: Tensor, labels: Tensor, last: Tensor) -> Tensor:
    """Return each class's mean excess [K] of its images' losses [b] over the reference's [b], clipped at 0.

    A class without an image in the batch keeps its `last` value. With a reference of 0 these are group DRO's losses.
    """
    membership = _membership(labels, len(last))
    excess = (losses.double() - reference.double()).clamp(min=0)
    means = excess @ membership / membership.sum(0).clamp(min=1)
    return torch.where(membership.any(0), means, last)


def relative_excess(excess: Tensor) -> Tensor:
    """Divide excess losses [K] by their mean. Unscaled, about 1e-3 in diffusion, they would change hardly anything."""
    return excess / excess.mean().clamp(min=torch.finfo(excess.dtype).tiny)


def loss_factors(alpha: Tensor, labels: Tensor, *, grouped: bool) -> Tensor:
    """Return the factor [b] on each image's loss in the proxy's training loss.

    DoReMi's loss is sum_i alpha_{y_i} l_i / sum_i alpha_{y_i}. Group DRO's (`grouped`) is sum_c alpha_c L_c, where L_c
    is the mean over the batch's images of class c.
    """
    if grouped:
        images_per_class = _membership(labels, len(alpha)).sum(0)
        return (alpha / images_per_class.clamp(min=1))[labels]
    return alpha[labels] / alpha[labels].sum()


def _membership(labels: Tensor, classes: int) -> Tensor:
    """Return whether each image is of each class: float64 [b, K], 0 or 1."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).double()
