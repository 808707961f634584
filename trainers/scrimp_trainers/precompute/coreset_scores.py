"""Score images by their features, class by class, and choose those to keep.

After instance selection (DeVries et al. 2020) and Moderate-DS (Xia et al. 2023), on which Li et al. (2025) build.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.techniques import Coreset

RIDGE = 1e-5
"""Added to the diagonal of a covariance matrix, as in instance selection."""
NEIGHBOUR = 5
"""The k-NN score is the distance to this neighbour."""
VARIANCE = 0.95
"""PPCA has as many components as explain no more than this fraction of the variance, as in instance selection."""
MIN_IMAGES_PPCA = 22
"""With fewer images of a class, PPCA's noise may be that of a single direction."""


def score_features(
    features: np.ndarray,
    labels: np.ndarray | None,
    settings: Coreset,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Score each image among those of its class. A higher score is more typical, except for `random`.

    Parameters
    ----------
    features
        [N, d]; `random` only uses N.
    labels
        int64 [N]; None if all images are of one class.
    seed
        Seed of the score `random`.

    Returns
    -------
    ndarray
        float64 [N]. `moderate` is minus the distance of an image's rank from the middle rank, as a fraction of the
        number of images ranked together: those of its class, or all if the coreset is not chosen class by class.

    Raises
    ------
    UserError
        If a class has too few images for the score, or images that are too much alike.
    """
    count = len(features)
    if settings.score == "random":
        return np.random.default_rng(seed).random(count)

    score = _SCORES[settings.score]
    scores = np.full(count, np.nan)
    for members in _members_of_classes(labels, count):
        where = "the dataset"
        if labels is not None:
            label = int(labels[members[0]])
            where = f"class {class_names[label] if class_names else label}"
        _require_enough(settings, len(members), features.shape[1], where)
        with contextlib.suppress(np.linalg.LinAlgError):
            scores[members] = score(features[members].astype(np.float64), settings)
        if not np.isfinite(scores[members]).all():
            raise UserError(f"coreset.score {settings.score}: the images of {where} are too much alike; use closest")

    if settings.score == "moderate":
        for members in _members_of_classes(labels if settings.by_class else None, count):
            scores[members] = _centrality(scores[members])
    return scores


def choose_kept(scores: np.ndarray, labels: np.ndarray | None, settings: Coreset) -> np.ndarray:
    """Choose the images to keep.

    Parameters
    ----------
    scores, labels
        float64 [N] and int64 [N]; labels are None if all images are of one class.

    Returns
    -------
    ndarray
        int64 [K], sorted positions. Of n images of a class (or, if not `by_class`, of all n images),
        `round(keep * n)` are kept, at least one; of equal scores the first are kept.
    """
    best_first = -scores if settings.side == "high" else scores
    kept: list[np.ndarray] = []
    for members in _members_of_classes(labels if settings.by_class else None, len(scores)):
        order = np.argsort(best_first[members], kind="stable")
        count = max(1, round(settings.keep * len(members)))
        kept.append(members[order[:count]])
    return np.sort(np.concatenate(kept))


def _members_of_classes(labels: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Return the positions of each class's images, in order."""
    if labels is None:
        return [np.arange(count)]
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _require_enough(settings: Coreset, count: int, width: int, where: str) -> None:
    """Refuse a class with so few images that their scores would be arbitrary.

    A Gaussian fitted to no more images than features gives all of them the same density.
    """
    min_images_gaussian = width + 1 if settings.covariance == "ridge" else 1
    minimum, alternative = {
        "gaussian": (min_images_gaussian, "coreset.covariance shrunk"),
        "ppca": (MIN_IMAGES_PPCA, "closest"),
        "knn": (NEIGHBOUR + 1, "closest"),
    }.get(settings.score, (1, ""))
    if count < minimum:
        raise UserError(
            f"coreset.score {settings.score}: {where} has {count} images, "
            f"but of {width} features {minimum} are needed; use {alternative}"
        )


def _gaussian(features: np.ndarray, settings: Coreset) -> np.ndarray:
    """Return the log-density of each image under a Gaussian fitted to the features [n, d]."""
    count, width = features.shape
    centred = features - features.mean(axis=0)
    if settings.covariance == "shrunk" and count > 1:
        from sklearn.covariance import ledoit_wolf

        covariance = ledoit_wolf(centred, assume_centered=True)[0]
    else:
        covariance = centred.T @ centred / count

    # With the Cholesky factor L: -0.5 (|L^-1 x|^2 + d log(2 pi)) - log det L.
    factor = np.linalg.cholesky(covariance + RIDGE * np.eye(width))
    whitened = scipy.linalg.solve_triangular(factor, centred.T, lower=True)
    return -0.5 * (np.square(whitened).sum(axis=0) + width * np.log(2 * np.pi)) - np.log(np.diag(factor)).sum()


def _ppca(features: np.ndarray, _: Coreset) -> np.ndarray:
    """Return the log-density of each image under probabilistic PCA (Tipping and Bishop 1999)."""
    from sklearn.decomposition import PCA

    components = PCA(VARIANCE, svd_solver="full").fit(features).n_components_ - 1  # the fewest that explain more
    return PCA(components, svd_solver="full").fit(features).score_samples(features)


def _knn(features: np.ndarray, _: Coreset) -> np.ndarray:
    """Return minus the distance of each image from its k-th nearest neighbour."""
    from sklearn.neighbors import NearestNeighbors

    distances = NearestNeighbors(n_neighbors=NEIGHBOUR).fit(features).kneighbors()[0]
    return -distances[:, -1]


def _closest(features: np.ndarray, _: Coreset) -> np.ndarray:
    """Return minus the distance of each image from the median of the features."""
    return -np.linalg.norm(features - np.median(features, axis=0), axis=1)


def _centrality(values: np.ndarray) -> np.ndarray:
    """Return minus the distance of each value's rank from the middle rank, as a fraction of their number.

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
