"""Proposals of the curve model: the recipe with the highest expected gain at the last rung, given all scores so far.

What is running makes its neighbourhood less interesting. Under constraints a gain counts as far as the recipe is likely
to keep them (Gardner et al. 2014, "Bayesian optimization with inequality constraints").
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from scrimp_platform.search.curve_model import CurveModel, one_thread
from scrimp_platform.search.curves import Curves

RANDOM = 512
"""Candidates from all over the space."""
NEAR = 512
"""Candidates near the best recipes so far."""
CENTRES = 8
"""How many recipes those are near to."""
SHORTLIST = 64
"""Candidates among which the next proposals are looked for, where there are several."""
CONTENDERS = 32
"""Trials of which one may be the best so far."""


def propose(curves: Curves, seed: int) -> dict[str, Any]:
    """Return the values of the candidate with the highest expected gain that has not been proposed before."""
    proposed = [trial.params for trial in curves.trials]
    shares = _candidates(curves, np.random.default_rng(seed))
    best = _from_best(curves)[0]
    gains = _gains(curves, curves.points_at(shares), best, _running(curves, best))
    for i in np.argsort(-gains):
        values = curves.encoding.values(shares[i].tolist())
        if values not in proposed:
            return values
    return curves.encoding.values(shares[0].tolist())  # the space has few recipes: one comes again


def next_points(curves: Curves, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of the trials that may be the best so far, and those of the next proposals [count, D].

    Trials that are likely to break a constraint are not the best. The proposals are chosen one after the other, each as
    if those before it were running.
    """
    order = _from_best(curves)
    running = _running(curves, order[0])
    points = curves.points_at(_candidates(curves, np.random.default_rng(seed)))
    gains = _gains(curves, points, order[0], running)
    points = points[np.argsort(-gains)[:SHORTLIST]]

    chosen = curves.points[running]
    kept = curves.kept(points)
    for _ in range(count):
        gains = expected_gains(curves.model, curves.last, points, curves.points[order[0]], chosen)
        chosen = np.concatenate([chosen, points[[np.argmax(kept * gains)]]])
    known = list(dict.fromkeys([*order[:CONTENDERS], *running]))
    likely = curves.kept(curves.points[known]) >= 0.5
    known = [i for i, keeps in zip(known, likely, strict=True) if keeps] or order[:1]
    return curves.points[known], chosen[len(running) :]


def _from_best(curves: Curves) -> list[int]:
    """Return the positions of the trials with scores, from the best expected score on; last what breaks constraints."""
    places = {trial.number: place for place, trial in enumerate(curves.trials)}
    return [places[number] for number in sorted(curves.ranks, key=curves.ranks.__getitem__)]


def _running(curves: Curves, best: int) -> list[int]:
    return [i for i, trial in enumerate(curves.trials) if trial.status == "running" and i != best]


def _gains(curves: Curves, points: np.ndarray, best: int, running: Sequence[int]) -> np.ndarray:
    with one_thread():
        gains = expected_gains(curves.model, curves.last, points, curves.points[best], curves.points[running])
    return curves.kept(points) * gains


def _candidates(curves: Curves, chance: np.random.Generator) -> np.ndarray:
    """Return shares [N, fields]: all over the space, and those of a centre with one or a few fields changed."""
    fields = len(curves.space.search)
    everywhere = chance.random((RANDOM, fields))

    centres = [curves.trials[i].params for i in _from_best(curves)[:CENTRES]]
    near = curves.encoding.shares(centres)
    near = np.where(np.isnan(near), chance.random(near.shape), near)
    near = np.repeat(near, NEAR // len(centres), axis=0)
    steps = 10 ** chance.uniform(-2, -0.3, size=(len(near), 1))
    moved = np.clip(near + steps * chance.normal(size=near.shape), 0, math.nextafter(1, 0))
    for field, span in enumerate(curves.space.search.values()):
        if span.choice is not None:
            moved[:, field] = chance.random(len(near))

    changes = chance.random(near.shape) < max(0.15, 1.5 / fields)
    changes[np.arange(len(near)), chance.integers(fields, size=len(near))] = True
    return np.concatenate([everywhere, np.where(changes, moved, near)])


def expected_gains(
    model: CurveModel, rung: int, candidates: np.ndarray, best: np.ndarray, running: np.ndarray
) -> np.ndarray:
    """Return by how much each candidate [N, D + E] is expected to be better at a rung than the best recipe [D + E].

    A candidate that turns out worse gains nothing (expected improvement), both scores are uncertain, and the running
    recipes [R, D + E] are taken to score as the model expects: that changes no mean, but makes it surer near them
    ("kriging believer", Ginsbourger et al. 2010).
    """
    known = np.concatenate([best[None], running])
    mean, variance, covariance = model.predict(candidates, rung, known)
    known_mean, _, known_covariance = model.predict(known, rung, known)

    # Condition on the scores of what is running.
    noise = model.seed_noise**2 + model.noise**2
    pending = known_covariance[1:, 1:] + noise * np.eye(len(running))
    weights = np.linalg.solve(pending, np.concatenate([covariance[:, 1:].T, known_covariance[1:, :1]], axis=1))
    variance = variance - np.sum(covariance[:, 1:].T * weights[:, :-1], axis=0)
    with_best = covariance[:, 0] - covariance[:, 1:] @ weights[:, -1]
    best_variance = known_covariance[0, 0] - known_covariance[0, 1:] @ weights[:, -1]

    std = np.sqrt(np.maximum(variance + best_variance - 2 * with_best, 1e-12))
    gap = (known_mean[0] - mean) / std
    return std * (gap * ndtr(gap) + np.exp(-(gap**2) / 2) / math.sqrt(2 * math.pi))
