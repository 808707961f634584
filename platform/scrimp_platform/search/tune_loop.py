"""Ray Tune's side of the sweep: a Searcher that proposes repeats and a scheduler that stops them, as the ledger says.

Ray's own OptunaSearch, ASHA and Tuner.restore are not used: they report a stopped trial as complete, leave one with
a nan running for ever, know neither constraints nor repeats, and lose or repeat work after a kill. Here Tune places
and watches processes; the ledger makes every decision, and has it on disk first.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from scrimp_platform import cluster, interrupt
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.records import Preparation, Repeat
from scrimp_platform.worker import COST, FAILURE, HOST, NODE, NON_RETRYABLE, NOTE, ROW, WORKING
from scrimp_trainers.common import heartbeat

Decision = TypeVar("Decision")


class RepeatSearcher(Searcher):
    """Proposes the ledger's next repeat whenever a place is free.

    Parameters
    ----------
    ledger : Ledger
        Makes the decisions.
    places : Callable
        Returns how many repeats may be running or waiting for their resources now.
    fit_nodes : Callable
        Returns the ids of the nodes on which a repeat may be placed now.
    record_failure : Callable
        Called with the id of a node on which a repeat has failed that may be retried.
    fail : Callable
        Called with the error when the ledger cannot write a decision.
    """

    def __init__(
        self,
        ledger: Ledger,
        places: Callable[[], int],
        fit_nodes: Callable[[], list[str]],
        record_failure: Callable[[str], object],
        fail: Callable[[OSError], object],
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._places = places
        self._fit_nodes = fit_nodes
        self._record_failure = record_failure
        self._fail = fail
        self._repeats: dict[str, Repeat | Preparation] = {}
        self._ending: set[str] = set()
        self._working: set[str] = set()
        self._tune_trials: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """Hand out a repeat; None while there is no place or no decision, FINISHED once nothing is left to do."""
        self._report_lost_processes()
        if len(self._repeats) + len(self._ending) >= self._places():
            return None

        repeat = self._decide(self._ledger.propose, None)
        if repeat is None:
            return None if self._repeats or self._ending else Searcher.FINISHED
        self._repeats[trial_id] = repeat
        if isinstance(repeat, Preparation):
            numbers = {"trial": -1, "repeat": -1, "preparation": repeat.name}
        else:
            numbers = {"trial": repeat.trial, "repeat": repeat.repeat, "preparation": ""}
        return numbers | {"fit_nodes": self._fit_nodes()}

    def watch(self, trial: Any) -> None:
        """Remember the Tune trial of a repeat that was handed out."""
        self._tune_trials[trial.trial_id] = trial

    def withdraw_outdated(self, controller: Any) -> None:
        """Withdraw repeats without a process if the healthy nodes have changed; they are handed out again.

        A repeat on GPUs has its process long before Ray Train has its GPUs: it is withdrawn when it next reports.
        """
        outdated = [trial for trial in self._tune_trials.values() if self._outdated(trial)]
        for trial in outdated:
            if trial.status == Trial.PENDING and trial.temporary_state.ray_actor is None:
                self._withdraw(trial)
                _unstage(controller, trial)

    def _outdated(self, trial: Any) -> bool:
        """Whether the healthy nodes have changed since a repeat was handed out.

        Any change counts, which is simple and safe: a node that has joined may have a free place, a suspended one must
        get no repeat, and nobody knows which of the others will have a free place first. No work is lost.
        """
        return trial.config["fit_nodes"] != self._fit_nodes()

    def step(self, work: Callable[[], object]) -> None:
        """Do what is done at every step of Tune, between two decisions."""
        self._decide(work, None)

    def end_stopped(self, controller: Any) -> None:
        """End the processes of repeats that were stopped while they ran.

        One that trains is killed, as it may report only at a distant rung. One that still waits for its GPUs ends when
        it next reports: if it were killed, its request for them would stay.
        """
        stopped = [trial_id for trial_id, work in self._repeats.items() if not work.open]
        for trial_id in stopped:
            trial = self._tune_trials[trial_id]
            del self._repeats[trial_id]
            if trial.status == Trial.PENDING and trial.temporary_state.ray_actor is None:
                del self._tune_trials[trial_id]
                _unstage(controller, trial)
            elif trial_id in self._working:
                del self._tune_trials[trial_id]
                _kill(controller, trial)
            else:
                self._ending.add(trial_id)

    def _withdraw(self, trial: Any) -> None:
        del self._tune_trials[trial.trial_id]
        repeat = self._repeats.pop(trial.trial_id)
        self._decide(partial(self._ledger.withdraw, repeat), None)

    def _report_lost_processes(self) -> None:
        # If a process that Tune reuses does not take its next repeat, Tune marks that as failed without a callback.
        lost = [trial_id for trial_id, trial in self._tune_trials.items() if trial.is_finished()]
        for trial_id in lost:
            self.on_trial_complete(trial_id, error=True)

    def handle_result(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Pass to the ledger what a repeat reported; return whether the repeat continues."""
        if result.get(WORKING):
            self._working.add(trial_id)
        elif WORKING in result:
            self._working.discard(trial_id)
        return self._decide(lambda: self._handle(trial_id, result), False)

    def _handle(self, trial_id: str, result: dict[str, Any]) -> bool:
        repeat = self._repeats.get(trial_id)
        if repeat is None:  # stopped
            return False
        if NOTE in result:
            self._ledger.note(repeat, result[NOTE])
        if WORKING in result:
            self._ledger.clock(repeat, result[WORKING], result.get(HOST, ""))
            if not result[WORKING] and self._outdated(self._tune_trials[trial_id]):
                self._withdraw(self._tune_trials[trial_id])
                return False
        if isinstance(repeat, Preparation):
            if COST in result:
                self._ledger.charge(repeat, *result[COST])
        elif ROW in result and not self._ledger.report(repeat, result[ROW]):
            # Paused: the repeat may continue as another Tune trial, so nothing that comes from this one concerns it.
            del self._repeats[trial_id]
            self._ending.add(trial_id)
            return False
        return True

    def _decide(self, decide: Callable[[], Decision], otherwise: Decision) -> Decision:
        """Let the ledger decide; if it cannot write, end the sweep. Tune would log a traceback and carry on."""
        try:
            return decide()
        except OSError as error:
            self._fail(error)
            return otherwise

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the ledger how a repeat ended, unless it was withdrawn or paused."""
        self._ending.discard(trial_id)
        self._tune_trials.pop(trial_id, None)
        repeat = self._repeats.pop(trial_id, None)
        if repeat is None:
            return

        result = result or {}
        failure = result.get(FAILURE, "")
        final = bool(result.get(NON_RETRYABLE))
        if error:
            files = self._ledger.files(repeat)
            died = f"its process died, or Ray killed it to free memory; see {files.path}"
            failure = heartbeat.timeout_message(files.stacks) or died
        self._decide(lambda: self._ledger.finish(repeat, failure, final=final), None)
        if failure and not final and result.get(NODE):
            self._record_failure(result[NODE])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resumed sweep starts a new Tune experiment from the ledger."""


def _unstage(controller: Any, trial: Any) -> None:
    """Stop a trial for which Tune has no process yet.

    Otherwise Tune would still expect the process that it had requested, and reserve another one and its place until
    the sweep ends (ray 2.60, `_staged_trials`). Its `stop_trial` also prints a line, and `request_stop_trial` does
    nothing.
    """
    inner = controller._tune_controller
    if trial in inner._staged_trials:
        inner._unstage_trial_with_resources(trial)
    inner._schedule_trial_stop(trial)


def _kill(controller: Any, trial: Any) -> None:
    """Kill the process of a trial; Tune would keep it for the next repeat, which it does not take while it trains."""
    inner = controller._tune_controller
    inner._actor_manager.doomed.add(inner._trial_to_actor[trial])
    inner._schedule_trial_stop(trial, exception=RuntimeError("stopped by its user"))
    inner._set_trial_status(trial, Trial.TERMINATED)  # it has not failed


class ActorManager(RayActorManager):
    """Tune's actor manager, with two differences: when a machine runs out of memory, and when a process is to end.

    A process that Ray kills because its machine ran out of memory counts like any other death; Tune would end the
    whole sweep (ray 2.60, `RayActorManager._actor_task_failed`). After Ctrl-C, and if they are `doomed`, processes are
    killed at once; Tune would wait 10 s for each to report, which it does at its next rung, and kill it then.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.doomed: set[Any] = set()

    def remove_actor(self, tracked_actor: Any, kill: bool = False, stop_future: Any = None) -> bool:
        """Stop a process."""
        at_once = kill or tracked_actor in self.doomed or interrupt.requested() is not None
        return super().remove_actor(tracked_actor, at_once, stop_future)

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


tune_controller.RayActorManager = ActorManager  # Tune has no setting for it
# Tune prints a traceback if its own records do not fit on the disk. They are not needed: the ledger has everything.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
# Nor is the list, at the end, of repeats whose processes died: the ledger has said a line for each.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)


class RungScheduler(FIFOScheduler):
    """Stops a repeat if the ledger decides so, or if it waits for nodes that are no longer the fit ones."""

    def __init__(self, searcher: RepeatSearcher, each_step: Callable[[], object]) -> None:
        super().__init__()
        self._searcher = searcher
        self._each_step = each_step

    def __getstate__(self) -> dict[str, Any]:
        """Keep what is done at each step out of Tune's own records, which are never restored."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass a repeat's report to the ledger, which decides whether the repeat continues."""
        continues = self._searcher.handle_result(trial.trial_id, result)
        return TrialScheduler.CONTINUE if continues else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Choose as Tune does, after outdated repeats have been withdrawn.

        Tune calls this at every step, but asks for another repeat only while none is waiting.
        """
        self._searcher.step(self._each_step)
        self._searcher.end_stopped(tune_controller)
        self._searcher.withdraw_outdated(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Show the searcher the Tune trial of a repeat."""
        self._searcher.watch(trial)


class Limits(Stopper):
    """Ends the sweep when a limit of its budget is reached; running repeats can be resumed."""

    def __init__(self, ledger: Ledger) -> None:
        hours = ledger.space.budget.max_hours
        self._ledger = ledger
        self._deadline = time.monotonic() + hours * 3600 if hours else None
        self._limit = ""
        self.failure: OSError | None = None

    def end_after_error(self, error: OSError) -> None:
        """End the sweep because its ledger cannot write."""
        self.failure = error

    def end(self, reason: str) -> None:
        """End the sweep for this reason."""
        self._limit = reason

    @property
    def reached(self) -> str:
        """Why the sweep is to end; empty while it continues."""
        return "interrupted" if interrupt.requested() else self._limit

    def __getstate__(self) -> dict[str, Any]:
        """Keep the ledger out of Tune's own records, which are never restored."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single repeat."""
        return False

    def stop_all(self) -> bool:
        """Whether a limit has been reached; `reached` says which."""
        if not self.reached:
            self._limit = self._ledger.exhausted()
            if self._deadline and time.monotonic() > self._deadline:
                self._limit = f"max_hours {self._ledger.space.budget.max_hours:g} reached"
        return bool(self.reached or self.failure)


def run_repeats(
    ledger: Ledger,
    trainable: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    places: Callable[[], int],
    limits: Limits,
    fit_nodes: Callable[[], list[str]] = list,
    record_failure: Callable[[str], object] = str,
    reuse: bool = True,
    each_step: Callable[[], object] = lambda: None,
) -> None:
    """Train repeats until the ledger has no more, or a limit is reached.

    Parameters
    ----------
    trainable : Callable
        The Tune function that trains one repeat.
    config : dict
        The configuration of every repeat, without its numbers and the nodes that may train it.
    places : Callable
        Returns how many repeats may be running at once now.
    limits : Limits
        When to end early.
    fit_nodes : Callable, optional
        Returns the ids of the nodes that may train now; by default any may.
    record_failure : Callable, optional
        Called with the id of a node on which a repeat has failed that may be retried.
    reuse : bool
        Whether Tune reuses a process for the next repeat, for which the function must end as soon as it is stopped.
    each_step : Callable, optional
        Called several times a second, in the thread that makes the decisions.

    Raises
    ------
    OSError
        If the ledger cannot write.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # a sweep has its own
    searcher = RepeatSearcher(ledger, places, fit_nodes, record_failure, limits.end_after_error)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources),
        param_space=config,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=RungScheduler(searcher, each_step), num_samples=-1, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns()}",
            storage_path=str(ledger.folder.ray),
            stop=limits,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
    if limits.failure:
        raise limits.failure


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    labels = cluster.labels_of(config["fit_nodes"])
    return tune.PlacementGroupFactory([{"CPU": 1}], bundle_label_selector=[labels] if labels else None)
