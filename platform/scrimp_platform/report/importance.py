"""Importance of the searched fields, as Optuna estimates it."""

import math
import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from scrimp_platform.search import study as studies
from scrimp_platform.search.curves import expected_scores
from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space

MIN_TRIALS = 6


def field_importances(trials: Sequence[Trial], space: Space) -> dict[str, float] | str:
    """Return the importance of each field, the largest first; or a message if there are too few trials.

    Where the curve model has learned, all trials with a score count, by the score at the last rung that it expects of
    them: those that were trained to the end are the best, among which a field that matters may hardly vary.
    """
    expected = expected_scores(trials, space)
    if expected:
        judged = [_expected(trial, space, expected[trial.number]) for trial in trials if trial.number in expected]
    else:
        ended = studies.in_memory(trials, space).get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        judged = [trial for trial in ended if all(map(math.isfinite, trial.values))]
    if len(judged) < MIN_TRIALS:
        return f"Skipped: it needs {MIN_TRIALS} trials, and there are {len(judged)}."

    study = optuna.create_study(directions=list(space.objectives.values()))
    study.add_trials(judged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        importances = optuna.importance.get_param_importances(study)
    return dict(sorted(importances.items(), key=lambda item: -item[1]))


def _expected(trial: Trial, space: Space, score: float) -> FrozenTrial:
    known = studies.frozen(trial, space)
    return create_trial(value=score, params=known.params, distributions=known.distributions)
