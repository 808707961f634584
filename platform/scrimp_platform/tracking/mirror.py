"""MLflow as a mirror of the sweep's folder, with one writer.

Everything that MLflow shows is on disk first, so the folder is the queue: whatever the server has not heard yet is
found there later, by this process or by the next. A thread does it, and the sweep waits for it only at its end.
"""

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scrimp_platform import store
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records, stats
from scrimp_platform.search.records import Records, Repeat, Trial
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_platform.tracking.mlflow_runs import PARENT, Run, Runs
from scrimp_platform.tracking.mlflow_server import Server
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError

EVERY = 5.0  # seconds between two looks at the folder
SHOW_INTERVAL_S = 10.0  # seconds between two lines about how far the end is
AWAY = 60.0  # seconds between two attempts at a server that stays away, at most
CRASHED = "crashed"  # the outcome of a sweep that could not say any

STATUS = {
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "complete": "FINISHED",
    "stopped": "KILLED",
    "pruned": "KILLED",
    "failed": "FAILED",
}


class Mirror:
    """Shows a sweep's folder in MLflow: the sweep as a run, its trials below it, their repeats below them."""

    def __init__(self, folder: SweepFolder, uri: str, progress: Callable[[int, int], object] = lambda *_: None) -> None:
        self._folder = folder
        self._progress = progress  # called with how many runs are up to date, of how many
        self.uri = uri
        self._runs: Runs | None = None
        self._known: Records | None = None

    @property
    def link(self) -> str:
        """Where a person looks at it; empty before the server was reached."""
        return mlflow_server.ui_link(self.uri, self._runs.experiment) if self._runs else ""

    @property
    def refused(self) -> list[str]:
        """What the server has refused as invalid, and never gets."""
        return self._runs.refused if self._runs else []

    def sync(self, outcome: str = "") -> None:
        """Send what the server does not have yet; with its outcome once the sweep has ended.

        Whatever the client raises is passed on, and the next call goes on from what arrived.
        """
        sweep = store.read_json(self._folder.sweep)
        if sweep is None:
            return
        try:
            if self._runs is None:
                self._runs = Runs(self.uri, sweep["dataset"]["name"], sweep["id"], self._folder.tracking)
            try:
                self._send(self._runs, sweep, outcome)
            finally:
                self._runs.save()
        except Exception:
            # What the server has is uncertain now; it is asked again.
            self._runs = None
            raise

    def _send(self, runs: Runs, sweep: dict[str, Any], outcome: str) -> None:
        parent = runs.get("", sweep["name"], sweep["started"])
        space = Space.model_validate(sweep["space"])
        self._known = records.read_records(self._folder, self._known)
        trials = [trial for trial in self._known.trials if trial.status != "damaged"]
        over = bool(outcome)
        if not over:
            self._tell_sweep(runs, parent, sweep, space, "RUNNING")
        sent, count = 0, sum(1 + len(trial.repeats) for trial in trials)
        for trial in trials:
            child = runs.get(str(trial.number), f"trial {trial.number}", _started(trial, sweep["started"]))
            for repeat in (repeat for repeat in trial.repeats if repeat.status != "damaged"):
                self._send_repeat(runs, child, trial, repeat, over)
                self._progress(sent := sent + 1, count)
            self._tell_trial(runs, parent, child, trial, space, over)
            self._progress(sent := sent + 1, count)
        for file in (self._folder.sweep, self._folder.leaderboard, self._folder.best_recipe, self._folder.report):
            runs.put(parent, file)
        if over:
            self._send_winner(runs, parent, self._known.trials, space)
            status = {"interrupted": "KILLED", CRASHED: "FAILED"}.get(outcome, "FINISHED")
            self._tell_sweep(runs, parent, sweep, space, status, outcome)

    def _tell_sweep(
        self, runs: Runs, run: Run, sweep: dict[str, Any], space: Space, status: str, outcome: str = ""
    ) -> None:
        params = {"recipe": space.recipe, "seed": sweep["seed"], "dataset": sweep["dataset"]["content_hash"]}
        params |= {f"search.{path}": span.model_dump(exclude_defaults=True) for path, span in space.search.items()}
        params |= {f"objective.{name}": direction for name, direction in space.objectives.items()}
        params |= {f"budget.{name}": value for name, value in space.budget}
        tags = {
            "scrimp.folder": self._folder.path,
            "scrimp.outcome": outcome,
            "mlflow.user": os.environ.get("USER", ""),
        }
        runs.tell(run, status, params=params, tags=tags)

    def _tell_trial(self, runs: Runs, parent: Run, run: Run, trial: Trial, space: Space, over: bool) -> None:
        rung = space.budget.rungs_kimg[-1]
        metrics, count = {}, sum(repeat.status == "finished" for repeat in trial.repeats)
        fresh = records.unbiased_repeats(trial, space, rung)
        for name in [*space.objectives, *space.constraints]:
            summary = stats.summarize(records.finite_scores(fresh, name, rung))
            values = {"mean": summary.mean, "ci_low": summary.low, "ci_high": summary.high}
            judged = [repeat for repeat in trial.finished(rung) if repeat not in fresh]
            values["chosen_at"] = stats.summarize(records.finite_scores(judged, name, rung)).mean
            metrics |= {f"{name}_{part}": value for part, value in values.items() if math.isfinite(value)}
        is_open = any(repeat.open for repeat in trial.repeats)
        status = ("SCHEDULED" if over else "RUNNING") if is_open else STATUS[trial.status]
        ended = max((repeat.ended or 0 for repeat in trial.repeats), default=0)
        metrics["repeats"] = count
        runs.tell(run, status, ended, params=trial.params, tags={PARENT: parent.id}, metrics=metrics, step=count)

    def _send_repeat(self, runs: Runs, parent: Run, trial: Trial, repeat: Repeat, over: bool) -> None:
        files = self._folder.repeat(repeat.trial, repeat.repeat)
        run = runs.get(files.label, f"repeat {files.label}", repeat.started or time.time())
        if not repeat.open and run.status == STATUS[repeat.status] and run.tags.get(PARENT) == parent.id:
            return  # The status is sent last, so everything has been.
        runs.draw(run, metrics_log.read(files.metrics))
        for grid in sorted(files.samples.glob("*.png"), key=lambda path: float(path.stem)):
            runs.show(run, grid, "samples", int(float(grid.stem)))
        for file in (files.recipe, files.neighbours_png, files.error, *files.prepared):
            runs.put(run, file)
        runs.put(run, files.model / "README.md", "model")
        params = {"seed": repeat.seed, "phase": repeat.phase, **trial.params}
        tags = {"scrimp.folder": files.path, "scrimp.attempt": repeat.attempt, "scrimp.cause": repeat.cause}
        if repeat.status == "finished":
            tags |= _checkpoint(files)
        status = "waiting" if over and repeat.open else repeat.status
        runs.tell(run, STATUS[status], repeat.ended, params=params, tags={PARENT: parent.id, **tags})

    def _send_winner(self, runs: Runs, parent: Run, trials: list[Trial], space: Space) -> None:
        if model := winner(self._folder, trials, space):
            for file in sorted(path for path in model.rglob("*") if path.is_file()):
                runs.put(parent, file, str(file.parent.relative_to(model.parent)))


class Tracker:
    """The thread that keeps a mirror up to date while a sweep runs.

    Parameters
    ----------
    folder, storage
        The sweep, and where the embedded server keeps its files.
    uri : str or None
        Another server's address; none for the embedded one.
    say
        Called with each line that a person should read.
    every : float
        Seconds between two looks at the folder.

    Raises
    ------
    UserError
        If `uri` is not an HTTP address.
    """

    def __init__(
        self,
        folder: SweepFolder,
        storage: Storage,
        uri: str | None,
        say: Callable[[str], object] = print,
        every: float = EVERY,
    ) -> None:
        self._folder, self._storage = folder, storage
        self._uri = None if uri is None else mlflow_server.check_address(uri)
        self._say, self._every = say, every
        self._server: Server | None = None
        self._hand = threading.Lock()  # on the server: held to start it, and to stop it
        self._stopped = False
        self._mirror: Mirror | None = None
        self._link = ""
        self._refused = 0
        self._sent: tuple[int, int] | None = None
        self._failures, self._cause = 0, "it is slow"
        self._began = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start the thread, and in it the embedded server if that is wanted; returns at once."""
        self._thread.start()

    def stop(self, patience: float, most: float = math.inf) -> None:
        """Send the rest, while more of it arrives every `patience` seconds, and for at most `most` seconds in all.

        Ctrl-C ends that, too. What is left is sent by `scrimp sync`, or when the sweep's command runs again.
        """
        self._over.set()
        try:
            self._wait(patience, most)
        except KeyboardInterrupt:
            self._cause = "interrupted"
        if self._thread.is_alive() or self._failures:
            self._say(f"MLflow is not up to date ({self._cause}); `scrimp sync {self._folder.path}` sends the rest")
        say, self._say = self._say, lambda _: None
        with self._hand:
            self._stopped = True
            if self._server:
                try:
                    self._server.stop()
                except UserError as error:
                    say(str(error))

    def _wait(self, patience: float, most: float) -> None:
        """Wait for the thread as long as it gets on; say now and then how far it is."""
        began = moved = shown = time.monotonic()
        before = self._sent
        while self._thread.is_alive() and time.monotonic() < min(moved + patience, began + most):
            self._thread.join(0.1)
            if self._sent != before:
                before = self._sent
                moved = time.monotonic()
            if self._sent and time.monotonic() > shown + SHOW_INTERVAL_S:
                shown = time.monotonic()
                sent, count = self._sent
                self._say(f"MLflow: {sent} of {count} runs are up to date; Ctrl-C leaves the rest for later")

    def _note_sent(self, sent: int, count: int) -> None:
        self._sent = (sent, count)

    def _follow(self) -> None:
        over, pause = False, 0.0
        while not over:
            over = self._over.wait(pause)
            began = time.monotonic()
            try:
                self._sync(self._outcome() if over else "")
            except Exception as error:
                self._failures += 1
                self._cause = self._explain(error)
                if self._failures == 2:  # one alone may be chance
                    self._say(f"MLflow: {self._cause}; the sweep goes on, and what MLflow misses arrives later")
                pause = min(AWAY, self._every * 2**self._failures)
                continue
            if self._failures > 1:
                self._say("MLflow is back, and has heard what it missed")
            self._failures = 0
            refused = self._mirror.refused if self._mirror else []
            for line in refused[self._refused :]:
                self._say(f"MLflow refuses a value, which stays out of it: {line}")
            self._refused = len(refused)
            # On a small machine the server needs the cores that train.
            pause = max(self._every, 3 * (time.monotonic() - began))

    def _sync(self, outcome: str) -> None:
        if not self._folder.sweep.exists():
            return  # The storage is gone; a server would be started in another one of its name.
        uri = self._uri or self._embedded()
        if self._mirror is None or self._mirror.uri != uri:
            self._mirror = Mirror(self._folder, uri, self._note_sent)
        self._mirror.sync(outcome)
        if self._link != self._mirror.link:
            self._link = self._mirror.link
            self._say(f"MLflow: {self._link}")

    def _embedded(self) -> str:
        try:
            return self._serve()
        except UserError:
            return self._serve()  # Ray ends a job's server along with the job, which has last words to send

    def _serve(self) -> str:
        with self._hand:
            if self._stopped:  # nobody is left to end another one
                raise UserError("the sweep has ended")
            server = self._server = self._server or mlflow_server.ensure(self._storage)
        try:
            server.wait()
        except UserError:
            with self._hand:
                server.stop()
                self._server = None
            raise
        server.log_in()
        return server.uri

    def _outcome(self) -> str:
        outcome = store.read_sound(self._folder.outcome)
        return outcome["reason"] if outcome and outcome["ended"] >= self._began else CRASHED

    def _explain(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        if self._mirror and not mlflow_server.answers(self._mirror.uri):
            return f"the server at {self._mirror.uri} does not answer"
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def sync(folder: SweepFolder, storage: Storage, uri: str | None, progress: Callable[[int, int], object]) -> str:
    """Send MLflow what it does not have of a sweep that does not run; return the address to look at.

    Raises
    ------
    UserError
        If the sweep runs, which sends by itself, or no server can be reached.
    """
    if holder := store.holder(folder.lock):
        raise UserError(f"{folder.path}: the sweep runs ({holder}) and sends MLflow everything by itself")
    outcome = store.read_sound(folder.outcome)
    with contextlib.ExitStack() as stack:
        if uri is None:
            mlflow_server.check_storage(storage.path)
            server = mlflow_server.ensure(storage)
            stack.callback(server.stop)
            server.wait()
            server.log_in()
            address = server.uri
        else:
            address = mlflow_server.check_address(uri)
        if not mlflow_server.answers(address):
            raise UserError(f"the MLflow server at {address} does not answer")
        mirror = Mirror(folder, address, progress)
        mirror.sync(outcome["reason"] if outcome else CRASHED)
    return mirror.link


def winner(folder: SweepFolder, trials: list[Trial], space: Space) -> Path | None:
    """Return the model of the winning trial's repeat that is nearest to its mean: the typical one, as in the report."""
    best = leaderboard.best(leaderboard.rank(trials, space))
    if best is None or any(map(leaderboard.lost, trials)):
        return None
    typical = leaderboard.typical(best, space)
    return folder.repeat(typical.trial, typical.repeat).model


def _checkpoint(files: RepeatFolder) -> dict[str, Any]:
    weights = files.checkpoint / "last" / "network.safetensors"
    if not weights.is_file():
        return {}
    with weights.open("rb") as file:
        return {
            "scrimp.checkpoint": weights,
            "scrimp.checkpoint_sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _started(trial: Trial, default: float) -> float:
    return min((repeat.started for repeat in trial.repeats if repeat.started), default=default)
