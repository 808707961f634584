"""MLflow shows what is in the sweep's folder, whenever the server was there to hear it."""

import contextlib
import hashlib
import json
import re
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import requests
from made_up_rows import make_row
from tracked_sweep import add_lines, add_repeat, ended_sweep, sync_until_killed

from scrimp_platform import node_metrics, store
from scrimp_platform.cli import main
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import mirror_thread, mlflow_server
from scrimp_platform.tracking.mirror import Mirror
from scrimp_platform.tracking.mirror_thread import MirrorThread
from scrimp_trainers.common import metrics_log


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return ended_sweep(tmp_path)


def runs_of(client, folder: SweepFolder) -> dict:
    """Active runs of the sweep by their name, which must not repeat."""
    experiment = client.get_experiment_by_name(f"data-{folder.path.name}")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    names = [run.info.run_name for run in runs]
    assert len(names) == len(set(names))
    return dict(zip(names, runs, strict=True))


def curve(client, run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def files_of(client, run, path: str = "") -> set[str]:
    found = client.list_artifacts(run.info.run_id, path)
    return {name for file in found for name in (files_of(client, run, file.path) if file.is_dir else {file.path})}


def grids(client, run) -> list[tuple[str, int]]:
    """Key and step of every full-size image, in order."""
    names = [name.removeprefix("images/") for name in files_of(client, run, "images") if name.endswith(".png")]
    return sorted((name.split("+")[0], int(name.split("+")[2])) for name in names)


@contextlib.contextmanager
def counted(monkeypatch):
    """Addresses of the requests that are sent meanwhile."""
    sent, send = [], requests.Session.send

    def count(self, request, **settings):
        sent.append(f"{request.method} {request.path_url.partition('?')[0]}")
        return send(self, request, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "send", count)
        yield sent


def test_sweep_trials_and_repeats_nest(uri, client, folder):
    Mirror(folder, uri).sync("complete")
    runs = runs_of(client, folder)
    names = {run.info.run_id: name for name, run in runs.items()}
    parents = {name: names.get(run.data.tags.get("mlflow.parentRunId")) for name, run in runs.items()}
    sweep = folder.path.name
    assert parents == {
        sweep: None,
        "trial 0": sweep,
        "trial 1": sweep,
        "trial 2": sweep,
        "repeat 0.0": "trial 0",
        "repeat 0.1": "trial 0",
        "repeat 0.2": "trial 0",
        "repeat 1.0": "trial 1",
        "repeat 2.0": "trial 2",
    }
    assert {name: run.info.status for name, run in runs.items()} == {
        sweep: "FINISHED",
        "trial 0": "FINISHED",
        "trial 1": "FINISHED",  # halving ended it, as planned
        "trial 2": "FAILED",
        "repeat 0.0": "FINISHED",
        "repeat 0.1": "FINISHED",
        "repeat 0.2": "FINISHED",
        "repeat 1.0": "FINISHED",
        "repeat 2.0": "FAILED",
    }
    experiment = client.get_experiment_by_name(f"data-{sweep}")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_each_level_shows_what_belongs_to_it(uri, client, folder):
    Mirror(folder, uri).sync("complete")
    runs = runs_of(client, folder)
    sweep, trial, repeat = runs[folder.path.name], runs["trial 0"], runs["repeat 0.1"]

    assert sweep.data.params["search.optimizer.lr"] == "{'loguniform': (0.0001, 0.01)}"
    assert (sweep.data.params["seed"], sweep.data.params["budget.trials"]) == ("5", "8")
    assert files_of(client, sweep) == {"sweep.json", "leaderboard.csv", "best_recipe.yaml", "report.html"}

    assert trial.data.params == {"optimizer.lr": "0.001", "network.channels": "32"}
    rows = leaderboard.rank(records.read_records(folder).trials, records.space_of(folder))
    row = next(row for row in rows if row.number == 0)
    summary = row.summaries["fd_classifier"]
    assert trial.data.metrics["repeats"] == 3
    assert trial.data.metrics["fd_classifier_chosen_at"] == pytest.approx(100 / 60)
    assert trial.data.metrics["fd_classifier_mean"] == pytest.approx(summary.mean)
    assert trial.data.metrics["fd_classifier_ci_low"] == pytest.approx(summary.low)
    assert trial.data.metrics["fd_classifier_ci_high"] == pytest.approx(summary.high)

    assert repeat.data.params == {"optimizer.lr": "0.001", "network.channels": "32", "seed": "12", "phase": "race"}
    assert curve(client, repeat, "loss")[:2] == [(4, 1 / 4), (8, 1 / 8)]
    assert curve(client, repeat, "fd_classifier") == [(20, 6.0), (60, 100 / 60 + 1)]
    assert "grad_norm" not in repeat.data.metrics
    assert grids(client, repeat) == [("samples", 0), ("samples", 20), ("samples", 60)]
    assert {"recipe.yaml", "model/README.md"} <= files_of(client, repeat)
    weights = folder.repeat(0, 1).checkpoint / "last" / "network.safetensors"
    assert repeat.data.tags["scrimp.checkpoint"] == str(weights)
    assert repeat.data.tags["scrimp.checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert runs["repeat 2.0"].data.tags["scrimp.cause"] == "Diverged: step 7: loss is nan"


def test_the_list_shows_what_a_sweep_and_its_trials_have_found(uri, client, folder):
    add_repeat(folder, Repeat(1, 1, 18, "search", "running"), rungs=[])
    Mirror(folder, uri).sync()
    runs = runs_of(client, folder)
    sweep, trial, stopped = runs[folder.path.name], runs["trial 0"], runs["trial 1"]
    known = records.read_records(folder)
    best = leaderboard.rank(known.trials, records.space_of(folder))[0]

    assert sweep.info.status == "RUNNING"
    assert sweep.data.metrics["trials"] == 3
    assert sweep.data.metrics["repeats"] == 3
    assert sweep.data.metrics["best_trial"] == 0
    ended = [repeat for repeat in known.repeats if not repeat.open]
    assert sweep.data.metrics["gpu_hours"] == pytest.approx(sum(repeat.device_hours for repeat in ended))
    for name in ("mean", "ci_low", "ci_high"):
        assert sweep.data.metrics[f"fd_classifier_{name}"] == trial.data.metrics[f"fd_classifier_{name}"]

    assert trial.data.metrics["kimg"] == 60
    assert trial.data.metrics["gpu_hours"] == pytest.approx(best.gpu_hours)
    assert trial.data.tags["scrimp.status"] == best.status
    assert stopped.data.metrics["kimg"] == 20
    assert stopped.data.metrics["repeats"] == 0


def test_the_sweeps_chart_is_the_best_score_over_gpu_minutes(uri, client, folder):
    for number, (score, minutes) in enumerate([(3.0, 400), (1.5, 500)], 3):
        Trial(number, {"optimizer.lr": 0.002}, "complete").save(folder)
        repeat = Repeat(number, 0, 20 + number, "search", "finished", spent=3600.0)
        add_repeat(folder, repeat, rungs=[], ended=minutes, last_score=score)
    mirror = Mirror(folder, uri)
    mirror.sync()
    run = runs_of(client, folder)[folder.path.name]
    first = 100 / 60
    assert [value for _, value in curve(client, run, "fd_classifier_best_so_far")][-3:] == [first, first, 1.5]
    steps = [step for step, _ in curve(client, run, "fd_classifier_best_so_far")]
    assert steps[-1] - steps[-2] == 60
    before = len(steps)
    mirror.sync("complete")
    assert len(curve(client, run, "fd_classifier_best_so_far")) == before


def test_a_sweeps_page_begins_with_the_verdict(uri, client, folder):
    Mirror(folder, uri).sync("complete")
    rows = leaderboard.rank(records.read_records(folder).trials, records.space_of(folder))
    sweep = runs_of(client, folder)[folder.path.name]
    text = sweep.data.tags["mlflow.note.content"]
    assert text.startswith(leaderboard.verdict(rows, records.space_of(folder)))
    assert "| 0 | " in text
    assert sweep.data.tags["mlflow.source.name"] == "tracked"


def test_a_trials_curves_are_means_over_its_repeats_at_each_rung(uri, client, folder):
    Mirror(folder, uri).sync()
    assert not any(name.startswith("curve/") for name in runs_of(client, folder)["trial 0"].data.metrics)
    mirror = Mirror(folder, uri)
    mirror.sync("complete")
    mirror.sync("complete")
    trial = runs_of(client, folder)["trial 0"]
    # Repeats 1 and 2 are of the race; the scores of a rung are 100 / kimg plus the repeat's number.
    mean = 1.5
    half = 12.706 * 0.5  # Student's t at 97.5% with one degree of freedom, times the standard error of 1 and 2
    for name, offset in (("mean", 0), ("ci_low", -half), ("ci_high", half)):
        points = curve(client, trial, f"curve/fd_classifier_{name}")
        assert [step for step, _ in points] == [20, 60]
        assert [value for _, value in points] == pytest.approx([5 + mean + offset, 100 / 60 + mean + offset], abs=1e-3)


def test_runs_say_which_dataset_they_were_trained_on(uri, client, folder):
    Mirror(folder, uri).sync("complete")
    runs = runs_of(client, folder)
    for name in (folder.path.name, "repeat 0.1"):
        (given,) = runs[name].inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == (f"data-{folder.path.name}", ("c0ffee" * 10)[:36])
        assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}
        profile = json.loads(given.dataset.profile)
        assert profile["content_hash"] == "c0ffee" * 10
        assert profile["splits"] == {"train": 300, "holdout": 20}
        assert "uint8" in given.dataset.schema
        assert json.loads(given.dataset.source) == {"uri": "/data"}


def test_a_repeat_carries_what_its_node_did(uri, client, folder, monkeypatch):
    monkeypatch.setattr(node_metrics, "INTERVAL_S", 0.01)
    repeat = Repeat(3, 0, 15, "search", "running")
    Trial(3, {"optimizer.lr": 0.004}).save(folder)
    add_repeat(folder, repeat, rungs=[])
    system = folder.repeat(3, 0).system
    with node_metrics.recorded(system):
        while len(node_metrics.read(system)) < 2:
            time.sleep(0.01)
    lines = node_metrics.read(system)
    mirror = Mirror(folder, uri)
    mirror.sync()
    mirror.sync()
    run = runs_of(client, folder)["repeat 3.0"]
    points = curve(client, run, "system/cpu_utilization_percentage")
    assert points == [(number, line["cpu_utilization_percentage"]) for number, line in enumerate(lines)]
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
    with system.open("a") as file:
        file.write('{"cut short')
    assert node_metrics.read(system) == lines


def test_what_has_arrived_is_not_sent_again(uri, client, folder, monkeypatch):
    mirror = Mirror(folder, uri)
    mirror.sync()
    with counted(monkeypatch) as sent:
        mirror.sync()
    assert sent == []
    with counted(monkeypatch) as sent:
        Mirror(folder, uri).sync()
    assert sent == ["GET /api/2.0/mlflow/experiments/get-by-name", "POST /api/2.0/mlflow/runs/search"]


def test_what_has_ended_is_not_read_again(uri, client, folder, monkeypatch):
    add_repeat(folder, Repeat(2, 1, 15, "race", "running"), rungs=[])
    mirror = Mirror(folder, uri)
    mirror.sync()
    reads, read = [], metrics_log.read_rows
    monkeypatch.setattr(metrics_log, "read_rows", lambda path: reads.append(path) or read(path))
    mirror.sync()
    assert set(reads) == {folder.repeat(2, 1).metrics}
    assert runs_of(client, folder)["trial 0"].data.metrics["repeats"] == 3


def test_curves_grow_and_an_interrupted_sweep_goes_on_in_the_same_runs(uri, client, folder):
    repeat = Repeat(3, 0, 15, "search", "running")
    Trial(3, {"optimizer.lr": 0.004}).save(folder)
    add_repeat(folder, repeat, rungs=[])
    mirror = Mirror(folder, uri)
    mirror.sync()
    runs = runs_of(client, folder)
    assert {runs[name].info.status for name in (folder.path.name, "trial 3", "repeat 3.0")} == {"RUNNING"}
    mirror.sync("interrupted")
    runs = runs_of(client, folder)
    assert runs[folder.path.name].info.status == "KILLED"
    assert {runs[name].info.status for name in ("trial 3", "repeat 3.0")} == {"SCHEDULED"}

    add_lines(folder, repeat, (12, 16, 20), [20.0])
    mirror = Mirror(folder, uri)
    mirror.sync()
    run = runs_of(client, folder)["repeat 3.0"]
    assert run.info.status == "RUNNING"
    assert [step for step, _ in curve(client, run, "fd_classifier")] == [20]
    assert {step for step, _ in curve(client, run, "loss")} == {4, 8, 12, 16, 20}
    assert grids(client, run) == [("samples", 0), ("samples", 20)]


@pytest.mark.parametrize("age", ["lost", "stale"])
def test_an_old_record_of_what_was_sent_makes_no_second_runs(uri, client, folder, age):
    repeat = Repeat(3, 0, 15, "search", "running")
    Trial(3, {"optimizer.lr": 0.004}).save(folder)
    add_repeat(folder, repeat, rungs=[])
    Mirror(folder, uri).sync()
    before = folder.tracking.read_text()
    add_lines(folder, repeat, (12, 16), [])
    Mirror(folder, uri).sync()
    ids = {run.info.run_id for run in runs_of(client, folder).values()}
    folder.tracking.unlink() if age == "lost" else folder.tracking.write_text(before)

    Mirror(folder, uri).sync()
    runs = runs_of(client, folder)
    assert {run.info.run_id for run in runs.values()} == ids
    assert [step for step, _ in curve(client, runs["repeat 3.0"], "loss")] == [4, 8, 12, 16]


def test_a_kill_after_any_request_leaves_every_run_once(uri, client, folder, monkeypatch):
    answers = 5
    while not sync_until_killed(Mirror(folder, uri), answers, monkeypatch):
        answers += 1
    assert answers > 9
    runs = runs_of(client, folder)
    assert len(runs) == 9
    for name in ("repeat 0.0", "repeat 0.1"):
        assert curve(client, runs[name], "loss")[:3] == [(4, 1 / 4), (8, 1 / 8), (12, 1 / 12)]
        assert set(grids(client, runs[name])) == {("samples", 0), ("samples", 20), ("samples", 60)}


def test_a_sweep_made_anew_under_an_old_name_is_another_run(uri, client, folder):
    Mirror(folder, uri).sync("complete")
    old = store.read_json(folder.description)
    shutil.rmtree(folder.path)
    store.write_json(folder.description, {**old, "id": "another", "started": time.time()})
    Mirror(folder, uri).sync()
    experiment = client.get_experiment_by_name(f"data-{folder.path.name}")
    runs = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{folder.path.name}'")
    assert {run.info.status for run in runs} == {"FINISHED", "RUNNING"}


def test_a_run_that_someone_deleted_does_not_stop_the_mirror(uri, client, folder):
    mirror = Mirror(folder, uri)
    mirror.sync()
    client.delete_run(runs_of(client, folder)["trial 0"].info.run_id)
    Trial(0, {"optimizer.lr": 0.001}, "failed").save(folder)
    with pytest.raises(Exception, match="active"):
        mirror.sync()
    mirror.sync()
    runs = runs_of(client, folder)
    assert runs["repeat 0.0"].data.tags["mlflow.parentRunId"] == runs["trial 0"].info.run_id


class Door:
    """An address in front of the server that can be opened later."""

    def __init__(self, uri: str) -> None:
        self._behind = int(uri.rpartition(":")[2])
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def open(self) -> None:
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            outside, _ = self._socket.accept()
            inside = socket.create_connection(("127.0.0.1", self._behind))
            for pair in ((outside, inside), (inside, outside)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def finish(folder: SweepFolder) -> None:
    store.write_json(folder.outcome, {"reason": "complete", "ended": time.time()})


def test_what_a_server_missed_while_it_was_away_arrives_later(uri, client, folder):
    said: list[str] = []
    door = Door(uri)
    thread = MirrorThread(folder, Storage(folder.path.parent), door.uri, said.append, interval_s=0.05)
    thread.start()
    while not said:
        time.sleep(0.05)
    assert said == [
        f"MLflow: the server at {door.uri} does not answer; "
        "the sweep continues, and MLflow receives the missing data later"
    ]
    assert not runs_of(client, folder)
    door.open()
    while len(said) < 3:
        time.sleep(0.05)
    assert said[1].startswith(f"MLflow: {door.uri}/#/experiments/")
    assert said[2] == "MLflow is reachable again and up to date"
    finish(folder)
    thread.stop(stall_timeout_s=60)
    runs = runs_of(client, folder)
    assert len(runs) == 9
    assert runs[folder.path.name].info.status == "FINISHED"
    assert len(said) == 3


def test_the_end_says_how_to_see_it_when_the_server_has_ended_with_it(uri, folder, monkeypatch):
    embedded = SimpleNamespace(uri=uri, wait_until_ready=lambda: None, log_in=lambda: None, release=lambda _: None)
    monkeypatch.setattr(mlflow_server, "join_or_start", lambda _: embedded)
    said: list[str] = []
    thread = MirrorThread(folder, Storage(folder.path.parent), None, said.append)
    thread.start()
    finish(folder)
    monkeypatch.setattr(mlflow_server, "is_reachable", lambda *_: False)
    thread.stop(stall_timeout_s=60)
    assert said[-1] == f"MLflow ended with the sweep; `scrimp ui --storage {folder.path.parent}` shows it again"


def test_a_sweep_that_crashed_is_shown_as_failed(uri, client, folder):
    thread = MirrorThread(folder, Storage(folder.path.parent), uri, lambda _: None)
    finish(folder)
    store.write_json(folder.outcome, {"reason": "complete", "ended": time.time() - 5000})  # of an earlier start
    thread.start()
    thread.stop(stall_timeout_s=60)
    run = runs_of(client, folder)[folder.path.name]
    assert (run.info.status, run.data.tags["scrimp.outcome"]) == ("FAILED", "crashed")


def test_a_line_of_more_numbers_than_a_request_may_have_is_sent_in_parts(uri, client, folder):
    wide = {f"score_{i:04d}": float(i) for i in range(2500)}
    files = folder.repeat(0, 1)
    metrics_log.append_row(files.metrics, make_row(kimg=64.0, **wide))
    Mirror(folder, uri).sync("complete")
    run = runs_of(client, folder)["repeat 0.1"]
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("score_")} == wide
    assert curve(client, run, "fd_classifier")[-1][0] == 60


def test_a_line_that_the_server_refuses_holds_up_nothing_else(uri, client, folder):
    files = folder.repeat(0, 1)
    metrics_log.append_row(files.metrics, make_row(kimg=64.0, **{"a name : that * is not allowed": 1.0}))
    metrics_log.append_row(files.metrics, make_row(kimg=68.0, loss=0.25))
    mirror = Mirror(folder, uri)
    mirror.sync("complete")
    assert (68, 0.25) in curve(client, runs_of(client, folder)["repeat 0.1"], "loss")
    assert mirror.refused


class Slow:
    """A server's client that takes its time for every request."""

    def __init__(self, seconds: float):
        self._send, self._seconds = requests.Session.send, seconds

    def __call__(self, session, request, **settings):
        time.sleep(self._seconds)
        return self._send(session, request, **settings)


def test_the_end_waits_for_a_slow_server_as_long_as_it_gets_on_and_shows_how_far(uri, client, folder, monkeypatch):
    monkeypatch.setattr(mirror_thread, "PROGRESS_INTERVAL_S", 0.1)
    slow = Slow(0.05)
    monkeypatch.setattr(requests.Session, "send", lambda session, request, **how: slow(session, request, **how))
    said: list[str] = []
    thread = MirrorThread(folder, Storage(folder.path.parent), uri, said.append)
    thread.start()
    finish(folder)
    thread.stop(stall_timeout_s=5)
    shown = r"MLflow: \d of 8 runs are up to date; Ctrl-C leaves the rest for later"
    assert [line for line in said if re.fullmatch(shown, line)], said
    assert not any("not up to date" in line for line in said)
    assert len(runs_of(client, folder)) == 9


def test_what_the_end_left_out_is_sent_by_scrimp_sync(uri, client, folder, capsys):
    finish(folder)
    main.main(["sync", str(folder.path), "--tracking-uri", uri])
    runs = runs_of(client, folder)
    assert len(runs) == 9
    assert runs[folder.path.name].info.status == "FINISHED"
    assert f"{uri}/#/experiments/" in capsys.readouterr().out


def test_a_sweep_that_runs_is_not_sent_by_another_hand(uri, folder, capsys):
    with store.exclusive(folder.lock, "sweep"), pytest.raises(SystemExit) as ending:
        main.main(["sync", str(folder.path), "--tracking-uri", uri])
    assert ending.value.code == 2
    assert "sends everything to MLflow itself" in capsys.readouterr().err
