"""Importance of the searched fields, as Optuna estimates it."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from scrimp_platform.search import study as studies
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space

MIN_COMPLETE_TRIALS = 6


def field_importances(trials: Sequence[Trial], space: Space) -> dict[str, float] | str:
    """Return the importance of each field, the largest first; or a message if there are too few trials."""
    study = studies.in_memory(trials, space)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < MIN_COMPLETE_TRIALS:
        return (
            f"Skipped: it needs {MIN_COMPLETE_TRIALS} trials that were trained to the end, "
            f"and there are {len(complete)}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        importances = optuna.importance.get_param_importances(study)
    return dict(sorted(importances.items(), key=lambda item: -item[1]))
