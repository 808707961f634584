"""The sweep's Optuna study: proposals, what became of them, and a journal that optuna-dashboard opens.

Only the driver writes it. Proposals are a function of the seed, the trial's number and the study's history, so a
resumed sweep proposes what an undisturbed one would have.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from scrimp_platform import store
from scrimp_spaces.space import Range, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

MIN_STARTUP, MAX_STARTUP = 4, 10


class Journal(JournalFileBackend):
    """Optuna's journal, which waits for room on a full disk and leaves no half line there."""

    def __init__(self, path: Path, say: Callable[[str], object]) -> None:
        _mend(path)
        super().__init__(str(path))
        self._path, self._say = path, say

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of these or none."""

        def append() -> None:
            size = self._path.stat().st_size
            try:
                super(Journal, self).append_logs(logs)
            except OSError:
                os.truncate(self._path, size)
                raise

        store.patiently(append, self._say)


class Study:
    """Ask for recipes and tell what came of them."""

    def __init__(self, journal: Path, name: str, space: Space, seed: int, say: Callable[[str], object]) -> None:
        self._space = space
        self._seed = seed
        self._study = optuna.create_study(
            storage=JournalStorage(Journal(journal, say)),
            study_name=name,
            directions=list(space.objectives.values()),
            load_if_exists=True,
        )
        self._study.set_metric_names(list(space.objectives))

    def trials(self) -> list[FrozenTrial]:
        """Return every trial that the study knows."""
        return self._study.get_trials(deepcopy=False)

    def ask(self, arm: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Propose a trial: its number, and a value for each searched field whose condition holds.

        Where an arm is given, its values are the proposal.
        """
        number = len(self.trials())
        # A new sampler a proposal: its state is then no more than (seed, number, history), which a resume has too.
        startup = min(MAX_STARTUP, max(MIN_STARTUP, self._space.budget.trials // 3))
        self._study.sampler = TPESampler(
            seed=(self._seed * 100_003 + number) % 2**32, n_startup_trials=startup, multivariate=True, group=True
        )
        if arm is not None:
            fixed = {path: _encode(self._space.search[path], value) for path, value in arm.items()}
            self._study.sampler = PartialFixedSampler(fixed, RandomSampler())
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for path, span in self._space.search.items():
            if path in self._space.active(values):
                values[path] = _suggest(trial, path, span)
        return trial.number, values

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Propose these values before any others, once: a study that was resumed does not propose them again."""
        encoded = {path: _encode(self._space.search[path], value) for path, value in values.items()}
        self._study.enqueue_trial(encoded, skip_if_exists=True)

    def report(self, number: int, images: int, value: float) -> None:
        """Record a trial's objective at a rung, in images seen; a second time changes nothing."""
        # Optuna keeps no intermediate values where there are several objectives (optuna#3450).
        if len(self._space.objectives) == 1 and images not in self.trials()[number].intermediate_values:
            self._trial(number).report(value, step=images)

    def complete(self, number: int, scores: Mapping[str, Any]) -> None:
        """Tell the trial's objectives and how far it is from its constraints; a score that is no number fails it."""
        values = [float(scores.get(name, math.nan)) for name in self._space.objectives]
        if not all(math.isfinite(value) for value in values):
            self.fail(number)
            return
        for name, excess in excesses(self._space, scores).items():
            self._trial(number).set_constraint(name, min(excess, 1e30))
        self._study.tell(number, values)

    def prune(self, number: int) -> None:
        """Tell that the trial was stopped early: its last value counts as one of a low fidelity."""
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Tell that the trial came to nothing, so that the sampler does not wait for it."""
        self._study.tell(number, state=TrialState.FAIL)

    def _trial(self, number: int) -> optuna.trial.Trial:
        return optuna.trial.Trial(self._study, self.trials()[number]._trial_id)


def excesses(space: Space, scores: Mapping[str, Any]) -> dict[str, float]:
    """By how much each constraint is broken; infinite where its score is missing or no number."""
    result = {}
    for name, bound in space.constraints.items():
        value = float(scores.get(name, math.nan))
        result[name] = bound.excess(value) if math.isfinite(value) else math.inf
    return result


def _suggest(trial: optuna.trial.Trial, path: str, span: Range) -> Any:
    if span.uniform:
        return trial.suggest_float(path, *span.uniform)
    if span.loguniform:
        return trial.suggest_float(path, *span.loguniform, log=True)
    if span.int:
        return trial.suggest_int(path, *span.int)
    options = {_encode(span, value): value for value in span.choice or ()}
    return options[trial.suggest_categorical(path, list(options))]


def _encode(span: Range, value: Any) -> Any:
    """Optuna's choices are scalars: lists travel as JSON text."""
    return json.dumps(value) if span.choice and isinstance(value, list | tuple | dict) else value


def _mend(journal: Path) -> None:
    """Undo what a kill in the middle of an append leaves: Optuna's lock, and half a line.

    The driver's own lock on the sweep is held, so nobody else is writing.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(journal, len(whole))
