"""The sweep's Optuna studies: its trials and their results, in a journal that optuna-dashboard opens.

The first is what samplers learn from: the scores of the search. The second shows what the sweep has found: its values
are means over fresh seeds. Only the driver writes them, and nothing is decided by the journal: the trials on disk are
what counts. A journal that is lost, damaged or does not match them is rebuilt from them.
"""

import math
import os
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from scrimp_platform import store
from scrimp_platform.search import posterior, records, searched_values
from scrimp_platform.search.order import excesses
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.stats import Summary
from scrimp_platform.search.verdict import Verdict, judge, violation
from scrimp_spaces.space import Space
from scrimp_trainers.common.files import publish
from scrimp_trainers.common.metrics_log import MetricsRow

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STUDY_NAME = "scrimp"
"""In the journal. It does not contain the sweep's name, since the folder may be renamed."""
RACE_STUDY_NAME = "scrimp-race"
RACE_STUDY_ABOUT = (
    "Values are means over fresh seeds, so only trials of the race are complete; all others count as pruned, with the "
    "score of the search as intermediate value. The attribute `recommended` marks the trial that Scrimp recommends."
)
STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "skipped": TrialState.PRUNED,  # unlike after a failure, the sampler learns to avoid these values
    "failed": TrialState.FAIL,
    "damaged": TrialState.FAIL,
}


class Journal(JournalFileBackend):
    """Optuna's journal; on a full disk it waits, and leaves no partial line."""

    def __init__(self, path: Path, say: Callable[[str], object]) -> None:
        _repair(path)
        super().__init__(str(path))
        self._path = path
        self._say = say

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of these or none."""

        def append() -> None:
            size = self._path.stat().st_size
            try:
                super(Journal, self).append_logs(logs)
            except OSError:
                os.truncate(self._path, size)
                raise

        store.retry_when_disk_full(append, self._say)


class Study:
    """The study in the journal."""

    def __init__(self, journal: Path, space: Space, say: Callable[[str], object]) -> None:
        self._journal = journal
        self._space = space
        self._say = say
        self._shown: list[tuple[str, int]] = []
        try:
            self._study = self._open()
        except OSError:
            raise
        except Exception:  # Optuna does not validate the journal: any exception may mean that it is damaged
            self._put_aside()
            self._study = self._open()

    def _open(self) -> optuna.Study:
        self._storage = JournalStorage(Journal(self._journal, self._say))
        self._shown = []
        return self._create(STUDY_NAME)

    def _create(self, name: str) -> optuna.Study:
        study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=list(self._space.objectives.values()),
            load_if_exists=True,
        )
        study.set_metric_names(list(self._space.objectives))
        return study

    def _put_aside(self) -> None:
        publish(self._journal, self._journal.with_name(f"{self._journal.name}.old"))

    def match(self, trials: Sequence[Trial]) -> bool:
        """Make the study match the trials on disk, numbered without gaps; return whether it had to be rebuilt.

        What a killed driver did not write to the journal is written now.
        """
        expected = [frozen(trial, self._space) for trial in trials]
        if self._holds(expected):
            return False
        if self.trials():
            self._put_aside()
            self._study = self._open()
        self._study.add_trials(expected)
        self._say(f"{self._journal.name} does not match the trials on disk: rebuilt from them")
        return True

    def _holds(self, expected: Sequence[FrozenTrial]) -> bool:
        directions = [direction.name.lower() for direction in self._study.directions]
        known = self.trials()
        if directions != list(self._space.objectives.values()) or not len(expected) - 1 <= len(known) <= len(expected):
            return False

        for number, (trial, ended) in enumerate(zip(known, expected, strict=False)):
            if trial.state is TrialState.RUNNING and ended.state.is_finished() and trial.params == ended.params:
                self._report_end(number, ended)
        if not all(map(_agree, self.trials(), expected)):
            return False
        self._study.add_trials(expected[len(known) :])
        return True

    def _report_end(self, number: int, ended: FrozenTrial) -> None:
        if ended.state is not TrialState.COMPLETE:
            self._study.tell(number, state=ended.state)
            return
        for name, excess in ended.constraints.items():
            self._trial(number).set_constraint(name, excess)
        self._study.tell(number, ended.values)

    def trials(self) -> list[FrozenTrial]:
        """Return every trial of the study."""
        return self._study.get_trials(deepcopy=False)

    def add(self, trial: Trial) -> None:
        """Record a trial that was proposed, under the next number."""
        self._study.add_trial(frozen(trial, self._space))

    def report(self, number: int, images: int, value: float) -> None:
        """Record a trial's objective at a rung, in images seen; recording it twice changes nothing."""
        # Optuna keeps no intermediate values where there are several objectives (optuna#3450).
        if len(self._space.objectives) == 1 and images not in self.trials()[number].intermediate_values:
            self._trial(number).report(value, step=images)

    def complete(self, number: int, row: MetricsRow | None) -> None:
        """Record the trial's objectives and the excesses of its constraints; a score that is not finite fails it."""
        result = _result(self._space, row)
        if result is None:
            self.fail(number)
            return
        values, constraints = result
        for name, excess in constraints.items():
            self._trial(number).set_constraint(name, excess)
        self._study.tell(number, values)

    def prune(self, number: int) -> None:
        """Record that the trial was stopped early: its last value counts as one of a low fidelity."""
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Record that the trial failed, so that the sampler does not wait for it."""
        self._study.tell(number, state=TrialState.FAIL)

    def show_race(self, proposals: Sequence[Trial]) -> None:
        """Rebuild the second study if there is news since the race began: Optuna changes no trial that has ended.

        Each proposal has the number that it has in the first study.
        """
        space = self._space
        kimg = space.budget.rungs_kimg[-1]
        counted = {trial.number: records.unbiased_repeats(trial, space, kimg) for trial in proposals}
        shown = [(trial.status, len(counted[trial.number])) for trial in proposals]
        if not any(counted.values()) or shown == self._shown:
            return

        if RACE_STUDY_NAME in optuna.get_all_study_names(self._storage):
            optuna.delete_study(study_name=RACE_STUDY_NAME, storage=self._storage)
        study = self._create(RACE_STUDY_NAME)
        study.set_user_attr("about", RACE_STUDY_ABOUT)
        verdict = judge([trial for trial in proposals if counted[trial.number]], space)
        study.add_trials([raced(trial, space, counted[trial.number], verdict) for trial in proposals])
        self._shown = shown

    def _trial(self, number: int) -> optuna.trial.Trial:
        return optuna.trial.Trial(self._study, self.trials()[number]._trial_id)


def in_memory(trials: Sequence[Trial], space: Space) -> optuna.Study:
    """Return a study of these trials that is not written to disk; what is paused counts as pruned."""
    study = optuna.create_study(directions=list(space.objectives.values()))
    study.add_trials([frozen(trial, space, paused=TrialState.PRUNED) for trial in trials])
    return study


def frozen(trial: Trial, space: Space, paused: TrialState = TrialState.RUNNING) -> FrozenTrial:
    """Return a trial as Optuna has it: its proposal, the scores of its first repeat, and its state.

    Optuna knows no paused trials: they have the state `paused`. Its storage never opens a trial again.
    """
    params = {path: searched_values.to_optuna(space.search[path], value) for path, value in trial.params.items()}
    proposal = FixedTrial(params)
    for path in params:
        searched_values.suggest(proposal, path, space.search[path])

    state = paused if trial.status == "paused" else STATES[trial.status]
    values = constraints = None
    if state is TrialState.COMPLETE:
        result = _result(space, trial.repeats[0].last) if trial.repeats else None
        if result:
            values, constraints = result
        else:
            state = TrialState.FAIL

    return create_trial(
        state=state,
        params=params,
        distributions=proposal.distributions,
        values=values,
        constraints=constraints,
        intermediate_values=_at_rungs(trial.repeats[0], space) if trial.repeats else {},
    )


def raced(trial: Trial, space: Space, counted: Sequence[Repeat], verdict: Verdict | None) -> FrozenTrial:
    """Return a trial as the second study has it: with its means over `counted`, its fresh seeds.

    A trial without any has no value, since that of the search flatters it: if it was trained to the end, it is pruned.
    """
    known = frozen(trial, space, paused=TrialState.PRUNED)
    state = TrialState.PRUNED if known.state is TrialState.COMPLETE else known.state
    values = constraints = None
    summaries: dict[str, Summary] = {}
    if counted:
        kimg = space.budget.rungs_kimg[-1]
        own = {name: records.finite_scores(counted, name, kimg) for name in (*space.objectives, *space.constraints)}
        summaries = {
            name: posterior.of_scores([own[name]], direction).summaries[0]
            for name, direction in space.objectives.items()
        }
        if verdict:
            summaries = verdict.summaries.get(trial.number, summaries)
        state = TrialState.COMPLETE
        values = [summaries[name].mean for name in space.objectives]
        means = {name: statistics.fmean(own[name]) if own[name] else math.nan for name in space.constraints}
        constraints = {name: min(violation(space, name, mean), 1e30) for name, mean in means.items()}
    return create_trial(
        state=state,
        params=known.params,
        distributions=known.distributions,
        values=values,
        constraints=constraints,
        intermediate_values=known.intermediate_values,
        user_attrs=_attributes(trial, space, summaries, verdict),
    )


def _attributes(
    trial: Trial, space: Space, summaries: Mapping[str, Summary], verdict: Verdict | None
) -> dict[str, Any]:
    """Return what else is known of a trial, by name; what is not known is left out."""
    last = trial.repeats[0].last if trial.repeats else None
    numbers: dict[str, float] = {"device-hours": sum(repeat.device_hours for repeat in trial.repeats)}
    if last:
        numbers["kimg"] = last.kimg
        numbers["parameters"] = last.value("parameters")
        numbers |= {f"{name} of the search": last.value(name) for name in space.objectives if not space.arms}
    for name, summary in summaries.items():
        numbers |= {"seeds": summary.n, f"{name} from": summary.low, f"{name} to": summary.high}
    if verdict and trial.number in verdict.best:
        numbers["probability to be the best"] = verdict.best[trial.number]
        numbers["probability to be within 2% of the best"] = verdict.near[trial.number]
    known = {name: number for name, number in numbers.items() if math.isfinite(number)}
    return {"status": trial.status, "recommended": bool(verdict and verdict.recommended == trial.number), **known}


def _at_rungs(repeat: Repeat, space: Space) -> dict[int, float]:
    """Return the objective by images seen; Optuna keeps none where there are several objectives (optuna#3450)."""
    if len(space.objectives) > 1:
        return {}
    name = next(iter(space.objectives))
    values = {round(rung * 1000): row.value(name) for rung, row in repeat.rungs.items()}
    return {images: value for images, value in values.items() if math.isfinite(value)}


def _agree(known: FrozenTrial, expected: FrozenTrial) -> bool:
    """Whether a trial of the study equals that of the records, in what matters to a sampler."""
    names = ["state", "params", "distributions"]
    if expected.state is TrialState.PRUNED:
        names.append("intermediate_values")
    if expected.state is TrialState.COMPLETE:
        names += ["values", "constraints"]
    return all(getattr(known, name) == getattr(expected, name) for name in names)


def _result(space: Space, row: MetricsRow | None) -> tuple[list[float], dict[str, float]] | None:
    """Return the objectives, and finite excesses of the constraints; None if not all objectives are finite."""
    if row is None:
        return None
    values = [row.value(name) for name in space.objectives]
    if not all(math.isfinite(value) for value in values):
        return None
    return values, {name: min(excess, 1e30) for name, excess in excesses(space, row).items()}


def _repair(journal: Path) -> None:
    """Remove what a kill during an append leaves: Optuna's lock, and a partial line.

    The driver holds the lock of the sweep, so no other process is writing.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(journal, end)
