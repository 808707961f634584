"""Scores of samples against a reference set, from features alone.

Torch-fidelity's own functions compute KID and the inception score. The Fréchet distance and precision and recall are
the same quantities in a form that uses what is known of the reference beforehand: torch-fidelity's solves a
non-symmetric eigenvalue problem and all distances within the reference anew for every score.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from scrimp_trainers.metrics.names import class_name, named
from scrimp_trainers.recipe.scoring import SMALLEST, Extractor

NEIGHBOURS = 3
"""The k of precision and recall (Kynkäänniemi et al. 2019)."""
KID_SUBSET = 1000
"""Samples in each of the 100 subsets that KID averages over, if there are as many."""
CHUNK = 2**26
"""Entries of a distance matrix that are held at once (256 MiB)."""


def statistics(features: Tensor) -> dict[str, Tensor]:
    """Compute what scores need of the reference besides its features [n, d].

    Returns
    -------
    dict
        float64 `mean` [d], `covariance` [d, d] and its symmetric square `root`, and `radii` [n]: the distance of each
        image to its third neighbour.
    """
    found = fid_features_to_statistics(features.cpu())
    mean, covariance = (torch.as_tensor(found[name], dtype=torch.float64) for name in ("mu", "sigma"))
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return {"mean": mean, "covariance": covariance, "root": root, "radii": radii(features)}


@dataclass(frozen=True)
class Compared:
    """What there is to score: samples, and the reference set that they are compared with."""

    extractor: Extractor
    features: Tensor
    """float32 [n, d] of the samples."""
    logits: Tensor | None
    """Class logits [n, classes] of the samples, if the extractor gives them."""
    reference: Tensor
    """float32 [m, d] of the reference set."""
    known: dict[str, Tensor]
    """The `statistics` of the reference set."""
    training: Tensor | None = None
    """float32 [t, d] of the training images."""
    holdout: Tensor | None = None
    """float32 [h, d] of the held-out images; none if there are none."""
    statistics: Tensor | None = None
    """float32 [n, k] of the samples, what their modality measures of items; none if it measures nothing."""
    reference_statistics: Tensor | None = None
    """float32 [m, k] of the reference set."""
    captions: Tensor | None = None
    """float32 [n, d] of the captions that the samples were drawn of; none if they were not, or nothing needs them."""


def scores(compared: Compared) -> dict[str, float]:
    """Score samples by their features: under the extractor's names, and the `kid_subset_size` that was used."""
    extractor = compared.extractor
    features = compared.features
    reference = compared.reference
    subset = min(KID_SUBSET, len(features), len(reference))
    kid = kid_features_to_metric(features, reference, kid_subset_size=subset, verbose=False)
    precision, recall = precision_recall(features, reference, compared.known["radii"])

    values = {
        named("fd", extractor): frechet(features, compared.known),
        named("kd", extractor): kid[KEY_METRIC_KID_MEAN],
        named("kd_std", extractor): kid[KEY_METRIC_KID_STD],
    }
    if compared.logits is not None:
        values[named("isc", extractor)] = isc_features_to_metric(compared.logits)[KEY_METRIC_ISC_MEAN]
    values[named("precision", extractor)] = precision
    values[named("recall", extractor)] = recall
    values["kid_subset_size"] = float(subset)
    return values


def frechet(features: Tensor, known: dict[str, Tensor]) -> float:
    """Fréchet distance of two Gaussians, FID's formula.

    With X the centred features over sqrt(n - 1) and R the root of the reference's covariance, the trace of
    sqrt(S1 S2) is the sum of the singular values of X R: a symmetric problem of the smaller of the two sizes.
    """
    mean, centred = _centred(features.cpu())
    product = centred @ known["root"]
    gram = product @ product.T if len(product) < product.shape[1] else product.T @ product
    trace = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    shift = (mean - known["mean"]).square().sum()
    return float(shift + centred.square().sum() + known["covariance"].trace() - 2 * trace)


def real_distances(
    reference: Tensor, known: dict[str, Tensor], holdout: Tensor | None, samples: int
) -> dict[str, Tensor]:
    """Fréchet distances of real images, with which those of so many samples can be compared.

    Parameters
    ----------
    reference, known
        float32 [m, d] of the reference set, and its `statistics`.
    holdout
        float32 [h, d] of the held-out images, if there are any.

    Returns
    -------
    dict
        float64 `real`: as many reference images as there are samples, at most half of them, against the others; and
        `holdout`: as many held-out images against the whole reference set, unless there are too few of these to score.
    """
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(reference)))
    count = min(samples, len(reference) // 2)
    shuffled = reference.cpu()[order]
    distances = {"real": frechet_of_sets(shuffled[:count], shuffled[count:])}

    if holdout is not None and len(holdout) >= SMALLEST:
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(holdout))[:samples])
        distances["holdout"] = frechet(holdout.cpu()[chosen], known)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in distances.items()}


def class_scores(
    extractor: Extractor, features: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor
) -> dict[str, float]:
    """Score samples within each class.

    Parameters
    ----------
    features, labels
        float32 [n, d] of the samples, and their classes, int64 [n].
    reference, reference_labels
        The same of the reference set.

    Returns
    -------
    dict
        The Fréchet distances within the classes, and their mean.
    """
    values = [
        frechet_of_sets(features[labels == label], reference[reference_labels == label])
        for label in range(int(reference_labels.max()) + 1)
    ]
    named = {class_name(extractor, label): value for label, value in enumerate(values)}
    return named | {class_name(extractor): sum(values) / len(values)}


def frechet_of_sets(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians of two sets of features, [n, d] and [m, d], where little is known beforehand.

    With X and Y the centred features over sqrt(n - 1) and sqrt(m - 1), the trace of sqrt(S1 S2) is the sum of the
    singular values of X Y^T, or of the R factors of the two: of matrices as small as the smallest of n, m and d.
    """
    mean, x = _centred(features)
    other_mean, y = _centred(reference)
    trace = torch.linalg.svdvals(_factor(x) @ _factor(y).T).sum()
    distance = (mean - other_mean).square().sum() + x.square().sum() + y.square().sum() - 2 * trace
    return float(distance)


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(dim=0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _factor(centred: Tensor) -> Tensor:
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def radii(features: Tensor) -> Tensor:
    """Distance of each of the features [n, d] to its third neighbour among the others: [n]."""
    parts = features.split(max(1, CHUNK // len(features)))
    return torch.cat([torch.cdist(part, features).kthvalue(NEIGHBOURS + 1).values for part in parts])


def precision_recall(features: Tensor, reference: Tensor, reference_radii: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of samples that lie in the ball of a reference image; recall the reverse.
    """
    precision = _covered(features, reference, reference_radii)
    return precision, _covered(reference, features, radii(features))


def _covered(points: Tensor, centres: Tensor, balls: Tensor) -> float:
    parts = points.split(max(1, CHUNK // len(centres)))
    inside = [(torch.cdist(part, centres) <= balls).any(dim=1) for part in parts]
    return torch.cat(inside).double().mean().item()
