"""How far the samples' numbers of points and strokes and their mean turns are from the reference drawings'.

Each is a Wasserstein distance of the two distributions, in points, strokes and radians. No extractor has a part in it.
"""

from typing import TYPE_CHECKING, cast

from scrimp_trainers.data.modalities.strokes import STATISTICS
from scrimp_trainers.recipe.scoring import Extractor

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.metrics.fidelity import Compared

NEEDS_STATISTICS = True
"""They are of drawings, not of pictures."""


def names(extractor: Extractor) -> list[str]:  # noqa: ARG001
    """Return the names of the scores."""
    return [f"wasserstein_{name}" for name in STATISTICS]


def scores(compared: "Compared") -> dict[str, float]:
    """Return the scores, by their names."""
    from scipy.stats import wasserstein_distance

    samples, reference = (
        cast("Tensor", part).double().cpu().numpy() for part in (compared.statistics, compared.reference_statistics)
    )
    return {
        name: float(wasserstein_distance(samples[:, column], reference[:, column]))
        for column, name in enumerate(names(compared.extractor))
    }
