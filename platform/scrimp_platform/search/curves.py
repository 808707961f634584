"""What the curve model says of a sweep's trials, from all scores of the search so far.

It learns from the scores at every rung, those of running, paused and stopped trials, too. A failed trial counts as the
worst score of the rung that it did not reach. Each constraint has a model of its own, of the number that it limits,
which says how likely a recipe is to keep it at the last rung.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from scrimp_platform.search import curve_model
from scrimp_platform.search.curve_model import CurveModel, Observations
from scrimp_platform.search.encoding import Encoding
from scrimp_platform.search.prior import Prior
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space


@dataclass(frozen=True)
class Limit:
    """What is known of the number that a constraint limits.

    Attributes
    ----------
    model : CurveModel
        Of that number; of its logarithm if all measurements are positive.
    low, high : float
        The limits on the scale of the model; infinite where there is none.
    """

    model: CurveModel
    low: float
    high: float

    def kept(self, points: np.ndarray, rung: int) -> np.ndarray:
        """Return the probability [N] that the number of recipes [N, D + E], over all seeds, is within the limits."""
        with curve_model.one_thread():
            mean, variance, _ = self.model.predict(points, rung, points[:1])
        std = np.sqrt(np.maximum(variance, 1e-12))
        return ndtr((self.high - mean) / std) - ndtr((self.low - mean) / std)


@dataclass(frozen=True)
class Curves:
    """The fitted model, and the trials that it has learned from.

    Attributes
    ----------
    scores : tuple
        Of each trial that has scores, has failed or was skipped its number, its end and how many rungs it has reached:
        what the model depends on.
    trials : sequence of Trial
        Every proposal with its values, in order.
    points : ndarray
        [trials, D + E], their recipes.
    expected : dict
        The score at the last rung that the model expects of each trial that has scores, by number. Lower is better, on
        the scale of the model: logarithms if all scores are positive.
    is_log : bool
        Whether the scale of the model is that of logarithms: all scores are positive.
    prior : Prior
        What earlier sweeps say of recipes.
    limits : tuple of Limit
        Of each constraint whose number was measured, or is known before training.
    ranks : dict
        By what a trial that has scores is ranked, by number: first the probability that it breaks a constraint, where
        that is more likely than not and else 0, then `expected`.
    """

    space: Space
    scores: tuple[tuple[int, str, int], ...]
    encoding: Encoding
    model: CurveModel
    trials: Sequence[Trial]
    points: np.ndarray
    expected: dict[int, float]
    is_log: bool
    prior: Prior
    limits: tuple[Limit, ...]
    ranks: dict[int, tuple[float, float]]

    def kept(self, points: np.ndarray) -> np.ndarray:
        """Return the probability [N] that recipes [N, D + E] keep all constraints, taken as independent."""
        return np.prod([np.ones(len(points)), *(limit.kept(points, self.last) for limit in self.limits)], axis=0)

    def points_at(self, shares: np.ndarray) -> np.ndarray:
        """Return the points [N, D + E] of the model at these shares [N, fields]."""
        return np.concatenate([self.encoding.points(shares), self.prior.expectations(shares)], axis=1)

    @property
    def last(self) -> int:
        """Position of the last rung."""
        return len(self.space.budget.rungs_kimg) - 1


def learn(
    proposals: Sequence[Trial], space: Space, known: Curves | None = None, prior: Prior | None = None
) -> Curves | None:
    """Fit the model to the search's scores; none if there are fewer than two, or the space has several objectives.

    If there is no score that `known` has not learned from, its model is used again. `prior` is what earlier sweeps say.
    """
    trials = [trial for trial in proposals if trial.params]
    reached = [len(trial.scored_rungs(space)) for trial in trials]
    scored = [i for i, rungs in enumerate(reached) if rungs]
    if len(scored) < 2 or len(space.objectives) > 1:
        return None

    known_scores = _scores_known(trials, reached)
    if known and known.scores == known_scores and len(known.trials) == len(trials):
        return known
    encoding = Encoding(space)
    prior = prior or Prior(space)
    shares = encoding.shares([trial.params for trial in trials])
    with curve_model.one_thread():
        points = np.concatenate([encoding.points(shares), prior.expectations(shares)], axis=1)
    if known and known.scores == known_scores:
        return dataclasses.replace(known, trials=trials, points=points)

    scores = curve_scores(trials, points, encoding.columns, space)
    model = curve_model.fitted(scores)
    with curve_model.one_thread():
        means = model.means(points[scored], len(scores.log_kimg) - 1)
    numbers = [trials[i].number for i in scored]
    expected = dict(zip(numbers, means.tolist(), strict=True))
    is_log = _is_log(trials, space)
    limits = _limits(trials, points, encoding.columns, space)
    learned = Curves(space, known_scores, encoding, model, trials, points, expected, is_log, prior, limits, {})
    broken = 1 - learned.kept(points[scored])
    ranks = zip(np.where(broken > 0.5, broken, 0.0).tolist(), means.tolist(), strict=True)
    return dataclasses.replace(learned, ranks=dict(zip(numbers, ranks, strict=True)))


def _limits(trials: Sequence[Trial], points: np.ndarray, columns: np.ndarray, space: Space) -> tuple[Limit, ...]:
    """Fit a model to the number of each constraint: as the rungs of the search have it, or as it was known before.

    Of what is known before, that of skipped proposals counts, too.
    """
    rungs = space.budget.rungs_kimg
    limits = []
    for name, bound in space.constraints.items():
        entries: list[tuple[int, int, float]] = []
        for i, trial in enumerate(trials):
            reached = trial.scored_rungs(space)
            numbers = [(i, rungs.index(rung), trial.repeats[0].score(name, rung)) for rung in reached]
            if name in trial.costs and (reached or trial.status == "skipped"):
                numbers = [(i, len(rungs) - 1, trial.costs[name])]
            entries += [entry for entry in numbers if math.isfinite(entry[2])]
        if len(entries) < 2:
            continue

        recipe, rung, number = (np.array(column) for column in zip(*entries, strict=True))
        low = -math.inf if bound.min is None else bound.min
        high = math.inf if bound.max is None else bound.max
        if (number > 0).all():
            number = np.log(number)
            low, high = (math.log(limit) if limit > 0 else -math.inf for limit in (low, high))
        model = curve_model.fitted(Observations(points, columns, np.log(rungs), recipe, recipe, rung, number))
        limits.append(Limit(model, low, high))
    return tuple(limits)


def as_scores(learned: Curves, values: np.ndarray) -> np.ndarray:
    """Return values on the scale of the model as scores of the objective."""
    (direction,) = learned.space.objectives.values()
    signed = -values if direction == "maximize" else values
    return np.exp(signed) if learned.is_log else signed


def expected_scores(trials: Sequence[Trial], space: Space) -> dict[int, float] | None:
    """Return `Curves.expected` if the space has the curve model decide, and it has learned something.

    Only the sweep's own scores count here, not those of earlier sweeps.
    """
    if space.proposals != "curves" or space.arms:
        return None
    learned = learn(trials, without_constraints(space))
    return learned.expected if learned else None


def without_constraints(space: Space) -> Space:
    """Return the space for whoever asks what scores are expected, and not which recipes keep the constraints."""
    return space.model_copy(update={"constraints": {}})


def _scores_known(trials: Sequence[Trial], reached: Sequence[int]) -> tuple[tuple[int, str, int], ...]:
    known = []
    for trial, rungs in zip(trials, reached, strict=True):
        end = trial.status if trial.status in ("failed", "complete", "skipped") else ""
        if end or rungs:
            known.append((trial.number, end, rungs))
    return tuple(known)


def curve_scores(trials: Sequence[Trial], points: np.ndarray, columns: np.ndarray, space: Space) -> Observations:
    """Return the scores of the trials, whose recipes are `points` [trials, D + E], as the curve model learns from them.

    They are on a log scale if all are positive, and lower is better. How bad the worst ones are tells nothing about
    where the best are, and a Gaussian process would bend to fit them: at each rung, scores that are further above the
    median than the best is below it become equal to that.
    """
    rungs = space.budget.rungs_kimg
    name, direction = next(iter(space.objectives.items()))
    entries: list[tuple[int, int, float]] = []
    worst: list[tuple[int, int]] = []
    for i, trial in enumerate(trials):
        reached = trial.scored_rungs(space)
        entries += [(i, rungs.index(rung), trial.repeats[0].score(name, rung)) for rung in reached]
        if trial.status == "failed" and len(reached) < len(rungs):
            worst.append((i, len(reached)))

    recipe, rung, score = (np.array(column) for column in zip(*entries, strict=True))
    if _is_log(trials, space):
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
    return Observations(points, columns, np.log(rungs), recipe, recipe, rung, score)


def _is_log(trials: Sequence[Trial], space: Space) -> bool:
    """Whether all scores at rungs are positive."""
    name = next(iter(space.objectives))
    return all(trial.repeats[0].score(name, rung) > 0 for trial in trials for rung in trial.scored_rungs(space))
