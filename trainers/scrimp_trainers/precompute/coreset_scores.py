"""Scores of images by their features, class by class, and the choice of those to keep.

After instance selection (DeVries et al. 2020) and Moderate-DS (Xia et al. 2023), which Li et al. (2025) build on.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import scipy.linalg

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.techniques import Coreset

RIDGE = 1e-5
"""Added to the diagonal of a covariance, as in instance selection."""
NEIGHBOUR = 5
"""The neighbour whose distance is the k-NN score."""
VARIANCE = 0.95
"""Share of the variance that PPCA's components hold."""


def score_features(features: np.ndarray, labels: np.ndarray | None, settings: Coreset, seed: int = 0) -> np.ndarray:
    """Score images, each among those of its class; a higher score is more typical but for `random`.

    Parameters
    ----------
    features
        [N, d]; `random` looks at N alone.
    labels
        int64 [N]; without them all images are of one class.
    seed
        Seed of `random`.

    Returns
    -------
    ndarray
        float64 [N]. `moderate` is minus the distance of an image's rank from the middle one, as a share of the images
        ranked together: those of its class, or all of them if the choice is not made class by class.

    Raises
    ------
    UserError
        If a class has too few images for the score, or images that it cannot tell apart.
    """
    count = len(features)
    if settings.score == "random":
        return np.random.default_rng(seed).random(count)
    found = np.full(count, np.nan)
    for members in _classes(labels, count):
        where = f"class {labels[members[0]]}" if labels is not None else "the dataset"
        _require_enough(settings, len(members), features.shape[1], where)
        with contextlib.suppress(np.linalg.LinAlgError):
            found[members] = _SCORES[settings.score](features[members].astype(np.float64), settings)
        if not np.isfinite(found[members]).all():
            raise UserError(f"coreset.score {settings.score}: the images of {where} are too much alike; use closest")
    if settings.score == "moderate":
        for members in _classes(labels if settings.per_class else None, count):
            found[members] = _centrality(found[members])
    return found


def choose_kept(scores: np.ndarray, labels: np.ndarray | None, settings: Coreset) -> np.ndarray:
    """Choose the images to keep.

    Parameters
    ----------
    scores, labels
        float64 [N] and int64 [N]; without labels all images are of one class.

    Returns
    -------
    ndarray
        int64 [K], sorted positions. Each class (or, if `per_class` is off, the whole) of n images keeps
        `round(keep * n)` and at least one; of equal scores the first are kept.
    """
    best_first = -scores if settings.side == "high" else scores
    kept = []
    for members in _classes(labels if settings.per_class else None, len(scores)):
        order = np.argsort(best_first[members], kind="stable")
        kept.append(members[order[: max(1, round(settings.keep * len(members)))]])
    return np.sort(np.concatenate(kept))


def _classes(labels: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Positions of each class's images, in order."""
    if labels is None:
        return [np.arange(count)]
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _require_enough(settings: Coreset, count: int, width: int, where: str) -> None:
    """Refuse a class whose scores would be arbitrary.

    As many images as features or fewer are all alike to their own Gaussian; of fewer than 22, PPCA may leave no
    variance to the noise.
    """
    fewest, instead = {
        "gaussian": (width + 1 if settings.covariance == "ridge" else 1, "coreset.covariance shrunk"),
        "ppca": (22, "closest"),
        "knn": (NEIGHBOUR + 1, "closest"),
    }.get(settings.score, (1, ""))
    if count < fewest:
        raise UserError(
            f"coreset.score {settings.score}: {where} has {count} images, but of {width} features {fewest} are needed; "
            f"use {instead}"
        )


def _gaussian(features: np.ndarray, settings: Coreset) -> np.ndarray:
    """Log-density of a Gaussian fitted to the features [n, d]."""
    count, width = features.shape
    centred = features - features.mean(axis=0)
    if settings.covariance == "shrunk" and count > 1:
        from sklearn.covariance import ledoit_wolf

        covariance = ledoit_wolf(centred, assume_centered=True)[0]
    else:
        covariance = centred.T @ centred / count
    factor = np.linalg.cholesky(covariance + RIDGE * np.eye(width))
    whitened = scipy.linalg.solve_triangular(factor, centred.T, lower=True)
    return -0.5 * (np.square(whitened).sum(axis=0) + width * np.log(2 * np.pi)) - np.log(np.diag(factor)).sum()


def _ppca(features: np.ndarray, _: Coreset) -> np.ndarray:
    """Log-density of probabilistic PCA (Tipping and Bishop 1999)."""
    from sklearn.decomposition import PCA

    return PCA(VARIANCE, svd_solver="full").fit(features).score_samples(features)


def _knn(features: np.ndarray, _: Coreset) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return -NearestNeighbors(n_neighbors=NEIGHBOUR).fit(features).kneighbors()[0][:, -1]


def _closest(features: np.ndarray, _: Coreset) -> np.ndarray:
    return -np.linalg.norm(features - np.median(features, axis=0), axis=1)


def _centrality(values: np.ndarray) -> np.ndarray:
    """How near each value's rank is to the middle one, at most 0.

    Moderate-DS's code sorts the distances and takes the band around the middle of the list.
    """
    count = len(values)
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(count)
    return -np.abs(2 * ranks + 1 - count) / (2 * count)


_SCORES: dict[str, Callable[[np.ndarray, Coreset], np.ndarray]] = {
    "gaussian": _gaussian,
    "ppca": _ppca,
    "knn": _knn,
    "moderate": _closest,
    "closest": _closest,
}
