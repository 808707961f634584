"""The Fréchet distance that infinitely many samples would have: `fid_infinity`, `fd_infinity_dinov2`.

"Effectively Unbiased FID and Inception Score and Where to Find Them" (Chong and Forsyth 2020): the distance of n
samples is too large by a term in 1 / n, so the distances of subsets of several sizes are fitted by a line in 1 / n, and
its intercept is the score. The bias from the size of the reference set remains. With fewer samples than features the
bias does not follow a line: read the score with caution.
"""

from typing import TYPE_CHECKING

from scrimp_trainers.metrics.names import named
from scrimp_trainers.recipe.scoring import SMALLEST, Extractor

if TYPE_CHECKING:
    from scrimp_trainers.metrics.fidelity import Compared

POINTS = 15
"""Subsets, from a tenth of the samples to all of them, as in the paper's code."""


def names(extractor: Extractor) -> list[str]:
    """Return the name of the score."""
    return [named("fd_infinity", extractor)]


def scores(compared: "Compared") -> dict[str, float]:
    """Return the score, by its name. The same samples have the same score."""
    import numpy as np
    import torch

    from scrimp_trainers.metrics import fidelity

    features = compared.features.cpu()
    fewest = min(max(SMALLEST, len(features) // 10), len(features))
    counts = np.linspace(fewest, len(features), POINTS).astype(int)
    generator = torch.Generator().manual_seed(0)
    distances = []
    for count in counts:
        chosen = torch.randperm(len(features), generator=generator)[:count]
        distances.append(fidelity.frechet(features[chosen], compared.known))

    _, intercept = np.polyfit(1 / counts, distances, 1)
    return {name: float(intercept) for name in names(compared.extractor)}
