"""MLflow as a mirror of the sweep's folder, with one writer.

Everything that MLflow shows is on disk first, so the folder is the queue: what the server has not received yet can be
sent later from there, by this process or by the next one. A background thread sends it, and the sweep waits for that
thread only at its end.
"""

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from scrimp_platform import node_metrics, store, winner
from scrimp_platform.report import leaderboard
from scrimp_platform.report.ranking import TrialRow
from scrimp_platform.search import records
from scrimp_platform.search.records import Records, Repeat, Trial
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_platform.tracking import columns, mlflow_server, model_registry
from scrimp_platform.tracking.mlflow_runs import PARENT_TAG, Run, SweepRuns
from scrimp_platform.tracking.mlflow_server import Server
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError

SYNC_INTERVAL_S = 5.0
MAX_RETRY_INTERVAL_S = 60.0
PROGRESS_INTERVAL_S = 10.0
"""Time between two progress messages while the sweep's end waits for MLflow."""

CRASHED = "crashed"
"""The outcome of a sweep that could not record one."""

MLFLOW_STATUS = {
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "paused": "SCHEDULED",
    "finished": "FINISHED",
    "complete": "FINISHED",
    "stopped": "FINISHED",  # as planned: halving ended it
    "pruned": "FINISHED",
    "failed": "FAILED",
}
"""MLflow's run status for each status of a trial or repeat."""


class Mirror:
    """Shows a sweep's folder in MLflow: the sweep is a run, its trials are children, their repeats grandchildren.

    Parameters
    ----------
    folder
        The sweep.
    uri
        Address of the MLflow server.
    progress
        Called with the number of runs that are up to date, and their total.
    """

    def __init__(self, folder: SweepFolder, uri: str, progress: Callable[[int, int], object] = lambda *_: None) -> None:
        self._folder = folder
        self._progress = progress
        self.uri = uri
        self._runs: SweepRuns | None = None
        self._known: Records | None = None

    @property
    def link(self) -> str:
        """Address of the sweep in MLflow's UI; empty before the first connection."""
        return mlflow_server.ui_link(self.uri, self._runs.experiment) if self._runs else ""

    @property
    def refused(self) -> list[str]:
        """Error messages for the values that the server refused as invalid; they are not sent again."""
        return self._runs.refused if self._runs else []

    def sync(self, outcome: str = "") -> None:
        """Send what the server is missing. `outcome` says how the sweep has ended; it is empty while the sweep runs.

        Errors of MLflow's client propagate; the next call continues where this one stopped.
        """
        sweep = store.read_json(self._folder.description)
        if sweep is None:
            return
        try:
            if self._runs is None:
                self._runs = SweepRuns(self.uri, sweep["dataset"]["name"], sweep["id"], self._folder.tracking)
            try:
                self._send(self._runs, sweep, outcome)
            finally:
                self._runs.save_progress()
        except Exception:
            # What the server has is uncertain now, so the next call asks it again.
            self._runs = None
            raise

    def _send(self, runs: SweepRuns, sweep: dict[str, Any], outcome: str) -> None:
        has_ended = bool(outcome)
        sweep_run = runs.get_or_create("", sweep["name"], sweep["started"])
        space = Space.model_validate(sweep["space"])
        known = records.read_records(self._folder, self._known)
        self._known = known
        trials = [trial for trial in known.trials if trial.status != "damaged"]
        ranked = leaderboard.rank(trials, space)
        rows = {row.number: row for row in ranked}
        if not has_ended:
            self._update_sweep(runs, sweep_run, sweep, known, ranked, space, "RUNNING")

        # Trials and repeats.
        sent = 0
        total = sum(1 + len(trial.repeats) for trial in trials)
        for trial in trials:
            started = _started(trial, sweep["started"])
            trial_run = runs.get_or_create(str(trial.number), f"trial {trial.number}", started)
            for repeat in trial.repeats:
                if repeat.status == "damaged":
                    continue
                self._send_repeat(runs, trial_run, sweep["dataset"], space, trial, repeat, has_ended)
                sent += 1
                self._progress(sent, total)
            self._update_trial(runs, sweep_run, trial_run, rows[trial.number], space, has_ended)
            sent += 1
            self._progress(sent, total)

        # The sweep's files, and at its end the outcome and its models, which not every server can register.
        for file in (self._folder.description, self._folder.leaderboard, self._folder.best_recipe, self._folder.report):
            runs.send_file(sweep_run, file)
        if has_ended:
            status = {"interrupted": "KILLED", CRASHED: "FAILED"}.get(outcome, "FINISHED")
            self._update_sweep(runs, sweep_run, sweep, known, ranked, space, status, outcome)
            if status == "FINISHED":  # of others the leader may change
                self._register_models(runs, sweep_run, sweep, ranked, space)

    def _update_sweep(
        self,
        runs: SweepRuns,
        run: Run,
        sweep: dict[str, Any],
        known: Records,
        rows: list[TrialRow],
        space: Space,
        status: str,
        outcome: str = "",
    ) -> None:
        params: dict[str, Any] = {
            "recipe": space.recipe,
            "seed": sweep["seed"],
            "dataset": sweep["dataset"]["content_hash"],
        }
        for path, span in space.search.items():
            params[f"search.{path}"] = span.model_dump(exclude_defaults=True)
        for name, direction in space.objectives.items():
            params[f"objective.{name}"] = direction
        for name, value in space.budget:
            params[f"budget.{name}"] = value

        tags = {
            "scrimp.folder": self._folder.path,
            "scrimp.outcome": outcome,
            "mlflow.user": os.environ.get("USER", ""),
            "mlflow.source.name": sweep["space_name"],
            "mlflow.note.content": columns.description(rows, space),
        }
        runs.log_dataset(run, sweep["dataset"])
        metrics = columns.of_sweep(known, rows, space)
        gpu_minutes = round(60 * metrics["gpu_hours"])
        runs.send_points(run, columns.best_so_far(known, rows, space))
        runs.update(run, status, params=params, tags=tags, metrics=metrics, step=gpu_minutes)

    def _update_trial(
        self, runs: SweepRuns, sweep_run: Run, run: Run, row: TrialRow, space: Space, has_ended: bool
    ) -> None:
        trial = row.trial
        metrics = columns.of_trial(row, space)
        if any(repeat.open for repeat in trial.repeats):
            status = "SCHEDULED" if has_ended else "RUNNING"
        else:
            status = MLFLOW_STATUS[trial.status]
        ended = max((repeat.ended or 0 for repeat in trial.repeats), default=0)
        tags = {PARENT_TAG: sweep_run.id, "scrimp.status": row.status}
        if has_ended:  # no repeat changes them any more
            runs.send_curves(run, columns.mean_curves(row, space), ended)
        runs.update(run, status, ended, params=trial.params, tags=tags, metrics=metrics, step=int(metrics["repeats"]))

    def _send_repeat(
        self,
        runs: SweepRuns,
        trial_run: Run,
        dataset: dict[str, Any],
        space: Space,
        trial: Trial,
        repeat: Repeat,
        has_ended: bool,
    ) -> None:
        files = self._folder.repeat(repeat.trial, repeat.repeat)
        run = runs.get_or_create(files.label, f"repeat {files.label}", repeat.started or time.time())
        is_current = run.status == MLFLOW_STATUS[repeat.status] and run.tags.get(PARENT_TAG) == trial_run.id
        if not repeat.open and is_current:
            return  # the status is sent last, so everything else has arrived

        # The dataset, metrics and files.
        runs.log_dataset(run, dataset)
        runs.send_lines(run, [columns.with_names(line, space) for line in metrics_log.read_rows(files.metrics)])
        runs.send_system_metrics(run, node_metrics.read(files.system))
        grids = sorted(files.samples.glob("*.png"), key=lambda path: float(path.stem))
        if grids and int(float(grids[0].stem)) > 0:
            # MLflow's chart of images opens at step 0, where it would be empty.
            runs.send_image(run, grids[0], "samples", 0, f"the first samples, at {grids[0].stem} kimg")
        for grid in grids:
            runs.send_image(run, grid, "samples", int(float(grid.stem)))
        for file in (files.recipe, files.neighbours_png, files.error, *files.prepared):
            runs.send_file(run, file)
        runs.send_file(run, files.model / "README.md", "model")

        # Parameters, tags and status.
        params = {"seed": repeat.seed, "phase": repeat.phase, **trial.params}
        tags = {
            PARENT_TAG: trial_run.id,
            "scrimp.folder": files.path,
            "scrimp.attempt": repeat.attempt,
            "scrimp.cause": repeat.cause,
        }
        if repeat.status == "finished":
            tags |= _checkpoint_tags(files)
        status = "waiting" if has_ended and repeat.open else repeat.status
        runs.update(run, MLFLOW_STATUS[status], repeat.ended, params=params, tags=tags)

    def _register_models(
        self, runs: SweepRuns, run: Run, sweep: dict[str, Any], rows: list[TrialRow], space: Space
    ) -> None:
        record = store.read_sound(self._folder.outcome) or {}
        name = winner.registered_name(sweep["dataset"]["name"])
        description = f"{leaderboard.verdict(rows, space)}\n\nSweep `{sweep['name']}`, {self._folder.path}"
        ended = record.get("ended", sweep["started"])
        model_registry.register_models(runs, run, name, self._folder.models, description, ended)


class MirrorThread:
    """The thread that keeps a mirror up to date while a sweep runs.

    Parameters
    ----------
    folder, storage
        The sweep, and the storage whose embedded server it uses.
    uri : str or None
        Address of another server; None for the embedded one.
    say
        Called with each message for the user.
    interval_s : float
        Seconds between two synchronisations.

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
        interval_s: float = SYNC_INTERVAL_S,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._uri = None if uri is None else mlflow_server.check_address(uri)
        self._say = say
        self._interval_s = interval_s

        self._server: Server | None = None
        self._server_lock = threading.Lock()  # held while the embedded server is started or released
        self._stopped = False
        self._mirror: Mirror | None = None
        self._link = ""
        self._refusals_shown = 0
        self._sent: tuple[int, int] | None = None  # runs that are up to date, of how many
        self._failures = 0  # in a row
        self._cause = "it is slow"  # why MLflow is not up to date
        self._started = time.time()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start the thread, which starts the embedded server if needed, and return at once."""
        self._thread.start()

    def stop(self, stall_timeout_s: float, total_timeout_s: float = math.inf) -> None:
        """Send the rest and stop.

        This gives up when no run has become up to date for `stall_timeout_s`, after `total_timeout_s` in all, or at
        Ctrl-C. `scrimp sync`, or the sweep's command when it runs again, sends what is missing then.
        """
        self._ending.set()
        try:
            self._wait(stall_timeout_s, total_timeout_s)
        except KeyboardInterrupt:
            self._cause = "interrupted"
        if self._thread.is_alive() or self._failures:
            self._say(f"MLflow is not up to date ({self._cause}); `scrimp sync {self._folder.path}` sends the rest")

        # The thread may still be running; it prints nothing from now on and starts no further server.
        say = self._say
        self._say = lambda _: None
        with self._server_lock:
            self._stopped = True
            if self._server:
                try:
                    self._server.release()
                except UserError as error:
                    say(str(error))
                if self._link and not mlflow_server.is_reachable(self._server.uri):
                    say(f"MLflow ended with the sweep; `scrimp ui --storage {self._storage.path}` shows it again")

    def _wait(self, stall_timeout_s: float, total_timeout_s: float) -> None:
        """Wait for the thread while it makes progress, and print the progress from time to time."""
        began = time.monotonic()
        progressed = began
        shown = began
        previous = self._sent
        while self._thread.is_alive() and time.monotonic() < min(progressed + stall_timeout_s, began + total_timeout_s):
            self._thread.join(0.1)
            if self._sent != previous:
                previous = self._sent
                progressed = time.monotonic()
            if self._sent and time.monotonic() > shown + PROGRESS_INTERVAL_S:
                shown = time.monotonic()
                sent, total = self._sent
                self._say(f"MLflow: {sent} of {total} runs are up to date; Ctrl-C leaves the rest for later")

    def _note_progress(self, sent: int, total: int) -> None:
        self._sent = (sent, total)

    def _run(self) -> None:
        """Synchronise until the sweep ends and its outcome has been sent."""
        is_last = False
        pause = 0.0
        while not is_last:
            is_last = self._ending.wait(pause)
            began = time.monotonic()
            try:
                outcome = self._outcome() if is_last else ""
                self._sync(outcome)
            except Exception as error:
                self._note_failure(error)
                pause = min(MAX_RETRY_INTERVAL_S, self._interval_s * 2**self._failures)
                continue
            self._note_success()
            # The longer a synchronisation takes, the longer the pause: the server shares the cores that train.
            pause = max(self._interval_s, 3 * (time.monotonic() - began))

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._cause = self._explain(error)
        if self._failures == 2:  # a single failure may be chance
            self._say(f"MLflow: {self._cause}; the sweep continues, and MLflow receives the missing data later")

    def _note_success(self) -> None:
        if self._failures > 1:
            self._say("MLflow is reachable again and up to date")
        self._failures = 0
        refused = self._mirror.refused if self._mirror else []
        for message in refused[self._refusals_shown :]:
            self._say(f"MLflow refused a value, which will be missing there: {message}")
        self._refusals_shown = len(refused)

    def _sync(self, outcome: str) -> None:
        if not self._folder.description.exists():
            return  # the storage is gone; a server would create its folder again
        uri = self._uri or self._embedded_server()
        if self._mirror is None or self._mirror.uri != uri:
            self._mirror = Mirror(self._folder, uri, self._note_progress)
        self._mirror.sync(outcome)
        if self._link != self._mirror.link:
            self._link = self._mirror.link
            self._say(f"MLflow: {self._link}")

    def _embedded_server(self) -> str:
        """Return the address of the embedded server, started if necessary."""
        try:
            return self._join_server()
        except UserError:
            # When a Ray job ends, Ray kills its server, too, while there is still data to send. Start another one.
            return self._join_server()

    def _join_server(self) -> str:
        with self._server_lock:
            if self._stopped:  # nobody would stop another server
                raise UserError("the sweep has ended")
            if self._server is None:
                self._server = mlflow_server.join_or_start(self._storage)
            server = self._server
        try:
            server.wait_until_ready()
        except UserError:
            with self._server_lock:
                server.release()
                self._server = None
            raise
        server.log_in()
        return server.uri

    def _outcome(self) -> str:
        """Return the outcome that this driver recorded; an older one is that of an earlier driver."""
        outcome = store.read_sound(self._folder.outcome)
        if outcome and outcome["ended"] >= self._started:
            return outcome["reason"]
        return CRASHED

    def _explain(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        if self._mirror and not mlflow_server.is_reachable(self._mirror.uri):
            return f"the server at {self._mirror.uri} does not answer"
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message[:200]}"


def sync_ended_sweep(
    folder: SweepFolder, storage: Storage, uri: str | None, progress: Callable[[int, int], object]
) -> str:
    """Send MLflow what it is missing of a sweep that is not running; return the sweep's address in MLflow's UI.

    Raises
    ------
    UserError
        If the sweep is running, because it sends everything itself, or if no server can be reached.
    """
    holder = store.holder(folder.lock)
    if holder:
        raise UserError(f"{folder.path}: the sweep runs ({holder}) and sends MLflow everything by itself")
    record = store.read_sound(folder.outcome)
    outcome = record["reason"] if record else CRASHED
    with contextlib.ExitStack() as stack:
        if uri is None:
            mlflow_server.check_storage_name(storage.path)
            server = mlflow_server.join_or_start(storage)
            stack.callback(server.release)
            server.wait_until_ready()
            server.log_in()
            address = server.uri
        else:
            address = mlflow_server.check_address(uri)

        if not mlflow_server.is_reachable(address):
            raise UserError(f"the MLflow server at {address} does not answer")
        mirror = Mirror(folder, address, progress)
        mirror.sync(outcome)
    return mirror.link


def _checkpoint_tags(files: RepeatFolder) -> dict[str, Any]:
    weights = files.checkpoint / "last" / "network.safetensors"
    if not weights.is_file():
        return {}
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"scrimp.checkpoint": weights, "scrimp.checkpoint_sha256": sha256}


def _started(trial: Trial, default: float) -> float:
    return min((repeat.started for repeat in trial.repeats if repeat.started), default=default)
