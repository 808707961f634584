import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process.kernels import Matern
from threadpoolctl import threadpool_limits

from scrimp_platform.search.curve_model import CurveModel, Observations


def some_scores(seed: int = 0, recipes: int = 12, rungs: int = 3, noise: float = 0.05) -> Observations:
    """Scores of recipes of two fields, the second of which does not matter; the better half reaches the last rung."""
    draw = np.random.default_rng(seed)
    points = draw.uniform(size=(recipes, 2))
    truth = np.sin(5 * points[:, 0])
    entries = []
    for recipe in range(recipes):
        reached = rungs if truth[recipe] < np.median(truth) else 1
        seed_effect = noise * draw.normal()
        for rung in range(reached):
            score = truth[recipe] - rung + seed_effect + 0.3 * noise * draw.normal()
            entries.append((recipe, recipe, rung, score))
    recipe, repeat, rung, score = map(np.array, zip(*entries, strict=True))
    log_kimg = np.log(10.0 * 3 ** np.arange(rungs))
    return Observations(points, np.array([0, 1]), log_kimg, recipe, repeat, rung, score)


def with_earlier(scores: Observations, sweeps: int = 2) -> Observations:
    """The scores with what earlier sweeps say: the first knows the truth, the others nothing."""
    draw = np.random.default_rng(9)
    earlier = draw.normal(size=(len(scores.points), sweeps))
    earlier[:, 0] = np.sin(5 * scores.points[:, 0]) / 0.7
    return replace(scores, points=np.concatenate([scores.points, earlier], axis=1))


def matern(lengths: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    kernel: Any = Matern(length_scale=lengths, nu=2.5)  # pyright: ignore[reportArgumentType]
    return kernel(one, other)


def covariance(model: CurveModel, scores: Observations) -> np.ndarray:
    """The covariance of the scores by the module's equation, with scikit-learn's kernel, in the scores' units."""
    alike = model.scale**2 * matern(model.lengths, scores.points[:, :2], scores.points[:, :2])
    earlier = scores.points[:, 2:]
    if earlier.shape[1]:
        alike = alike + model.trust**2 / earlier.shape[1] * earlier @ earlier.T
    n = len(scores.score)
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            gap = abs(scores.log_kimg[scores.rung[i]] - scores.log_kimg[scores.rung[j]])
            matrix[i, j] = alike[scores.recipe[i], scores.recipe[j]] * math.exp(-gap / model.rung_scale)
            matrix[i, j] += model.seed_noise**2 * (scores.repeat[i] == scores.repeat[j])
            matrix[i, j] += model.noise**2 * (i == j)
            matrix[i, j] += (10 * np.std(scores.score)) ** 2 * (gap == 0)
    return matrix


def test_the_prediction_is_the_conditional_normal_distribution():
    scores = some_scores()
    model = CurveModel(scores)
    wanted = np.array([[0.2, 0.5], [0.9, 0.1]])
    mean, variance, spread = model.predict(wanted, 2, wanted)

    known = covariance(model, scores)
    unknown_mean = (10 * np.std(scores.score)) ** 2
    decay = np.exp(-np.abs(scores.log_kimg[2] - scores.log_kimg[scores.rung]) / model.rung_scale)
    cross = model.scale**2 * matern(model.lengths, wanted, scores.points)[:, scores.recipe] * decay
    cross += unknown_mean * (scores.rung == 2)
    own = model.scale**2 * matern(model.lengths, wanted, wanted) + unknown_mean
    centre = np.median(scores.score)
    np.testing.assert_allclose(mean, centre + cross @ np.linalg.solve(known, scores.score - centre), rtol=1e-5)
    np.testing.assert_allclose(model.means(wanted, 2), mean)
    np.testing.assert_allclose(variance, np.diag(spread))
    np.testing.assert_allclose(spread, own - cross @ np.linalg.solve(known, cross.T), rtol=1e-4, atol=1e-6)


def test_the_prediction_from_earlier_sweeps_is_the_conditional_normal_distribution():
    scores = with_earlier(some_scores())
    model = CurveModel(scores)
    wanted = np.array([[0.2, 0.5, 1.0, 0.3], [0.9, 0.1, -1.2, 0.0]])
    mean, variance, spread = model.predict(wanted, 2, wanted)

    both = replace(scores, points=np.concatenate([scores.points, wanted]))
    places = len(scores.points) + np.arange(2)
    both = replace(
        both,
        recipe=np.append(scores.recipe, places),
        repeat=np.append(scores.repeat, places),
        rung=np.append(scores.rung, [2, 2]),
        score=np.append(scores.score, [0.0, 0.0]),
    )
    joint = covariance(model, both)
    joint += ((10 * np.std(scores.score)) ** 2 - (10 * np.std(both.score)) ** 2) * (
        both.rung[:, None] == both.rung[None, :]
    )
    n = len(scores.score)
    known, cross, own = joint[:n, :n], joint[n:, :n], joint[n:, n:]
    own = own - (model.noise**2 + model.seed_noise**2) * np.eye(2)
    centre = np.median(scores.score)
    np.testing.assert_allclose(mean, centre + cross @ np.linalg.solve(known, scores.score - centre), rtol=1e-4)
    np.testing.assert_allclose(spread, own - cross @ np.linalg.solve(known, cross.T), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(variance, np.diag(spread))


def test_an_earlier_sweep_is_trusted_as_far_as_the_scores_agree_with_it():
    scores = some_scores(recipes=40)
    informed = with_earlier(scores, sweeps=1)
    shuffled = np.random.default_rng(2).permutation(informed.points[:, 2:])
    misled = replace(informed, points=np.concatenate([scores.points, shuffled], axis=1))
    assert CurveModel(scores).trust == 0
    assert CurveModel(informed).trust > 3 * CurveModel(misled).trust

    far = np.array([[0.2, 0.5], [0.9, 0.1]])
    alone, _, _ = CurveModel(scores).predict(far, 2, far)
    unsure = np.concatenate([far, [[1.0], [-1.0]]], axis=1)
    after, _, _ = CurveModel(misled).predict(unsure, 2, unsure)
    assert np.allclose(alone, after, atol=0.15)


@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_posterior_density_is_that_of_scipy_and_its_gradient_that_of_differences(sweeps):
    scores = with_earlier(some_scores(3), sweeps) if sweeps else some_scores(3)
    model = CurveModel(scores)
    theta = model.theta + 0.1 * np.random.default_rng(0).normal(size=len(model.theta))

    for i, step in enumerate(1e-4 * np.eye(len(theta))):
        above = model._negative_log_posterior(theta + step)[0]
        below = model._negative_log_posterior(theta - step)[0]
        assert (above - below) / 2e-4 == pytest.approx(model._negative_log_posterior(theta)[1][i], rel=1e-4, abs=1e-4)

    # Differences of the density do not depend on constants that both leave out.
    def density(at: np.ndarray) -> float:
        model.lengths = np.exp(at[:2])
        unit = np.std(scores.score)
        scale, model.rung_scale, seed_noise, noise, *trust = np.exp(at[2:])
        model.scale, model.seed_noise, model.noise = scale * unit, seed_noise * unit, noise * unit
        model.trust = float(sum(trust) * unit)
        centre = np.full(len(scores.score), np.median(scores.score))
        normal: Any = multivariate_normal(centre, covariance(model, scores))  # pyright: ignore[reportArgumentType]
        mean, std = model._prior()
        return -normal.logpdf(scores.score) + 0.5 * np.sum(((at - mean) / std) ** 2)

    other = theta + 0.2
    ours = model._negative_log_posterior(theta)[0] - model._negative_log_posterior(other)[0]
    assert ours == pytest.approx(density(theta) - density(other), abs=1e-4)


def test_a_field_that_does_not_matter_gets_a_long_length_scale():
    model = CurveModel(some_scores(recipes=30))
    assert model.lengths[1] > 3 * model.lengths[0]


def test_low_rungs_tell_about_the_last_rung_and_selection_does_not_flatter():
    """Only the better half reaches the last rung; the mean there is still that of all recipes."""
    scores = some_scores(recipes=40)
    model = CurveModel(scores)
    mean, _, _ = model.predict(scores.points, 2, scores.points)
    truth = np.sin(5 * scores.points[:, 0]) - 2
    assert np.corrcoef(mean, truth)[0, 1] > 0.97
    assert abs(np.mean(mean - truth)) < 0.15


def test_equal_scores_are_no_error():
    scores = some_scores()
    flat = Observations(**{**scores.__dict__, "score": np.zeros_like(scores.score)})
    mean, variance, _ = CurveModel(flat).predict(flat.points, 2, flat.points)
    assert np.allclose(mean, 0)
    assert np.isfinite(variance).all()


def test_a_fit_to_300_scores_takes_less_than_a_second_of_cpu():
    scores = some_scores(recipes=150)
    start = time.process_time()
    with threadpool_limits(1):  # as a sweep does
        CurveModel(scores)
    assert len(scores.score) >= 300
    assert time.process_time() - start < 2
