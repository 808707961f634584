"""Which differences a race can tell, before it is run: from its number of seeds and the noise of earlier sweeps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

QUANTILE_SURE = 1.645
"""Of the standard normal distribution, at `verdict.SURE`."""
QUANTILE_POWER = 0.842
"""Likewise, at the share of races that are to tell: four in five."""
MIN_FREEDOM = 3
"""Degrees of freedom from which on an earlier sweep's noise is used."""


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation of a score between the seeds of a recipe, as a share of the score."""

    share: float
    sweep: str
    """The earlier sweep in which it was measured."""


def fresh_seeds(space: Space) -> int:
    """Return how many seeds count in the mean of a raced trial, if it gets all of its repeats."""
    return space.budget.repeats - (0 if space.arms else 1)


def smallest_gap(space: Space) -> float:
    """Return the smallest difference that four races in five detect, in standard deviations between seeds.

    It is infinite without fresh seeds. The difference of two means over n seeds has a standard deviation of
    sqrt(2 / n), and counts once it is 95% likely.
    """
    seeds = fresh_seeds(space)
    return (QUANTILE_SURE + QUANTILE_POWER) * math.sqrt(2 / seeds) if seeds else math.inf


def seed_noise(sweeps: Iterable[SweepFolder], space: Space, dataset: str) -> SeedNoise | None:
    """Return the seed noise of the first objective in the last sweep that tells it.

    It has the same objective and scoring, and its dataset has this content hash.
    """
    known = []
    for folder in sweeps:
        try:
            description = records.sweep_description(folder)
            earlier = records.space_of(folder)
        except (UserError, OSError):  # damaged, or of another user: `scrimp status` tells
            continue
        same_goal = next(iter(earlier.objectives)) == next(iter(space.objectives)) and earlier.scoring == space.scoring
        if same_goal and description["dataset"]["content_hash"] == dataset:
            known.append((description["started"], folder, earlier))

    for _, folder, earlier in sorted(known, key=lambda entry: -entry[0]):
        share = _share_between_seeds(folder, earlier)
        if share:
            return SeedNoise(share, folder.path.name)
    return None


def _share_between_seeds(folder: SweepFolder, space: Space) -> float | None:
    """Return the pooled deviation of the logarithms of scores, over the seeds of each raced trial."""
    name = next(iter(space.objectives))
    kimg = space.budget.rungs_kimg[-1]
    squares = 0.0
    freedom = 0
    for trial in records.read_as_observer(folder).trials:
        scores = records.finite_scores(records.unbiased_repeats(trial, space, kimg), name, kimg)
        if not scores or min(scores) <= 0:
            continue
        logarithms = [math.log(score) for score in scores]
        mean = math.fsum(logarithms) / len(logarithms)
        squares += math.fsum((value - mean) ** 2 for value in logarithms)
        freedom += len(scores) - 1
    return math.sqrt(squares / freedom) if freedom >= MIN_FREEDOM else None
