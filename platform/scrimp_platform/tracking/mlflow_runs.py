"""The runs of one sweep on an MLflow server: each exists once there, and is told only what it does not know.

The server is asked for status, parameters, tags and metrics of its runs when connecting. What it cannot tell cheaply,
how far curves and files have been sent, stands in the sweep's `tracking.json` under the run's id; so another server,
or one that lost its data, is told everything anew.
"""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform import store
from scrimp_platform.throttle import Throttle

SWEEP = "scrimp.sweep"
KEY = "scrimp.key"
PARENT = "mlflow.parentRunId"
TERMINAL = ("FINISHED", "FAILED", "KILLED")
METRICS_A_REQUEST, PARAMS_A_REQUEST, TAGS_A_REQUEST = 1000, 100, 100  # MLflow's own limits
VALUE_LENGTH = 5000
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
AXES = ("rung", "images", "step")  # kimg in other words; kimg itself tells in a table how far a repeat is

# Retries are ours, with the sweep's folder as the queue; MLflow's would go on for minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Run:
    """One run: what the server has of it, and how far its curves and files have been sent.

    `start` is in Unix milliseconds. `curve` is the `position` of the last line sent, `files` maps a file's name to
    the size and time (ns) with which it was sent.
    """

    id: str
    start: int
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curve: list[float]
    files: dict[str, list[int]]


class Runs:
    """A connection to a server, for one sweep.

    Parameters
    ----------
    uri : str
        Address of the server.
    experiment : str
        Name of the experiment; made if it does not exist.
    sweep : str
        Name that no other sweep on that server has.
    progress : Path
        File that keeps how far curves and files have been sent.
    """

    def __init__(self, uri: str, experiment: str, sweep: str, progress: Path) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        self.refused: list[str] = []
        self._sweep = sweep
        self._path = progress
        self._progress: dict[str, Any] = store.read_sound(progress) or {"runs": {}}
        self.experiment = self._find_experiment(experiment)
        self._progress |= {"uri": uri, "experiment": self.experiment}
        self._throttle, self._saved = Throttle(), True
        self._runs = self._find_runs()

    def get(self, key: str, name: str, started: float) -> Run:
        """Return the run of this key, made now if the server has none. `started` is in Unix seconds."""
        if key not in self._runs:
            tags = {SWEEP: self._sweep, KEY: key}
            self._runs[key] = self._known(self._client.create_run(self.experiment, _milliseconds(started), tags, name))
            self._save()
        return self._runs[key]

    def tell(
        self,
        run: Run,
        status: str,
        ended: float | None = None,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
    ) -> None:
        """Send what differs from what the run has. A parameter that it has stays: MLflow refuses to change one."""
        from mlflow.entities import Metric, Param, RunTag

        texts = {name: str(value)[:VALUE_LENGTH] for name, value in tags.items()}
        new_params = {name: str(value)[:VALUE_LENGTH] for name, value in params.items() if name not in run.params}
        new_tags = {name: value for name, value in texts.items() if run.tags.get(name, "") != value}
        new_metrics = {name: value for name, value in (metrics or {}).items() if run.metrics.get(name) != value}
        now = _milliseconds(ended or time.time())
        if new_params or new_tags or new_metrics:
            self._log(
                run,
                [Metric(name, value, now, step) for name, value in new_metrics.items()],
                [Param(name, value) for name, value in new_params.items()],
                [RunTag(name, value) for name, value in new_tags.items()],
            )
            run.params |= new_params
            run.tags |= new_tags
            run.metrics |= new_metrics
        if run.status != status:
            if status in TERMINAL:
                self._client.set_terminated(run.id, status, now)
            else:
                self._client.update_run(run.id, status)
            run.status = status

    def draw(self, run: Run, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send what is new of a repeat's curves: every number of a line of `metrics.jsonl`, at the line's kimg."""
        fresh = [line for line in lines if position(line) > run.curve]
        size = max(1, METRICS_A_REQUEST // max(map(len, fresh), default=1))
        for first in range(0, len(fresh), size):
            part = fresh[first : first + size]
            self._log(run, list(itertools.chain.from_iterable(points(line, run.start) for line in part)))
            run.curve[:] = position(part[-1])
            self._save()

    def put(self, run: Run, file: Path, folder: str = "") -> None:
        """Send a file into a folder of the run's artifacts, if it exists and has changed."""
        with self._sending(run, f"{folder}/{file.name}", file) as wanted:
            if wanted:
                self._client.log_artifact(run.id, str(file), folder or None)

    def show(self, run: Run, image: Path, key: str, step: int) -> None:
        """Send an image as one step of a grid that the UI steps through, if it has changed."""
        import PIL.Image

        with self._sending(run, f"{key}/{step}", image) as wanted:
            if wanted:
                with PIL.Image.open(image) as opened:
                    self._client.log_image(run.id, opened, key=key, step=step)

    def save(self) -> None:
        """Write down how far curves and files have been sent; what a kill forgets of it is sent again."""
        if not self._saved:
            store.write_json(self._path, self._progress)
            self._saved = True

    def _log(self, run: Run, metrics: Sequence[Any], params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        """Send these in as many requests as MLflow's limits ask for."""
        limits = (METRICS_A_REQUEST, PARAMS_A_REQUEST, TAGS_A_REQUEST)
        parts = [_cut(values, limit) for values, limit in zip((metrics, params, tags), limits, strict=True)]
        for batch in itertools.zip_longest(*parts, fillvalue=()):
            self._log_batch(run, [(kind, value) for kind, values in enumerate(batch) for value in values])

    def _log_batch(self, run: Run, values: Sequence[tuple[int, Any]]) -> None:
        """Send one request of metrics (0), parameters (1) and tags (2).

        Where the server refuses it as invalid, its halves are sent: what is valid arrives, and the rest never would.
        """
        from mlflow.exceptions import MlflowException

        metrics, params, tags = ([value for kind, value in values if kind == wanted] for wanted in range(3))
        try:
            self._client.log_batch(run.id, metrics, params, tags)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            if len(values) == 1:
                self.refused.append(" ".join(str(error).split())[:200])
                return
            for half in _cut(values, -(-len(values) // 2)):
                self._log_batch(run, half)

    @contextlib.contextmanager
    def _sending(self, run: Run, name: str, file: Path) -> Iterator[bool]:
        try:
            facts = file.stat()
        except FileNotFoundError:
            yield False
            return
        state = [facts.st_size, facts.st_mtime_ns]
        wanted = run.files.get(name) != state
        yield wanted
        if wanted:
            run.files[name] = state
            self._save()

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            # Another sweep on the same dataset may make it in between.
            with contextlib.suppress(MlflowException):
                self._client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
            found = self._client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r} cannot be made")
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _find_runs(self) -> dict[str, Run]:
        answers, token = [], None
        while token != "":
            page = self._client.search_runs([self.experiment], f"tags.`{SWEEP}` = '{self._sweep}'", page_token=token)
            answers += page
            token = page.token or ""
        runs: dict[str, Run] = {}
        # A request to make a run that was given up may yet be carried out: of two runs, the one that we know stays.
        for answer in sorted(answers, key=lambda a: (a.info.run_id not in self._progress["runs"], a.info.run_id)):
            key = answer.data.tags[KEY]
            if key in runs:
                self._client.delete_run(answer.info.run_id)
            else:
                runs[key] = self._known(answer)
        return runs

    def _known(self, answer: Any) -> Run:
        info, data = answer.info, answer.data
        sent = self._progress["runs"].setdefault(info.run_id, {"curve": [-1.0, 0.0], "files": {}})
        params, tags, metrics = dict(data.params), dict(data.tags), dict(data.metrics)
        return Run(info.run_id, info.start_time, info.status, params, tags, metrics, **sent)

    def _save(self) -> None:
        self._saved = False
        self._throttle(self.save)


def position(line: Mapping[str, Any]) -> list[float]:
    """Place of a line in its curve: kimg, and the scores of a rung after the tick at the same kimg."""
    return [float(line["kimg"]), float("rung" in line)]


def points(line: Mapping[str, Any], start: int) -> list[Any]:
    """Return the finite numbers of a line as MLflow metrics at the line's kimg.

    Their times follow from the line and the run's start alone: MLflow keeps a point that it is sent twice only once.
    """
    from mlflow.entities import Metric

    when = start + _milliseconds(line.get("seconds", 0.0))
    return [
        Metric(name, float(value), when, int(line["kimg"]))
        for name, value in line.items()
        if name not in AXES and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _cut(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
