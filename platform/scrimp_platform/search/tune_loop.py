"""Ray Tune's side of the sweep: a Searcher that proposes repeats and a scheduler that stops them, both by the ledger.

Ray's own OptunaSearch, ASHA and Tuner.restore are not used: they tell a stopped trial as complete, leave one
without a number running for ever, know no constraints and no repeats, and lose or repeat work after a kill. Here
Tune places and watches processes; every decision is the ledger's, which has it on disk first.
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
from scrimp_platform.search.records import Repeat
from scrimp_trainers.common import heartbeat

# What a Tune function reports besides a rung's scores (see worker.py).
FAILURE, FINAL, NOTE, NODE, WORKING = "failure", "final", "note", "node", "working"

Decision = TypeVar("Decision")


class RepeatSearcher(Searcher):
    """Proposes the ledger's next repeat whenever a place is free.

    Parameters
    ----------
    ledger : Ledger
        Decides.
    places : Callable
        Returns how many repeats may be under way or waiting for their resources now.
    fit_nodes : Callable
        Returns the ids of the nodes that may train what is handed out now.
    blame : Callable
        Told the id of a node on which a repeat has failed that is tried again.
    fail : Callable
        Called with why the ledger cannot write what it decides.
    """

    def __init__(
        self,
        ledger: Ledger,
        places: Callable[[], int],
        fit_nodes: Callable[[], list[str]],
        blame: Callable[[str], object],
        fail: Callable[[OSError], object],
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._places = places
        self._fit_nodes = fit_nodes
        self._blame = blame
        self._fail = fail
        self._live: dict[str, Repeat] = {}
        self._tune: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """Hand out a repeat; none while there is no place or no decision, FINISHED once nothing is left to do."""
        self._give_up_lost()
        if len(self._live) >= self._places():
            return None
        repeat = self._decide(self._ledger.propose, None)
        if repeat is None:
            return None if self._live else Searcher.FINISHED
        self._live[trial_id] = repeat
        return {"trial": repeat.trial, "repeat": repeat.repeat, "fit_nodes": self._fit_nodes()}

    def watch(self, trial: Any) -> None:
        """Take Tune's side of a repeat that was handed out."""
        self._tune[trial.trial_id] = trial

    def withdraw(self, controller: Any) -> None:
        """Take back what Tune has no process for yet, once the fit nodes are others; it is handed out again.

        What works on a GPU has its process long before Ray Train has its GPUs: see `_judge`.
        """
        for trial in [trial for trial in self._tune.values() if self._outdated(trial)]:
            if trial.status == Trial.PENDING and trial.temporary_state.ray_actor is None:
                self._take_back(trial)
                _stop_waiting(controller, trial)

    def _outdated(self, trial: Any) -> bool:
        """Whether a repeat was handed out for other nodes than those that are fit now.

        Any change counts, which is simple and safe: a node that has joined may have a free place, one that rests is to
        get nothing, and which of the others will have a place again, nobody knows. No work is lost by it.
        """
        return trial.config["fit_nodes"] != self._fit_nodes()

    def _take_back(self, trial: Any) -> None:
        del self._tune[trial.trial_id]
        repeat = self._live.pop(trial.trial_id)
        self._decide(partial(self._ledger.take_back, repeat), None)

    def _give_up_lost(self) -> None:
        # A process that Tune kept and that would not take its next repeat: Tune fails that one and tells nobody.
        for trial_id in [trial_id for trial_id, trial in self._tune.items() if trial.is_finished()]:
            self.on_trial_complete(trial_id, error=True)

    def judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take what a repeat reported; false if it is to stop."""
        return self._decide(lambda: self._judge(trial_id, result), False)

    def _decide(self, decide: Callable[[], Decision], otherwise: Decision) -> Decision:
        """Let the ledger decide; where it cannot write, the sweep ends. Tune would log a traceback and carry on."""
        try:
            return decide()
        except OSError as error:
            self._fail(error)
            return otherwise

    def _judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        if NOTE in result:
            self._ledger.note(self._live[trial_id], result[NOTE])
        if WORKING in result:
            self._ledger.clock(self._live[trial_id], result[WORKING])
            if not result[WORKING] and self._outdated(self._tune[trial_id]):
                self._take_back(self._tune[trial_id])
                return False
        if "rung" in result:
            return self._ledger.report(self._live[trial_id], result)
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the ledger how a repeat ended; of one that was withdrawn there is nothing to tell."""
        repeat = self._live.pop(trial_id, None)
        if repeat is None:
            return
        self._tune.pop(trial_id, None)
        result = result or {}
        failure = result.get(FAILURE, "")
        if error:
            files = self._ledger.folder.repeat(repeat.trial, repeat.repeat)
            died = f"its process died, or Ray ended it to free memory; see {files.path}"
            failure = heartbeat.timeout_message(files.stacks) or died
        self._decide(lambda: self._ledger.finish(repeat, failure, final=bool(result.get(FINAL))), None)
        if failure and not result.get(FINAL) and result.get(NODE):
            self._blame(result[NODE])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resumed sweep starts a new Tune experiment from the ledger."""


def _stop_waiting(controller: Any, trial: Any) -> None:
    """Stop a trial for which Tune has no process yet.

    Tune by itself would count on the process that it had asked for, and keep another one for it, and with that its
    place, until the sweep ends (ray 2.60, `_staged_trials`). Its `stop_trial` prints a line besides, and
    `request_stop_trial` does nothing.
    """
    tune_itself = controller._tune_controller
    if trial in tune_itself._staged_trials:
        tune_itself._unstage_trial_with_resources(trial)
    tune_itself._schedule_trial_stop(trial)


class ActorManager(RayActorManager):
    """Tune's, with two differences: when a machine runs out of memory, and after Ctrl-C.

    A process that Ray ended because its machine ran out of memory has died like any other; Tune by itself ends the
    whole sweep then (ray 2.60, `RayActorManager._actor_task_failed`). After Ctrl-C processes are killed at once; Tune
    by itself waits 10 s for each until it reports, which it does at its next rung, and kills it then.
    """

    def remove_actor(self, tracked_actor: Any, kill: bool = False, stop_future: Any = None) -> bool:
        """Stop a process."""
        return super().remove_actor(tracked_actor, kill or interrupt.requested() is not None, stop_future)

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


tune_controller.RayActorManager = ActorManager  # Tune has no other way to be given one
# It prints a traceback where its own records find no room on the disk. Nobody reads them: the ledger has everything.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)


class RungScheduler(FIFOScheduler):
    """Stops a repeat where the ledger says so, and where it waits for the wrong nodes."""

    def __init__(self, searcher: RepeatSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let the ledger judge what a repeat reported."""
        go_on = self._searcher.judge(trial.trial_id, result)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Choose as Tune does, from what still may go to the nodes for which it was handed out.

        Tune asks this at every step; for another repeat it asks only while none waits.
        """
        self._searcher.withdraw(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let the searcher see what becomes of a repeat."""
        self._searcher.watch(trial)


class Limits(Stopper):
    """Ends the sweep when a limit of its budget is reached; what was running can go on another time."""

    def __init__(self, ledger: Ledger) -> None:
        hours = ledger.space.budget.max_hours
        self._ledger = ledger
        self._deadline = time.monotonic() + hours * 3600 if hours else None
        self._limit = ""
        self.failure: OSError | None = None

    def fail(self, error: OSError) -> None:
        """End the sweep because its ledger cannot write."""
        self.failure = error

    @property
    def reached(self) -> str:
        """Why the sweep is to end; empty while it goes on."""
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


def run(
    ledger: Ledger,
    trainable: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    places: Callable[[], int],
    limits: Limits,
    fit_nodes: Callable[[], list[str]] = list,
    blame: Callable[[str], object] = str,
    reuse: bool = True,
) -> None:
    """Train repeats until the ledger has no more, or a limit is reached.

    Parameters
    ----------
    trainable : Callable
        The Tune function that trains one repeat.
    config : dict
        What every repeat is told besides its numbers and the nodes that may train it.
    places : Callable
        Returns how many repeats may be under way at once now.
    limits : Limits
        When to end early.
    fit_nodes : Callable, optional
        Returns the ids of the nodes that may train now; by default any may.
    blame : Callable, optional
        Told the id of a node on which a repeat has failed that is tried again.
    reuse : bool
        Whether Tune keeps a process for its next repeat, which needs a function that ends as soon as it is stopped.

    Raises
    ------
    OSError
        If the ledger cannot write.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # a sweep has its own
    searcher = RepeatSearcher(ledger, places, fit_nodes, blame, limits.fail)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _place),
        param_space=config,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=RungScheduler(searcher), num_samples=-1, reuse_actors=reuse
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


def _place(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    labels = cluster.labels_of(config["fit_nodes"])
    return tune.PlacementGroupFactory([{"CPU": 1}], bundle_label_selector=[labels] if labels else None)
