"""The sweep's Optuna study: proposals, what became of them, and a journal that optuna-dashboard opens.

Only the driver writes it. Proposals are a function of the seed, the trial's number and the study's history, so a
resumed sweep proposes what an undisturbed one would have. The history is that of the trials on disk: a journal that
is lost, damaged or of something else is made anew from them.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from scrimp_platform import store
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces.space import Range, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

NAME = "scrimp"
"""The study's name in its journal: the sweep's folder may be renamed."""
MIN_STARTUP, MAX_STARTUP = 4, 10
STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "skipped": TrialState.PRUNED,  # unlike a failure it teaches the sampler to look elsewhere
    "failed": TrialState.FAIL,
    "damaged": TrialState.FAIL,
}


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

    def __init__(self, journal: Path, space: Space, seed: int, say: Callable[[str], object]) -> None:
        self._journal = journal
        self._space = space
        self._seed = seed
        self._say = say
        try:
            self._study = self._open()
        except OSError:
            raise
        except Exception:  # Optuna checks nothing: a damaged journal fails anywhere
            self._put_aside()
            self._study = self._open()

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            storage=JournalStorage(Journal(self._journal, self._say)),
            study_name=NAME,
            directions=list(self._space.objectives.values()),
            load_if_exists=True,
        )
        study.set_metric_names(list(self._space.objectives))
        return study

    def _put_aside(self) -> None:
        self._journal.replace(self._journal.with_name(f"{self._journal.name}.old"))

    def match(self, records: Sequence[Trial]) -> bool:
        """Make the study that of the trials on disk, numbered without gaps; whether it had to be made anew for that.

        What a killed driver did not get to tell is told now. What was enqueued and not proposed yet is lost only
        where the study is made anew.
        """
        expected = [frozen(trial, self._space) for trial in records]
        if self._holds(expected):
            return False
        if self.trials():
            self._put_aside()
            self._study = self._open()
        self._study.add_trials(expected)
        self._say(f"{self._journal.name} does not hold the trials on disk: made anew from them")
        return True

    def _holds(self, expected: Sequence[FrozenTrial]) -> bool:
        directions = [direction.name.lower() for direction in self._study.directions]
        known = self.trials()
        more = [trial for trial in known[len(expected) :] if trial.state is not TrialState.WAITING]
        if directions != list(self._space.objectives.values()) or len(known) < len(expected) or more:
            return False
        for number, (trial, ended) in enumerate(zip(known, expected, strict=False)):
            if trial.state is TrialState.RUNNING and ended.state.is_finished() and trial.params == ended.params:
                self._catch_up(number, ended)
        return all(map(_agree, self.trials(), expected))

    def _catch_up(self, number: int, ended: FrozenTrial) -> None:
        if ended.state is not TrialState.COMPLETE:
            self._study.tell(number, state=ended.state)
            return
        for name, excess in ended.constraints.items():
            self._trial(number).set_constraint(name, excess)
        self._study.tell(number, ended.values)

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
        for name, excess in _limited(self._space, scores).items():
            self._trial(number).set_constraint(name, excess)
        self._study.tell(number, values)

    def prune(self, number: int) -> None:
        """Tell that the trial was stopped early: its last value counts as one of a low fidelity."""
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Tell that the trial came to nothing, so that the sampler does not wait for it."""
        self._study.tell(number, state=TrialState.FAIL)

    def _trial(self, number: int) -> optuna.trial.Trial:
        return optuna.trial.Trial(self._study, self.trials()[number]._trial_id)


def in_memory(trials: Sequence[Trial], space: Space) -> optuna.Study:
    """Return a study of these trials that is written nowhere."""
    study = optuna.create_study(directions=list(space.objectives.values()))
    study.add_trials([frozen(trial, space) for trial in trials])
    return study


def frozen(trial: Trial, space: Space) -> FrozenTrial:
    """Return what Optuna knows of a trial: its proposal, the scores of its first repeat, and its state."""
    params = {path: _encode(space.search[path], value) for path, value in trial.params.items()}
    proposal = FixedTrial(params)
    for path in params:
        _suggest(proposal, path, space.search[path])
    first = trial.repeats[0] if trial.repeats else None
    state = STATES[trial.status]
    scores = first.last if first and state is TrialState.COMPLETE else {}
    values = [float(scores.get(name, math.nan)) for name in space.objectives]
    if state is TrialState.COMPLETE and not all(math.isfinite(value) for value in values):
        state = TrialState.FAIL

    complete = state is TrialState.COMPLETE
    return create_trial(
        state=state,
        params=params,
        distributions=proposal.distributions,
        values=values if complete else None,
        constraints=_limited(space, scores) if complete else None,
        intermediate_values=_at_rungs(first, space) if first else {},
    )


def _at_rungs(repeat: Repeat, space: Space) -> dict[int, float]:
    """Return the objective by images seen; Optuna keeps none where there are several objectives (optuna#3450)."""
    if len(space.objectives) > 1:
        return {}
    name = next(iter(space.objectives))
    values = {round(rung * 1000): float(scores.get(name, math.nan)) for rung, scores in repeat.scores.items()}
    return {images: value for images, value in values.items() if math.isfinite(value)}


def _agree(known: FrozenTrial, expected: FrozenTrial) -> bool:
    """Whether a trial of the study is what the records say, as far as it matters to a sampler."""
    names = ["state", "params", "distributions"]
    if expected.state is TrialState.PRUNED:
        names.append("intermediate_values")
    if expected.state is TrialState.COMPLETE:
        names += ["values", "constraints"]
    return all(getattr(known, name) == getattr(expected, name) for name in names)


def _limited(space: Space, scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: min(excess, 1e30) for name, excess in excesses(space, scores).items()}


def excesses(space: Space, scores: Mapping[str, Any]) -> dict[str, float]:
    """By how much each constraint is broken; infinite where its score is missing or no number."""
    result = {}
    for name, bound in space.constraints.items():
        value = float(scores.get(name, math.nan))
        result[name] = bound.excess(value) if math.isfinite(value) else math.inf
    return result


def _suggest(trial: optuna.trial.BaseTrial, path: str, span: Range) -> Any:
    if span.uniform:
        return trial.suggest_float(path, *span.uniform)
    if span.loguniform:
        return trial.suggest_float(path, *span.loguniform, log=True)
    if span.int:
        # Optuna takes no steps on a log scale: it proposes how many steps.
        low, high = (bound // span.step for bound in span.int)
        return trial.suggest_int(path, low, high, log=span.log) * span.step
    options = {_encode(span, value): value for value in span.choice or ()}
    return options[trial.suggest_categorical(path, list(options))]


def _encode(span: Range, value: Any) -> Any:
    """Optuna's choices are scalars: lists travel as JSON text. Of whole numbers it counts the steps."""
    if span.int:
        return value // span.step
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
