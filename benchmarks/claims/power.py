"""How many seeds find an effect: the power of a comparison of two arms, from how much scores vary over seeds."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.claim import Claim, device_of, runnable
from scrimp_trainers.common.errors import UserError

PILOT = Path("docs/claims/pilot.json")
"""Scores by experiment, score and arm, one a seed, of earlier trainings to one length."""
POWER = 0.8
LEVEL = 0.05
USUAL = math.log(1.1)
"""The effect that is to be found unless a claim says otherwise: 10% of a ratio."""
MOST = 1000
"""Seeds at which the search for their number gives up."""


def power(seeds: int, deviation: float, effect: float, level: float) -> float:
    """Return the chance that a two-sided t test of two arms finds an effect.

    The statistic follows a noncentral t distribution with 2 seeds - 2 degrees of freedom.

    Parameters
    ----------
    seeds
        Of each arm.
    deviation
        Standard deviation of the score over seeds, the same in both arms.
    effect
        Difference of the arms' means, in the same unit: of a ratio its logarithm.
    level
        Of the test.
    """
    from scipy import stats

    freedom = 2 * seeds - 2
    shift = effect / (deviation * math.sqrt(2 / seeds))
    bound = stats.t.ppf(1 - level / 2, freedom)
    return float(stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift))


def seeds_needed(deviation: float, effect: float, level: float) -> int:
    """Return the smallest number of seeds of each arm with which the test has `POWER`."""
    return next(seeds for seeds in range(2, MOST) if power(seeds, deviation, effect, level) >= POWER)


def pooled_deviation(arms: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation over seeds within arms, each with two or more values."""
    freedom = sum(len(values) - 1 for values in arms)
    return math.sqrt(sum((len(values) - 1) * statistics.variance(values) for values in arms) / freedom)


def deviation_of(claim: Claim, pilot: Path = PILOT) -> float | None:
    """Return the deviation over seeds of a claim's primary score in its pilot; of a ratio that of logarithms.

    None if the claim has no pilot, or no seed changes the score.

    Raises
    ------
    UserError
        If the pilot has no such scores.
    """
    settings, primary = claim.power, claim.primary
    if not (settings and primary and settings.pilot):
        return None
    try:
        by_arm = json.loads(pilot.read_text())["scores"][settings.pilot][settings.score or primary.score]
        chosen = [by_arm[arm] for arm in settings.arms or by_arm]
    except KeyError as missing:
        raise UserError(f"claim {claim.name}: {pilot} has no {missing}") from None
    if primary.scale == "ratio":
        chosen = [[math.log(value) for value in values] for values in chosen]
    return pooled_deviation(chosen) or None


def effect_of(claim: Claim) -> float:
    """Return the effect to be found, on the scale of the test: of a ratio its logarithm."""
    assert claim.power
    assert claim.primary
    return math.log1p(claim.power.effect) if claim.primary.scale == "ratio" else claim.power.effect


def family_size(device: str) -> int:
    """Return how many primary comparisons there are if all claims run on one kind of machine."""
    return sum(device_of(budget) == device for _, budget, _ in runnable())


def level_of(device: str) -> float:
    """Return Holm's strictest level, at which the smallest p of all claims is tested."""
    return LEVEL / family_size(device)


def seeds_for(claim: Claim, device: str, effect: float | None = None) -> int | None:
    """Return the seeds of an arm that the primary comparison of a claim needs; None if there is no pilot.

    `effect` is another one than the claim's, on the scale of the test.
    """
    deviation = deviation_of(claim)
    return None if deviation is None else seeds_needed(deviation, effect or effect_of(claim), level_of(device))
