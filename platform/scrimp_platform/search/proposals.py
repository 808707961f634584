"""Who proposes a sweep's trials, by the name that the space gives it in `proposals`.

What is proposed depends on the sweep's seed and on its trials alone, so a resumed sweep proposes the same as an
uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.samplers import BaseSampler, GPSampler, PartialFixedSampler, RandomSampler, TPESampler

from scrimp_platform.search import curve_proposals, searched_values, study
from scrimp_platform.search.curves import Curves
from scrimp_platform.search.quasi_random import QuasiRandomSampler
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space
from scrimp_trainers.common import parts

MIN_STARTUP_TRIALS = 4
MAX_STARTUP_TRIALS = 10
MAX_SAME_POINTS = 10
"""Points of a sequence that are passed over because they were tried: an earlier sweep of the same seed, with whose best
trials this one began, had the same. A space of few recipes may have no others."""


def propose(
    trials: Sequence[Trial],
    space: Space,
    seed: int,
    fixed: Mapping[str, Any] | None = None,
    curves: Curves | None = None,
) -> dict[str, Any]:
    """Return a value for each searched field whose condition holds.

    Parameters
    ----------
    trials : sequence of Trial
        Every proposal so far, in order.
    space : Space
        What is searched, and who proposes.
    seed : int
        The sweep's.
    fixed : mapping, optional
        Values of some fields that are not searched this time.
    curves : Curves, optional
        What the curve model has learned from the trials, if it proposes.
    """
    number = len(trials)
    if curves and not fixed and len(curves.expected) >= startup_trials(space):
        return curve_proposals.propose(curves, _own_seed(seed, number))

    past = study.in_memory(trials, space)
    tried = [trial.params for trial in trials]
    values: dict[str, Any] = {}
    for place in range(number, number + MAX_SAME_POINTS):
        values = _ask(past, _sampler(space, seed, place), space, fixed or {})
        if fixed or values not in tried or space.proposals not in ("curves", "qmc"):
            break
    return values


def _ask(past: Study, sampler: BaseSampler, space: Space, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sampler suggests for the fields that are not fixed, given a study of the trials so far."""
    past.sampler = sampler
    if fixed:
        values = {path: searched_values.to_optuna(space.search[path], value) for path, value in fixed.items()}
        past.sampler = PartialFixedSampler(values, sampler)

    trial = past.ask()
    suggested: dict[str, Any] = {}
    for path, span in space.search.items():
        if path in space.active(suggested):
            suggested[path] = searched_values.suggest(trial, path, span)
    return suggested


def startup_trials(space: Space) -> int:
    """Return after how many trials proposals are learned from scores."""
    if space.budget.trials is None:
        return MAX_STARTUP_TRIALS
    return min(MAX_STARTUP_TRIALS, max(MIN_STARTUP_TRIALS, space.budget.trials // 3))


def _own_seed(seed: int, number: int) -> int:
    return (seed * 100_003 + number) % 2**32


def _sampler(space: Space, seed: int, number: int) -> BaseSampler:
    """Return the sampler that proposes the trial of this number in a sweep of this seed."""
    own_seed = _own_seed(seed, number)
    match space.proposals:
        case "tpe":
            return TPESampler(seed=own_seed, n_startup_trials=startup_trials(space), multivariate=True, group=True)
        case "gp":
            return GPSampler(seed=own_seed, n_startup_trials=startup_trials(space))
        case "random":
            return RandomSampler(own_seed)
        case "curves" | "qmc":  # the curve model begins with an even spread
            return QuasiRandomSampler(list(space.search), seed, number)
        case own:
            return parts.own(own)(space, seed, number)
