"""What the seeds of a race say of its trials: the posterior of a hierarchical normal model.

With a score's logarithm where all scores are positive, and with the score itself elsewhere,

    score of trial i with seed j = theta_i + noise,    noise ~ N(0, s^2),    theta_i ~ N(mu, (r s)^2)

The noise s of the seeds is common to all trials, since two or three seeds do not determine a trial's own. The priors
are weak and have no unit: flat in mu, 1/s in s, and beta prime (1/2, 1/2) in r, so that trials differ by less than the
noise as likely as by more. The usual half-Cauchy prior (Gelman 2006, "Prior distributions for variance parameters in
hierarchical models") is the same of r^2. It leaves too little for leaders that are all but equal, as a good search has
them: it is too sure which one is best (docs/search.md). Given r all else is in closed form (Gelman et al., "Bayesian
data analysis", 3rd ed., section 5.4); r is summed over a grid.

A trial's mean is drawn towards the mean of all, the more so the fewer seeds it has. That is why the same seeds may
choose the best trial and report its score: given all scores, the posterior is the same whatever was chosen by them
(Dawid 1994, "Selection paradoxes of Bayesian inference"). A plain mean of the trial that came out best is too good.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scrimp_platform.search.stats import CONFIDENCE, Direction, Summary, summarize

Array = NDArray[np.float64]

DRAWS = 5_000
"""From the posterior. Their seed is fixed, so that every process says the same of the same scores."""
MAX_LOG = 700.0
"""Of a score; beyond this its exponential is no number."""
RATIOS = np.geomspace(1e-3, 1e6, 91)
"""Grid of r."""
_LOG_PRIOR = np.log(RATIOS) / 2 - np.log1p(RATIOS)
"""Of r, up to a constant: the density of beta prime (1/2, 1/2), times r since the grid is even in its logarithm."""


@dataclass(frozen=True)
class Posterior:
    """The mean scores of trials as their seeds have them.

    Until some trial has two seeds the noise is not known: all trials are then equally likely to be the best, and
    nothing has an interval. Where no trial's scores differ, there is no noise, as in the size of a network.
    """

    summaries: list[Summary]
    """Of each trial: its seeds, its mean drawn towards that of all, the standard deviation of its own scores, and the
    central 95% interval of the mean; on the score's own scale."""
    draws: Array
    """Mean scores drawn from the posterior [draws, trials], lower is better; of positive scores the logarithm."""
    is_log: bool
    freedom: int
    """Degrees of freedom of the noise: the number of scores, less the number of trials that have any."""

    def worse(self, one: int, other: int) -> float:
        """Return the probability that a trial, by its position, is worse than another one."""
        return float(np.mean(self.draws[:, one] > self.draws[:, other]))

    def excess(self, one: int, other: int) -> float:
        """Return by which share of its score a trial's mean is worse than that of another one, by their positions."""
        gap = float(np.median(self.draws[:, one]) - np.median(self.draws[:, other]))
        if self.is_log:
            return math.expm1(gap)
        return gap / max(abs(float(np.median(self.draws[:, other]))), 1e-12)

    def near_best(self, margin: float) -> list[float]:
        """Return the probability of each trial to be worse than the best by at most this share of its score."""
        best = self.draws.min(axis=1, keepdims=True)
        reach = np.log1p(margin) if self.is_log else margin * np.abs(best)
        return np.mean(self.draws <= best + reach, axis=0).tolist()


def of_scores(samples: Sequence[Sequence[float]], direction: Direction) -> Posterior:
    """Return the posterior of the trials' means, given their finite scores by trial; a trial may have none yet."""
    is_log = all(value > 0 for sample in samples for value in sample)
    sign = 1.0 if direction == "minimize" else -1.0
    counts = np.array([len(sample) for sample in samples])
    freedom = int(counts.sum() - np.count_nonzero(counts))
    values = [sign * (np.log(sample) if is_log else np.array(sample, float)) for sample in samples]
    if freedom == 0:
        return _of_unknown_noise(samples, is_log)

    if all(len(set(sample)) < 2 for sample in samples):
        exact = np.array([own[0] if len(own) else math.inf for own in values])
        draws = np.broadcast_to(exact, (DRAWS, len(samples)))
        return Posterior([summarize(sample) for sample in samples], draws, is_log, freedom)

    # Around the mean of all, so that the draws do not depend on the origin.
    means = np.array([np.mean(own) if len(own) else math.nan for own in values])
    origin = math.fsum(means[counts > 0]) / np.count_nonzero(counts)
    squares = math.fsum(float(np.sum((own - own.mean()) ** 2)) for own in values if len(own))
    order = np.lexsort((means, counts))  # nor on the order of the trials
    draws, noise = draw(np.nan_to_num(means - origin)[order], counts[order], squares)
    draws = draws[:, np.argsort(order)] + origin
    if is_log:
        draws += sign * noise[:, None] ** 2 / 2  # a score's mean is above the exponential of its logarithm's mean

    tail = (1 - CONFIDENCE) / 2
    ends = sign * np.quantile(draws, (tail, 0.5, 1 - tail), axis=0)
    if is_log:
        ends = np.exp(np.clip(ends, -MAX_LOG, MAX_LOG))
    ends.sort(axis=0)
    summaries: list[Summary] = []
    for sample, (low, mean, high) in zip(samples, ends.T.tolist(), strict=True):
        own = summarize(sample)
        summaries.append(Summary(own.n, mean, own.std, low, high))
    return Posterior(summaries, draws, is_log, freedom)


def draw(means: Array, counts: NDArray[np.int64], squares: float) -> tuple[Array, Array]:
    """Draw the trials' means [draws, trials] and the noise [draws] from the posterior.

    Parameters
    ----------
    means
        Of each trial's scores, near 0; of a trial without scores anything finite.
    counts
        Scores of each trial, of which at least one has two.
    squares
        Sum of the squared deviations of all scores from their trial's mean.
    """
    chance = np.random.default_rng(0)
    weights, sums = grid(means, counts, squares)
    places = (np.arange(DRAWS) + 0.5) / DRAWS
    which = np.minimum(np.searchsorted(np.cumsum(weights), places), len(RATIOS) - 1)
    noise = np.sqrt(sums[which] / chance.chisquare(counts.sum() - 1, DRAWS))

    precisions = _precisions(counts, RATIOS)
    total = precisions.sum(axis=1)
    centres = precisions @ means / total
    centre = centres[which] + noise / np.sqrt(total)[which] * chance.standard_normal(DRAWS)

    # The mean of a trial given the mean of all.
    spread = (RATIOS**2)[:, None]
    pull = 1 / (1 + counts * spread)
    scales = np.sqrt(spread * pull)
    draws = (1 - pull)[which] * means + pull[which] * centre[:, None]
    draws += (scales[which] * noise[:, None]) * chance.standard_normal(draws.shape)
    return draws, noise


def grid(means: Array, counts: NDArray[np.int64], squares: float) -> tuple[Array, Array]:
    """Return the posterior weight of each r of the grid, and the sum of squares that belongs to it.

    Given r, this sum over s^2 has a chi-squared distribution with one degree of freedom less than there are scores.
    """
    precisions = _precisions(counts, RATIOS)
    total = precisions.sum(axis=1)
    centre = precisions @ means / total
    sums = squares + (precisions * (means - centre[:, None]) ** 2).sum(axis=1)
    has_scores = counts > 0
    logs = _LOG_PRIOR + 0.5 * np.log(precisions[:, has_scores]).sum(axis=1) - 0.5 * np.log(total)
    logs -= 0.5 * (counts.sum() - 1) * np.log(sums)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum(), sums


def _precisions(counts: NDArray[np.int64], ratios: Array) -> Array:
    """Return the precision of each trial's plain mean around the mean of all, times s^2 [ratios, trials]."""
    return counts / (1 + counts * (ratios**2)[:, None])


def _of_unknown_noise(samples: Sequence[Sequence[float]], is_log: bool) -> Posterior:
    chance = np.random.default_rng(0)
    draws = chance.standard_normal((DRAWS, len(samples)))
    return Posterior([summarize(sample) for sample in samples], draws, is_log, freedom=0)
