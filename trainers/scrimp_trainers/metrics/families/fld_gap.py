"""FLD's generalisation gap, `fld_gap` or `fld_gap_dinov2`: below 0 where samples are nearer to training images.

"Feature Likelihood Divergence" (Jiralerspong et al. 2023). A mixture of Gaussians has one component around each
sample; their widths are fitted to the training images. The gap is the mean negative log-likelihood of the training
images minus that of held-out ones, in hundredths of a nat for each feature. Samples that generalise have a gap near 0,
copies a gap far below it: a component shrinks around the image that it is a copy of.
"""

import math
from typing import TYPE_CHECKING, cast

from scrimp_trainers.metrics.names import named
from scrimp_trainers.recipe.scoring import Extractor

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.metrics.fidelity import Compared

NEEDS_HOLDOUT = True
"""Held-out images are one of the two sides of the gap."""
MOST_SAMPLES = 10_000
"""Components, and images in a step of the fit, at most, as in the authors' code."""
EPOCHS = 50
LEARNING_RATE = 0.5
"""Of the fit, by Adam, as in the authors' code."""
NEAREST = 0.9
"""Factor on distances from the mean of the training images for a component there, which keeps the fit finite."""


def names(extractor: Extractor) -> list[str]:
    """Return the name of the score."""
    return [named("fld_gap", extractor)]


def scores(compared: "Compared") -> dict[str, float]:
    """Return the score, by its name. The same samples have the same score."""
    holdout = cast("Tensor", compared.holdout)
    training = cast("Tensor", compared.training)

    std = holdout.std(dim=0)
    varies = std > 0  # features that are the same for all held-out images have no scale
    mean = holdout.mean(dim=0)[varies]
    std = std[varies]
    samples = (compared.features[:MOST_SAMPLES][:, varies] - mean) / std
    training = (training[:, varies] - mean) / std
    holdout = (holdout[:, varies] - mean) / std

    log_variances = fit(samples, training)
    gap = _mean_nll(training, samples, log_variances) - _mean_nll(holdout, samples, log_variances)
    return {name: float(100 * gap) for name in names(compared.extractor)}


def fit(samples: "Tensor", training: "Tensor") -> "Tensor":
    """Return the logarithms [n] of the components' variances at which training images [t, d] are likeliest.

    Each starts at the variance that is best for its nearest training image.
    """
    import torch

    width = samples.shape[1]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).to(training.device)
    training = training[order]
    distances = torch.cdist(training, samples).square()
    to_mean = NEAREST**2 * (training - training.mean(dim=0)).square().sum(dim=1, keepdim=True)

    log_variances = ((distances.min(dim=0).values + 1e-3) / width).log().requires_grad_()
    of_mean = torch.zeros(1, device=samples.device, requires_grad=True)
    optimizer = torch.optim.Adam([log_variances, of_mean], lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for part, part_to_mean in zip(distances.split(MOST_SAMPLES), to_mean.split(MOST_SAMPLES), strict=True):
                near = _log_densities(part, log_variances, width) - math.log(len(samples))
                far = _log_densities(part_to_mean, of_mean, width)
                loss = -torch.cat([near, far], dim=1).logsumexp(dim=1).mean() / width

                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    log_variances.clamp_(-40, 20)  # a component on an image would shrink for ever
    return log_variances.detach()


def _mean_nll(images: "Tensor", samples: "Tensor", log_variances: "Tensor") -> "Tensor":
    """Return the mean negative log-likelihood of images [m, d] for each feature."""
    import torch

    densities = _log_densities(torch.cdist(images, samples).square(), log_variances, samples.shape[1])
    return (math.log(len(samples)) - densities.logsumexp(dim=1)).mean() / samples.shape[1]


def _log_densities(squares: "Tensor", log_variances: "Tensor", width: int) -> "Tensor":
    """Return the log-densities [m, n] of Gaussians of n variances at squared distances [m, n] in `width` dimensions."""
    return -0.5 * squares / log_variances.exp() - width / 2 * (log_variances + math.log(2 * math.pi))
