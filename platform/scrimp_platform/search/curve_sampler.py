"""Proposals of the curve model: the recipe from which most is to be gained at the last rung, given all scores so far.

It learns from the scores at every rung, those of running and of stopped trials, too; what is running makes its
neighbourhood less interesting. A failed trial counts as the worst score of the rung that it did not reach, and one that
breaks a constraint as the worst at the last.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from scrimp_platform.search import searched_values
from scrimp_platform.search.curve_model import CurveModel, Scores
from scrimp_platform.search.encoding import Encoding
from scrimp_platform.search.quasi_random import QuasiRandomSampler
from scrimp_spaces.space import Space

RANDOM = 512
"""Candidates from all over the space."""
NEAR = 512
"""Candidates near the best recipes so far."""
CENTRES = 8
"""How many recipes those are near to."""
MOST_FITTED = 200
"""Scores to which the model is fitted; the rest only condition it. The time of a fit grows with their cube."""


class CurveSampler(QuasiRandomSampler):
    """Proposes by the curve model, and a Sobol sequence before `startup` trials are scored.

    `seed` is the sweep's, `own_seed` that of this trial. The proposal is a function of them and of the study's other
    trials. The space has one objective.
    """

    def __init__(self, space: Space, seed: int, number: int, startup: int, own_seed: int) -> None:
        super().__init__(list(space.search), seed, number)
        self._space = space
        self._encoding = Encoding(space)
        self._random = np.random.default_rng(own_seed)
        self._startup = startup
        self._proposal: dict[str, Any] | None = None

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the field's value in the proposal, which is made for the first of them."""
        if self._proposal is None:
            history = [past for past in study.get_trials(deepcopy=False) if past.params and past.number != trial.number]
            scored = [past for past in history if past.intermediate_values or past.state is TrialState.COMPLETE]
            if len(scored) < self._startup:
                return super().sample_independent(study, trial, param_name, param_distribution)
            self._proposal = self._propose(history)
        return searched_values.to_optuna(self._space.search[param_name], self._proposal[param_name])

    def _propose(self, history: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return the candidate with the highest expected gain that is not in the history."""
        recipes = [self._values(trial) for trial in history]
        points = self._encoding.points(self._encoding.shares(recipes))
        scores = curve_scores(history, points, self._encoding.columns, self._space)
        model = CurveModel(scores, CurveModel(thinned(scores)).theta)

        last = len(scores.log_kimg) - 1
        learned = np.unique(scores.recipe)
        means, _, _ = model.predict(points[learned], last, points[:0])
        order = learned[np.argsort(means)]
        running = [i for i, trial in enumerate(history) if trial.state is TrialState.RUNNING and i != order[0]]

        shares = self._candidates([recipes[i] for i in order[:CENTRES]])
        candidates = self._encoding.points(shares)
        gains = expected_gains(model, last, candidates, points[order[0]], points[running])
        for i in np.argsort(-gains):
            proposal = self._encoding.values(shares[i].tolist())
            if proposal not in recipes:
                return proposal
        return self._encoding.values(shares[0].tolist())  # the space has few recipes: one comes again

    def _values(self, trial: FrozenTrial) -> dict[str, Any]:
        return {
            path: searched_values.from_optuna(self._space.search[path], value) for path, value in trial.params.items()
        }

    def _candidates(self, centres: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return shares [N, fields]: all over the space, and those of a centre with one or a few fields changed."""
        fields = len(self._space.search)
        everywhere = self._random.random((RANDOM, fields))

        near = self._encoding.shares(centres)
        near = np.where(np.isnan(near), self._random.random(near.shape), near)
        near = np.repeat(near, NEAR // len(centres), axis=0)
        steps = 10 ** self._random.uniform(-2, -0.3, size=(len(near), 1))
        moved = np.clip(near + steps * self._random.normal(size=near.shape), 0, math.nextafter(1, 0))
        for field, span in enumerate(self._space.search.values()):
            if span.choice is not None:
                moved[:, field] = self._random.random(len(near))

        changes = self._random.random(near.shape) < max(0.15, 1.5 / fields)
        changes[np.arange(len(near)), self._random.integers(fields, size=len(near))] = True
        return np.concatenate([everywhere, np.where(changes, moved, near)])


def curve_scores(history: Sequence[FrozenTrial], points: np.ndarray, columns: np.ndarray, space: Space) -> Scores:
    """Return the scores of the trials, whose recipes are `points` [trials, D], as the curve model learns from them.

    They are on a log scale if all are positive, and lower is better. How bad the worst ones are tells nothing about
    where the best are, and a Gaussian process would bend to fit them: at each rung, scores that are further above the
    median than the best is below it become equal to that.
    """
    rungs = [round(kimg * 1000) for kimg in space.budget.rungs_kimg]
    direction = next(iter(space.objectives.values()))
    entries: list[tuple[int, int, float]] = []
    worst: list[tuple[int, int]] = []
    for i, trial in enumerate(history):
        at_rungs = dict(trial.intermediate_values)
        if trial.state is TrialState.COMPLETE:
            at_rungs[rungs[-1]] = trial.values[0]
        reached = [rung for rung in rungs if rung in at_rungs]
        entries += [(i, rungs.index(rung), at_rungs[rung]) for rung in reached]
        if trial.state is TrialState.FAIL and len(reached) < len(rungs):
            worst.append((i, len(reached)))
        if any(excess > 0 for excess in trial.constraints.values()):
            worst.append((i, len(rungs) - 1))

    recipe, rung, score = (np.array(column) for column in zip(*entries, strict=True))
    if (score > 0).all():
        score = np.log(score)
    if direction == "maximize":
        score = -score
    for at in np.unique(rung):
        here = rung == at
        median = np.median(score[here])
        score[here] = np.minimum(score[here], 2 * median - score[here].min())

    for i, at in worst:
        if (rung == at).any():
            score = np.append(score, score[rung == at].max())
            recipe = np.append(recipe, i)
            rung = np.append(rung, at)
    return Scores(points, columns, np.log(space.budget.rungs_kimg), recipe, recipe, rung, score)


def thinned(scores: Scores) -> Scores:
    """Return at most about `MOST_FITTED` of the scores: those of every second recipe, every third, and so on."""
    every = math.ceil(len(scores.score) / MOST_FITTED)
    chosen = np.unique(scores.recipe)[::every]
    kept = np.isin(scores.recipe, chosen)
    place = np.searchsorted(chosen, scores.recipe[kept])
    return Scores(
        scores.points[chosen], scores.columns, scores.log_kimg, place, place, scores.rung[kept], scores.score[kept]
    )


def expected_gains(
    model: CurveModel, rung: int, candidates: np.ndarray, best: np.ndarray, running: np.ndarray
) -> np.ndarray:
    """Return by how much each candidate [N, D] is expected to be better at a rung than the best recipe [D] so far.

    A candidate that turns out worse gains nothing (expected improvement), both scores are uncertain, and the running
    recipes [R, D] are taken to score as the model expects: that changes no mean, but makes it surer near them
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
