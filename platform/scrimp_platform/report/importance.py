"""How much each searched field mattered, as Optuna estimates it."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from scrimp_platform.search import study as studies
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space

ENOUGH = 6


def importances(trials: Sequence[Trial], space: Space) -> dict[str, float] | str:
    """Return each field's share of what makes trials good, largest first; or why there is none."""
    study = studies.in_memory(trials, space)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < ENOUGH:
        return f"Skipped: it needs {ENOUGH} trials that were trained to the end, and there are {len(complete)}."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(study)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
