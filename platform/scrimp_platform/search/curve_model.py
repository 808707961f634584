"""A Gaussian process over recipes and rungs: what a sweep's scores so far say about every recipe's score at the end.

The model of a score, on a scale where it is additive, of recipe x at rung k by the repeat with seed s is

    mean_k + f(x, k) + seed_s + noise

with cov(f(x, k), f(x', k')) = scale^2 * matern52(x, x') * exp(-|log kimg_k - log kimg_k'| / rung_scale). The length
scale of each searched field, the two scales and the two noises are those of highest posterior density. A repeat's
scores at low rungs inform about its score at the last one as far as earlier repeats show that they do, and the means,
about which nothing is assumed, absorb what all recipes have in common: how much longer training helps, and what a
distance of fewer samples is too high by, c / N to first order (Chong and Forsyth 2020), where lower rungs score fewer
than the last. Scores of different sample counts so meet only through what is learned of their differences.

Where E earlier sweeps are known, m(x) are the places that they expect of recipe x, and f has a further part, the sum of
w_e * m_e(x). The weights are normal around 0 with variance trust^2 / E and change with the rung as f does, so they are
what the scores say of them: near 0 where an earlier sweep misleads. `trust` is fitted like the scales.
"""

import dataclasses
import functools
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from threadpoolctl import ThreadpoolController

MEAN_STD = 10.0
"""Prior standard deviation of a rung's mean, in units of the scores' spread: as good as unknown."""
JITTER = 1e-8
WIDEST = 4.0
"""Standard deviations of its prior that a logarithm may be away from the mean, where exponentials stay finite."""
STEPS = 30
"""Of the optimiser; more change the proposals less than another seed does."""
USUAL_TRUST = 0.3
"""Middle of the prior of `trust`, in units of the scores' spread."""
MOST_FITTED = 150
"""Scores to which a model is fitted; the rest only condition it. The time of a fit grows with their cube."""


@dataclass(frozen=True)
class Observations:
    """What there is to learn from: one entry for each score of a repeat at a rung.

    Attributes
    ----------
    points : ndarray
        [R, D + E], the recipes: their coordinates, and what each of E earlier sweeps expects of them.
    columns : ndarray
        int [D], the field of each coordinate.
    log_kimg : ndarray
        [K], the rungs.
    recipe, repeat, rung : ndarray
        int [N]: position in `points`, which repeat it is, position in `log_kimg`.
    score : ndarray
        [N], lower is better.
    """

    points: np.ndarray
    columns: np.ndarray
    log_kimg: np.ndarray
    recipe: np.ndarray
    repeat: np.ndarray
    rung: np.ndarray
    score: np.ndarray


class CurveModel:
    """The model, fitted to scores.

    Attributes
    ----------
    lengths : ndarray
        [fields], the length scale of each field: large where the field does not matter.
    scale, rung_scale, seed_noise, noise, trust : float
        As in the module's equation; all but `rung_scale` in the units of the scores. `trust` is 0 without earlier
        sweeps.
    """

    def __init__(self, scores: Observations, theta: np.ndarray | None = None) -> None:
        self._scores = scores
        self._centre = float(np.median(scores.score))
        spread = float(np.std(scores.score))
        self._unit = spread if spread > 0 else 1.0
        self._y = (scores.score - self._centre) / self._unit
        self._gaps = np.abs(scores.log_kimg[:, None] - scores.log_kimg[None, :])
        self._same_rung = scores.rung[:, None] == scores.rung[None, :]
        self._same_repeat = scores.repeat[:, None] == scores.repeat[None, :]
        self._fields = int(scores.columns.max()) + 1
        self._width = len(scores.columns)
        self._squares = _field_squares(scores.points[:, : self._width], scores.columns)
        self._sweeps = scores.points.shape[1] - self._width
        self._earlier = self._expectations_alike(scores.points, scores.points)
        if theta is None:
            theta = self._fitted()
        self.theta = theta
        self.lengths = np.exp(theta[: self._fields])
        scale, self.rung_scale, seed_noise, noise, *trust = np.exp(theta[self._fields :]).tolist()
        self.scale = scale * self._unit
        self.seed_noise = seed_noise * self._unit
        self.noise = noise * self._unit
        self.trust = sum(trust) * self._unit
        self._condition()

    def _fitted(self) -> np.ndarray:
        """Return the logarithms of highest posterior density."""
        mean, std = self._prior()
        bounds = list(zip(mean - WIDEST * std, mean + WIDEST * std, strict=True))
        result = minimize(
            self._negative_log_posterior,
            mean,
            jac=True,
            bounds=bounds,
            method="L-BFGS-B",
            options={"maxiter": STEPS},
        )
        return result.x

    def _prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the normal priors of the logarithms.

        Length scales grow with the number of fields (Hvarfner et al. 2024, "Vanilla Bayesian optimization performs
        great in high dimensions"). Neighbouring rungs agree, and noise is a tenth of what recipes differ by.
        """
        span = max(float(np.ptp(self._scores.log_kimg)), 1.0)
        means = [np.log(0.5) + 0.5 * np.log(self._fields)] * self._fields
        means += [0.0, np.log(3 * span), np.log(0.1), np.log(0.1)]
        stds = [1.0] * self._fields + [0.7, 1.0, 1.0, 1.0]
        if self._sweeps:
            means.append(np.log(USUAL_TRUST))
            stds.append(1.0)
        return np.array(means), np.array(stds)

    def _expectations_alike(self, points: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the covariance [n, m] of what earlier sweeps say of recipes, at a trust of 1."""
        return points[:, self._width :] @ others[:, self._width :].T / max(self._sweeps, 1)

    def _negative_log_posterior(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative logarithm of the posterior density at these logarithms, and its gradient."""
        mean, std = self._prior()
        lengths = np.exp(theta[: self._fields])
        scale, rung_scale, seed_noise, noise, *trust = np.exp(theta[self._fields :])
        scores = self._scores

        # The covariance, and its factors.
        alike, slope = _matern52(self._squares, lengths)
        recipe_part = alike[scores.recipe[:, None], scores.recipe[None, :]]
        rung_part = np.exp(-self._gaps / rung_scale)[scores.rung[:, None], scores.rung[None, :]]
        own = scale**2 * recipe_part * rung_part
        signal = own
        if trust:
            earlier_part = self._earlier[scores.recipe[:, None], scores.recipe[None, :]]
            signal = own + trust[0] ** 2 * earlier_part * rung_part
        seeds = seed_noise**2 * self._same_repeat
        covariance = signal + seeds + MEAN_STD**2 * self._same_rung
        covariance[np.diag_indices_from(covariance)] += noise**2 + JITTER

        # The likelihood of Rasmussen and Williams 2006, equation 2.30.
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:  # the optimiser tries another step
            return 1e12, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(len(covariance)))
        weights = inverse @ self._y
        value = 0.5 * self._y @ weights + np.log(np.diag(factor)).sum()

        # Its gradient, equation 5.9: sum(outer * dK/dtheta).
        outer = 0.5 * (inverse - np.outer(weights, weights))
        by_recipe = _fold(outer * rung_part * scale**2, scores.recipe, len(scores.points))
        by_field = np.tensordot(self._squares, by_recipe * slope, axes=([1, 2], [0, 1])) / lengths**2
        in_rungs = self._gaps[scores.rung[:, None], scores.rung[None, :]] / rung_scale
        others = [
            2 * np.sum(outer * own),
            np.sum(outer * signal * in_rungs),
            2 * np.sum(outer * seeds),
            2 * noise**2 * np.trace(outer),
        ]
        if trust:
            others.append(2 * np.sum(outer * (signal - own)))
        gradient = np.concatenate([by_field, others])

        value += 0.5 * np.sum(((theta - mean) / std) ** 2)
        return float(value), gradient + (theta - mean) / std**2

    def _condition(self) -> None:
        """Factorise the covariance of the scores at the fitted values."""
        scores = self._scores
        known = scores.points[scores.recipe]
        covariance = self._covariance(known, known, self._gaps[scores.rung[:, None], scores.rung[None, :]])
        covariance += self.seed_noise**2 * self._same_repeat
        covariance[np.diag_indices_from(covariance)] += self.noise**2 + JITTER * self._unit**2
        self._factor = np.linalg.cholesky(covariance)
        self._weights = cho_solve((self._factor, True), self._y * self._unit)

    def _covariance(self, points: np.ndarray, others: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Return the covariance [n, m] of the true scores of recipes [n, D + E] and [m, D + E], rungs `gaps` apart."""
        lengths = self.lengths[self._scores.columns]
        root = math.sqrt(5) * cdist(points[:, : self._width] / lengths, others[:, : self._width] / lengths)
        alike = self.scale**2 * (1 + root + root**2 / 3) * np.exp(-root)
        if self._sweeps:
            alike += self.trust**2 * self._expectations_alike(points, others)
        signal = alike * np.exp(-gaps / self.rung_scale)
        return signal + (MEAN_STD * self._unit) ** 2 * (gaps == 0)

    def means(self, points: np.ndarray, rung: int) -> np.ndarray:
        """Return the first of what `predict` returns, at a third of its cost."""
        scores = self._scores
        cross = self._covariance(points, scores.points[scores.recipe], self._gaps[rung, scores.rung][None, :])
        return self._centre + cross @ self._weights

    def predict(self, points: np.ndarray, rung: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what is known of the true scores, over all seeds, of recipes [n, D + E] at a rung.

        Returns
        -------
        tuple
            The means [n], the variances [n], and the covariances [n, m] with those of `others` [m, D + E] there.
        """
        scores = self._scores
        gaps = self._gaps[rung, scores.rung][None, :]
        known = scores.points[scores.recipe]
        cross = self._covariance(points, known, gaps)
        mean = self._centre + cross @ self._weights

        explained = solve_triangular(self._factor, cross.T, lower=True)
        prior = self.scale**2 + (MEAN_STD * self._unit) ** 2
        prior += self.trust**2 * np.sum(points[:, self._width :] ** 2, axis=1) / max(self._sweeps, 1)
        variance = prior - np.sum(explained**2, axis=0)

        other_explained = solve_triangular(self._factor, self._covariance(others, known, gaps).T, lower=True)
        covariance = self._covariance(points, others, np.zeros((1, 1))) - explained.T @ other_explained
        return mean, variance, covariance


def fitted(scores: Observations) -> CurveModel:
    """Fit a model to some of many scores, and condition it on all."""
    with one_thread():
        return CurveModel(scores, CurveModel(thinned(scores)).theta)


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which linear algebra works with one thread.

    More are slower for matrices of this size, and would make proposals depend on the number of cores.
    """
    return _threads().limit(limits=1)


@functools.cache
def _threads() -> ThreadpoolController:
    """Return what controls the threads of the libraries; to look for these takes as long as a prediction."""
    return ThreadpoolController()


def thinned(scores: Observations) -> Observations:
    """Return at most about `MOST_FITTED` of the scores: those of every second recipe, every third, and so on."""
    every = math.ceil(len(scores.score) / MOST_FITTED)
    chosen = np.unique(scores.recipe)[::every]
    kept = np.isin(scores.recipe, chosen)
    place = np.searchsorted(chosen, scores.recipe[kept])
    return dataclasses.replace(
        scores,
        points=scores.points[chosen],
        recipe=place,
        repeat=place,
        rung=scores.rung[kept],
        score=scores.score[kept],
    )


def _field_squares(points: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the squared distances [fields, n, n] of points [n, D] in each field."""
    fields = int(columns.max()) + 1
    return np.array(
        [cdist(points[:, columns == field], points[:, columns == field], "sqeuclidean") for field in range(fields)]
    )


def _matern52(squares: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Matern kernel with smoothness 5/2, and the factor of its slope.

    d kernel / d log length_i = factor * squares_i / length_i^2.
    """
    root = np.sqrt(5 * np.tensordot(1 / lengths**2, squares, axes=1))
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, 5 / 3 * (1 + root) * decay


def _fold(matrix: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sum the entries of a matrix [N, N] whose rows and columns belong to the same groups, to [count, count]."""
    member = np.zeros((count, len(groups)))
    member[groups, np.arange(len(groups))] = 1.0
    return member @ matrix @ member.T
