"""MLflow as a mirror of the sweep's folder, with one writer.

Everything that MLflow shows is on disk first, so the folder is the queue: what the server has not received yet can be
sent later from there, by this process or by the next one. While a sweep runs a background thread sends it
(`mirror_thread.py`).
"""

import contextlib
import hashlib
import os
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
from scrimp_platform.tracking.mlflow_runs import PARENT_TAG, STATUS_TAG, Run, SweepRuns
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError

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
        runs.share_view(columns.shown(space), [STATUS_TAG])
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
        tags = {PARENT_TAG: sweep_run.id, STATUS_TAG: row.status}
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
        raise UserError(f"{folder.path}: the sweep is running ({holder}) and sends everything to MLflow itself")
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
