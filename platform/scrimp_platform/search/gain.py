"""What more trials are expected to gain, by the curve model: whether to continue a search.

scipy is imported where it is needed: that takes half a second, and most calls of `scrimp status` do without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scrimp_platform.search.records import Trial
from scrimp_platform.search.verdict import MARGIN
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

if TYPE_CHECKING:
    from scrimp_platform.search.curves import Curves

AHEAD = 10
"""How many more trials are looked ahead: about a round on ten nodes."""
DRAWS = 2048
"""Of the true scores, jointly; a sampling error of a fortieth of their standard deviation."""
LEAST_TRIALS = 10
"""Trials with scores before anything is said: with fewer the model knows little, and not how little."""


@dataclass(frozen=True)
class Gain:
    """What the next `AHEAD` trials are expected to gain.

    Attributes
    ----------
    share : float
        By which share of itself they improve the true score, over all seeds, of the best recipe so far; its mean.
    probability : float
        That they improve it by more than 2%.
    hours : float
        The device-hours that they take, at the mean of the trials so far.
    """

    share: float
    probability: float
    hours: float

    def text(self) -> str:
        """Return a sentence without its full stop."""
        each = self.share / self.hours if self.hours else 0.0
        return (
            f"{AHEAD} more trials, about {self.hours:.3g} device-hours, are expected to improve the best score by "
            f"{_percent(self.share)}, {_percent(each)} per device-hour, and by more than {MARGIN:.0%} with a "
            f"probability of {self.probability:.2f}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def of_more_trials(trials: Sequence[Trial], space: Space, folder: SweepFolder) -> Gain | None:
    """Return what more trials of a sweep are expected to gain; None while the curve model has too few scores.

    None, too, for a space in which it does not propose. `folder` holds what the sweep was given of earlier ones.
    """
    scored = sum(bool(trial.scored_rungs(space)) for trial in trials if trial.repeats)
    if space.proposals != "curves" or space.arms or scored < LEAST_TRIALS:
        return None
    from scrimp_platform.search import curves, warm_start
    from scrimp_platform.search.prior import Prior

    learned = curves.learn(trials, space, prior=Prior(space, warm_start.load(folder).sweeps))
    return expected_gain(learned) if learned else None


def expected_gain(learned: "Curves") -> Gain | None:
    """Return what the curve model expects of more trials; none while it knows too few.

    They are chosen as the search would choose them, but all at once: what each one tells about the next is left out.
    """
    scored = [trial for trial in learned.trials if trial.number in learned.expected]
    if len(scored) < LEAST_TRIALS:
        return None
    from scrimp_platform.search import curve_proposals
    from scrimp_platform.search.curve_model import one_thread

    seed = len(learned.scores)
    known, coming = curve_proposals.next_points(learned, AHEAD, seed)
    recipes = np.concatenate([known, coming])
    with one_thread():
        mean, _, covariance = learned.model.predict(recipes, learned.last, recipes)
        draws = np.random.default_rng(seed).multivariate_normal(mean, covariance, DRAWS, method="eigh")
    so_far = draws[:, : len(known)].min(axis=1)
    keeps = np.random.default_rng(seed).random((DRAWS, AHEAD)) < learned.kept(coming)
    best_to_come = np.where(keeps, draws[:, len(known) :], np.inf).min(axis=1)
    gains = np.maximum(0.0, so_far - best_to_come)

    shares = _shares(gains, so_far, learned)
    hours = float(np.mean([trial.repeats[0].device_hours for trial in scored]))
    return Gain(float(shares.mean()), float((shares > MARGIN).mean()), AHEAD * hours)


def _shares(gains: np.ndarray, scores: np.ndarray, learned: "Curves") -> np.ndarray:
    """Return gains [draws], on the scale of the model, as shares of the scores [draws]."""
    if not learned.is_log:
        return gains / max(abs(float(scores.mean())), 1e-12)
    if next(iter(learned.space.objectives.values())) == "maximize":
        return np.expm1(gains)
    return -np.expm1(-gains)
