"""How much each searched field mattered, as Optuna estimates it from the sweep's journal."""

import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

ENOUGH = 6


def importances(journal: Path) -> dict[str, float] | str:
    """Return each field's share of what makes trials good, largest first; or why there is none."""
    if not journal.exists():
        return "Skipped: there is no study yet."
    storage = JournalStorage(JournalFileBackend(str(journal)))
    name = optuna.get_all_study_names(storage)[0]  # one a sweep, whatever its folder is called by now
    study = optuna.load_study(study_name=name, storage=storage)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < ENOUGH:
        return f"Skipped: it needs {ENOUGH} trials that were trained to the end, and there are {len(complete)}."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(study)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
