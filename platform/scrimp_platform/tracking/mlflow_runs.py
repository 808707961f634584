"""The runs of one sweep on an MLflow server. Each run is created once, and only what the server lacks is sent.

On connecting, the server is asked for the status, parameters, tags and metrics of its runs. How far metric histories
and files have been sent is expensive to ask, so the sweep's `tracking.json` records it under the run's id. Another
server, or one that lost its data, has other run ids and receives everything.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scrimp_platform import node_metrics, store
from scrimp_platform.throttle import Throttle
from scrimp_platform.tracking.columns import Point
from scrimp_platform.tracking.mlflow_server import VIEW
from scrimp_trainers.common.metrics_log import MetricsRow

if TYPE_CHECKING:
    import PIL.Image
    from mlflow.entities import Experiment, Metric, Param, RunTag
    from mlflow.entities import Run as MlflowRun

SWEEP_TAG = "scrimp.sweep"
KEY_TAG = "scrimp.key"
PARENT_TAG = "mlflow.parentRunId"
STATUS_TAG = "scrimp.status"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Of an experiment: a view of its list of runs, as MLflow's "Share" saves it."""
COLUMN_WIDTH = 150
"""Of the list of runs, in pixels: wide enough for the names of most metrics."""
TERMINAL_STATUSES = ("FINISHED", "FAILED", "KILLED")

# Limits of MLflow for one request.
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
TAGS_PER_REQUEST = 100
MAX_VALUE_LENGTH = 5000
DIGEST_LENGTH = 36
"""Of a dataset; the whole hash is in its profile."""

SYSTEM = "system/"
"""Begins the names of the metrics that MLflow shows as those of the machine."""
NOTE_WIDTH = 230
NOTE_HEIGHT = 14
"""Of a line of text above an image, in pixels."""

REFUSAL_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
AXES = ("rung", "images", "step")
"""Columns that are not sent as metrics because they repeat kimg; kimg itself shows the progress in MLflow's tables."""

# Failed requests are retried from the sweep's folder. MLflow's own retries would block for minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Run:
    """One run: what the server has of it, and how far its metric histories and files have been sent.

    `start` is in Unix milliseconds. `curve` is the `line_position` of the last line sent. `files` maps the name of a
    file to its size and modification time (ns) when it was sent. `datasets` are the digests of those it was trained on.
    """

    id: str
    start: int
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curve: list[float]
    files: dict[str, list[int]]
    datasets: set[str]


@dataclass
class LogBatch:
    """Values for one request, or for the part of one."""

    metrics: Sequence["Metric"] = ()
    params: Sequence["Param"] = ()
    tags: Sequence["RunTag"] = ()

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def halves(self) -> tuple["LogBatch", "LogBatch"]:
        """Split the values in two parts, in the order metrics, parameters, tags; the first one may be one larger."""
        middle = (len(self) + 1) // 2
        metrics_end = min(middle, len(self.metrics))
        params_end = min(middle - metrics_end, len(self.params))
        tags_end = middle - metrics_end - params_end
        first = LogBatch(self.metrics[:metrics_end], self.params[:params_end], self.tags[:tags_end])
        second = LogBatch(self.metrics[metrics_end:], self.params[params_end:], self.tags[tags_end:])
        return first, second


class SweepRuns:
    """A connection to an MLflow server for the runs of one sweep.

    Parameters
    ----------
    uri : str
        Address of the server.
    experiment : str
        Name of the experiment; created if it does not exist.
    sweep : str
        Identifier of the sweep, unique on the server.
    progress_file : Path
        File that records how far metric histories and files have been sent.
    """

    def __init__(self, uri: str, experiment: str, sweep: str, progress_file: Path) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        self.refused: list[str] = []  # error messages for the values that the server refused as invalid
        self._sweep = sweep
        self._progress_file = progress_file
        self._progress: dict[str, Any] = store.read_sound(progress_file) or {"runs": {}}
        on_server = self._find_or_create_experiment(experiment)
        self.experiment = on_server.experiment_id
        self._view = on_server.tags.get(VIEW_TAG, "")
        self._progress |= {"uri": uri, "experiment": self.experiment}
        self._throttle = Throttle()
        self._saved = True
        self._runs = self._find_runs()

    def share_view(self, metrics: Sequence[str], tags: Sequence[str]) -> None:
        """Let the list of runs begin with these columns where it is opened by `mlflow_server.ui_link`."""
        names = [f"metrics.`{name}`" for name in metrics] + [f"tags.`{name}`" for name in tags]
        widths = dict.fromkeys(names, COLUMN_WIDTH)
        view = json.dumps({"selectedColumns": names, "columnOrder": names, "columnWidths": widths})
        if view != self._view and len(view) <= MAX_VALUE_LENGTH:
            self.client.set_experiment_tag(self.experiment, VIEW_TAG, view)
            self._view = view

    def get_or_create(self, key: str, name: str, started: float) -> Run:
        """Return the run with this key; create it if the server has none. `started` is in Unix seconds."""
        if key not in self._runs:
            tags = {SWEEP_TAG: self._sweep, KEY_TAG: key}
            created = self.client.create_run(self.experiment, _milliseconds(started), tags, name)
            self._runs[key] = self._with_progress(created)
            self._save_soon()
        return self._runs[key]

    def update(
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
        """Send what differs from the server's state. Existing parameters stay: MLflow refuses to change them."""
        from mlflow.entities import Metric, Param, RunTag

        tag_texts = {name: str(value)[:MAX_VALUE_LENGTH] for name, value in tags.items()}
        new_params = {name: str(value)[:MAX_VALUE_LENGTH] for name, value in params.items() if name not in run.params}
        new_tags = {name: text for name, text in tag_texts.items() if run.tags.get(name, "") != text}
        new_metrics = {name: value for name, value in (metrics or {}).items() if run.metrics.get(name) != value}

        time_ms = _milliseconds(ended or time.time())
        if new_params or new_tags or new_metrics:
            batch = LogBatch(
                [Metric(name, value, time_ms, step) for name, value in new_metrics.items()],
                [Param(name, value) for name, value in new_params.items()],
                [RunTag(name, value) for name, value in new_tags.items()],
            )
            self._send(run, batch)
            run.params |= new_params
            run.tags |= new_tags
            run.metrics |= new_metrics

        # The status is sent last, so a run with a terminal status is complete.
        if run.status != status:
            if status in TERMINAL_STATUSES:
                self.client.set_terminated(run.id, status, time_ms)
            else:
                self.client.update_run(run.id, status)
            run.status = status

    def send_lines(self, run: Run, lines: Sequence[MetricsRow]) -> None:
        """Send the new lines of `metrics.jsonl`: each number of a line is a metric at the line's kimg."""
        new_lines = [line for line in lines if line_position(line) > run.curve]
        widest = max((len(line.to_entries()) for line in new_lines), default=1)
        lines_per_request = max(1, METRICS_PER_REQUEST // widest)
        for part in _chunks(new_lines, lines_per_request):
            metrics = [metric for line in part for metric in line_metrics(line, run.start)]
            self._send(run, LogBatch(metrics))
            run.curve[:] = line_position(part[-1])
            self._save_soon()

    def send_points(self, run: Run, points: Sequence[Point]) -> None:
        """Send the new points of the sweep's own curves, at steps of GPU-minutes."""
        from mlflow.entities import Metric

        new_points = [point for point in points if point.ended > run.curve[0]]
        metrics = [
            Metric(name, value, _milliseconds(point.ended), point.gpu_minutes)
            for point in new_points
            for name, value in point.metrics.items()
        ]
        if metrics:
            self._send(run, LogBatch(metrics))
            run.curve[0] = new_points[-1].ended
            self._save_soon()

    def send_curves(self, run: Run, curves: Sequence[tuple[float, Mapping[str, float]]], ended: float) -> None:
        """Send curves over kimg that are complete, unless their ends have arrived; `ended` is in Unix seconds.

        The time is that of the trial's end, so that MLflow stores what is sent twice once.
        """
        from mlflow.entities import Metric

        ends = {name: value for _, values in curves for name, value in values.items()}
        if all(run.metrics.get(name) == value for name, value in ends.items()):
            return
        metrics = [
            Metric(name, value, _milliseconds(ended), round(kimg))
            for kimg, values in curves
            for name, value in values.items()
        ]
        self._send(run, LogBatch(metrics))
        run.metrics |= ends

    def send_system_metrics(self, run: Run, lines: Sequence[Mapping[str, float]]) -> None:
        """Send the new lines about a repeat's node, under the names that MLflow gives system metrics."""
        from mlflow.entities import Metric

        sent = run.files.get(SYSTEM, [0])[0]
        metrics = [
            Metric(f"{SYSTEM}{name}", value, _milliseconds(line[node_metrics.TIME]), number)
            for number, line in enumerate(lines[sent:], sent)
            for name, value in line.items()
            if name != node_metrics.TIME
        ]
        if len(lines) > sent:
            self._send(run, LogBatch(metrics))
            run.files[SYSTEM] = [len(lines)]
            self._save_soon()

    def log_dataset(self, run: Run, dataset: Mapping[str, Any]) -> None:
        """Send which dataset a run was trained on, as the sweep's record describes it."""
        digest = dataset["content_hash"][:DIGEST_LENGTH]
        if digest in run.datasets:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(dataset["folder"])})
        profile = {name: value for name, value in dataset.items() if name not in ("name", "folder")}
        entity = Dataset(dataset["name"], digest, "local", source, _schema(dataset), json.dumps(profile))
        self.client.log_inputs(run.id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
        run.datasets.add(digest)

    def send_file(self, run: Run, file: Path, folder: str = "") -> None:
        """Send a file into a folder of the run's artifacts, if it exists and has changed."""
        with self._recording(run, f"{folder}/{file.name}", file) as has_changed:
            if has_changed:
                self.client.log_artifact(run.id, str(file), folder or None)

    def send_model_file(self, run: Run, model_id: str, file: Path, folder: str) -> None:
        """Send a file into a folder of a model's artifacts, `.` for the model's own, if it has changed."""
        with self._recording(run, f"{model_id}/{folder}/{file.name}", file) as has_changed:
            if has_changed:
                self.client.log_model_artifact(model_id, str(file), None if folder == "." else folder)

    def send_image(self, run: Run, image: Path, key: str, step: int, note: str = "") -> None:
        """Send an image as one step of the image series `key`, if it has changed; with a line of text above it."""
        import PIL.Image

        with self._recording(run, f"{key}/{step}", image) as has_changed:
            if has_changed:
                with PIL.Image.open(image) as opened:
                    picture = _with_note(opened, note) if note else opened
                    self.client.log_image(run.id, picture, key=key, step=step)

    def save_progress(self) -> None:
        """Record how far metric histories and files have been sent; what a kill loses of it is sent again."""
        if not self._saved:
            store.write_json(self._progress_file, self._progress)
            self._saved = True

    def _send(self, run: Run, batch: LogBatch) -> None:
        """Send values in as many requests as MLflow's limits require."""
        parts = itertools.zip_longest(
            _chunks(batch.metrics, METRICS_PER_REQUEST),
            _chunks(batch.params, PARAMS_PER_REQUEST),
            _chunks(batch.tags, TAGS_PER_REQUEST),
            fillvalue=(),
        )
        for metrics, params, tags in parts:
            self._send_request(run, LogBatch(metrics, params, tags))

    def _send_request(self, run: Run, batch: LogBatch) -> None:
        """Send values in one request. If the server refuses it as invalid, send its halves.

        So the valid values arrive, and an invalid one is recorded in `refused` and never sent again.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_batch(run.id, batch.metrics, batch.params, batch.tags)
        except MlflowException as error:
            if error.error_code not in REFUSAL_CODES:
                raise
            if len(batch) == 1:
                message = " ".join(str(error).split())
                self.refused.append(message[:200])
                return
            for half in batch.halves():
                self._send_request(run, half)

    @contextlib.contextmanager
    def _recording(self, run: Run, name: str, file: Path) -> Iterator[bool]:
        """Yield whether a file has changed since it was sent; record it as sent when the caller has sent it."""
        try:
            facts = file.stat()
        except FileNotFoundError:
            yield False
            return
        state = [facts.st_size, facts.st_mtime_ns]
        has_changed = run.files.get(name) != state
        yield has_changed
        if has_changed:
            run.files[name] = state
            self._save_soon()

    def _find_or_create_experiment(self, name: str) -> "Experiment":
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            # Another sweep on the same dataset may create it in between.
            with contextlib.suppress(MlflowException):
                self.client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
            experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            raise RuntimeError(f"experiment {name!r} cannot be created")
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment

    def _find_runs(self) -> dict[str, Run]:
        """Return the sweep's runs on the server, by key."""
        server_runs = []
        token = None
        while token != "":
            page = self.client.search_runs([self.experiment], f"tags.`{SWEEP_TAG}` = '{self._sweep}'", page_token=token)
            server_runs += page
            token = page.token or ""

        # The server may still carry out a request to create a run that timed out here, so that two runs have one key.
        # The one with recorded progress is kept.
        recorded = self._progress["runs"]
        server_runs.sort(key=lambda run: (run.info.run_id not in recorded, run.info.run_id))
        runs: dict[str, Run] = {}
        for run in server_runs:
            key = run.data.tags[KEY_TAG]
            if key in runs:
                self.client.delete_run(run.info.run_id)
            else:
                runs[key] = self._with_progress(run)
        return runs

    def _with_progress(self, run: "MlflowRun") -> Run:
        """Combine a server's run with the recorded progress."""
        progress = self._progress["runs"].setdefault(run.info.run_id, {"curve": [-1.0, 0.0], "files": {}})
        return Run(
            run.info.run_id,
            run.info.start_time,
            run.info.status,
            dict(run.data.params),
            dict(run.data.tags),
            dict(run.data.metrics),
            curve=progress["curve"],
            files=progress["files"],
            datasets={given.dataset.digest for given in run.inputs.dataset_inputs} if run.inputs else set(),
        )

    def _save_soon(self) -> None:
        self._saved = False
        self._throttle(self.save_progress)


def line_position(line: MetricsRow) -> list[float]:
    """Return the position of a line in the metric history: kimg, then scores of a rung after the tick at that kimg."""
    return [float(line.kimg), float(line.rung is not None)]


def line_metrics(line: MetricsRow, start: int) -> list["Metric"]:
    """Return the finite numbers of a line as MLflow metrics at the line's kimg.

    Their timestamps depend only on the line and the start of the run: MLflow stores a metric that is sent twice once.
    """
    from mlflow.entities import Metric

    time_ms = start + _milliseconds(line.seconds)
    step = int(line.kimg)
    return [
        Metric(name, float(value), time_ms, step)
        for name, value in line.to_entries().items()
        if name not in AXES and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _schema(dataset: Mapping[str, Any]) -> str | None:
    """Return the schema of a dataset's items as MLflow has it; None if the sweep's record does not say their shape."""
    if "shape" not in dataset:
        return None
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.types import Schema, TensorSpec

    is_pictures = dataset["shape"] == dataset["picture"]
    dtype = np.dtype(np.uint8 if is_pictures else np.float32)
    return json.dumps(TensorDatasetSchema(Schema([TensorSpec(dtype, (-1, *dataset["shape"]))])).to_dict())


def _with_note(image: "PIL.Image.Image", note: str) -> "PIL.Image.Image":
    """Return an image below a line of text."""
    import PIL.Image
    import PIL.ImageDraw

    size = (max(image.width, NOTE_WIDTH), image.height + NOTE_HEIGHT)
    result = PIL.Image.new("RGB", size, "white")
    PIL.ImageDraw.Draw(result).text((2, 1), note, fill="black")
    result.paste(image.convert("RGB"), (0, NOTE_HEIGHT))
    return result


def _chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
