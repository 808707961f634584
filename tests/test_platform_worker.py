"""One repeat through Ray Tune and Ray Train: two workers of one process group, early stop included."""

import json
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from process_tree import descendants, title
from ray import tune
from ray.exceptions import RayActorError
from ray.train import UserCallback, WorkerGroupError
from ray.train import torch as ray_torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.tune.integration import ray_train
from test_trainers_run import start_worker
from threadpoolctl import threadpool_info, threadpool_limits

from scrimp_cluster import nodes
from scrimp_cluster.nodes import Node
from scrimp_platform import cluster, plan, store, worker
from scrimp_platform.search import tune_loop
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.sweep_record import sweep_record
from scrimp_platform.worker import cause_of, tune_repeat
from scrimp_spaces import space as spaces
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import DeviceOutOfMemory, Diverged

GONE = "0" * 56
"""The id of a node that is not there."""


def fit_nodes() -> list[str]:
    """Name the node that is there, and one that is not."""
    return [GONE, ray.get_runtime_context().get_node_id()]


@pytest.fixture
def two_slots():
    cluster.start_here(num_cpus=2, num_gpus=2, include_dashboard=True)
    yield
    ray.shutdown()


def test_what_a_train_worker_raised_is_found_in_what_train_raises():
    diverged = Diverged("step 3: loss is nan")
    wrapped = WorkerGroupError("Training failed", {1: UserExceptionWithTraceback(diverged, "Traceback ...")})
    assert cause_of(wrapped) is diverged
    assert cause_of(diverged) is diverged


@pytest.mark.slow
def test_a_rank_without_memory_is_the_cause_and_not_the_connection_that_the_other_lost(
    digits_dataset, tmp_path, monkeypatch
):
    """Two ranks of which the second runs out of memory. The repeat is not tried again: it would not fit again."""
    processes = [
        start_worker("starved", number, tmp_path / "meeting", digits_dataset.folder, tmp_path) for number in range(2)
    ]
    for process in processes:
        assert process.wait(timeout=100) == 0
    failures = {rank: pickle.loads((tmp_path / f"rank-{rank}.pickle").read_bytes()) for rank in range(2)}  # noqa: S301
    for failure in failures.values():
        vars(failure)[worker.NODE] = "the node"
    assert "Connection" in str(failures[0])

    def fail(_):
        raise WorkerGroupError("Training failed", failures)

    reported = []
    monkeypatch.setattr(worker, "_train", fail)
    monkeypatch.setattr(tune, "report", reported.append)
    task = {"sweep": str(tmp_path), "dataset": "", "gpus": 2, "fit_nodes": [], "trial": 0, "repeat": 0}
    tune_repeat(task | {"preparation": ""})
    message = "DeviceOutOfMemory: not even one image fits into the memory of a device"
    assert reported == [{worker.FAILURE: message, worker.NON_RETRYABLE: True, worker.NODE: "the node"}]


@pytest.mark.parametrize(
    "lost",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
    ],
)
def test_what_ended_a_worker_is_the_cause_and_not_the_connection_that_the_others_lost(lost):
    full = DeviceOutOfMemory("not even one image fits into the memory of a device")
    for failure in (lost, full):
        vars(failure)[worker.NODE] = "the node"
    died = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError())
    assert cause_of(WorkerGroupError("Training failed", {0: lost, 1: full})) is full
    assert cause_of(WorkerGroupError("Training failed", {0: lost, 1: died, 2: lost})) is died
    assert cause_of(WorkerGroupError("Training failed", {0: died, 1: full})) is full
    assert cause_of(WorkerGroupError("Training failed", {0: lost})) is lost


def test_a_worker_on_a_gpu_computes_with_its_share_of_the_cores(monkeypatch):
    here = SimpleNamespace(get_node_id=lambda: "b")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(nodes, "alive", lambda: (Node("one", 64, 4, "a"), Node("other", 12, 2, "b")))
    with threadpool_limits(1):
        worker._use_share_of_cores(2)
        assert asked == [6]
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {6}

        worker._use_share_of_cores(0.5)
        worker._use_share_of_cores(0)
        assert asked == [6, 3, 1]


@pytest.mark.parametrize(("gpus", "workers", "each"), [(2, 2, 1), (1, 1, 1), (0.25, 1, 0.25)])
def test_a_repeat_has_a_worker_for_each_of_its_gpus_or_one_with_a_share(tmp_path, monkeypatch, gpus, workers, each):
    asked = []

    class FakeTrainer:
        def __init__(self, *_: Any, scaling_config: Any, **__: Any) -> None:
            asked.append(scaling_config)

        def fit(self) -> None:
            pass

    monkeypatch.setattr(ray_torch, "TorchTrainer", FakeTrainer)
    monkeypatch.setattr(ray_train, "TuneReportCallback", UserCallback)  # it asks for a session of Tune
    task = {"sweep": str(tmp_path), "dataset": "", "gpus": gpus, "fit_nodes": [], "trial": 0, "repeat": 0}
    worker._train(worker.Task(**task, preparation=""))
    assert [(config.num_workers, config.resources_per_worker) for config in asked] == [(workers, {"GPU": each})]


@pytest.fixture
def prepared(scored_digits, tmp_path):
    """Open the ledger of a sweep, and tell what its repeats are told."""

    def prepare(**budget) -> tuple[Ledger, dict]:
        tree = spaces.load_space("quickstart").model_dump() | {
            "scoring": {"extractor": "classifier", "samples": 32},
            "override": {"sampler.steps": 2, "network.channels": 16},
            "search": {"optimizer.lr": {"loguniform": [1e-3, 1e-2]}},
            "budget": {"trials": 2, "rungs_kimg": [0.3, 0.6], "reduction": 2, "repeats": 1} | budget,
        }
        storage = store.Storage(tmp_path)
        folder = storage.sweep("ddp")
        space = spaces.parse_space(tree, "space")
        options = plan.SweepOptions(storage=tmp_path, data=str(scored_digits.folder))
        the_plan = plan.Plan(
            options,
            space,
            space.base(),
            storage,
            folder,
            scored_digits.folder,
            scored_digits.manifest,
            False,
            WarmStart(),
        )
        store.write_json(folder.description, sweep_record(the_plan))
        task = {"sweep": str(folder.path), "dataset": str(scored_digits.folder), "gpus": 2}
        return Ledger(folder, space, 0, devices=2, say=print), task

    return prepare


def test_two_train_workers_share_a_repeat_and_its_successor_finds_the_places_free(two_slots, prepared):
    """Two trials are trained to the first rung; the better one then goes on to the end, in a Train run of its own."""
    ledger, task = prepared(trials=2, leaders=1)
    folder = ledger.folder
    tune_loop.run_repeats(ledger, tune_repeat, task, lambda: 1, tune_loop.Limits(ledger), fit_nodes, reuse=False)
    repeats = [trial.repeats[0] for trial in ledger.trials]
    repeats.sort(key=lambda repeat: repeat.score("fd_classifier", 0.3))
    first, second = repeats
    files = folder.repeat(first.trial, 0)
    assert (first.status, second.status) == ("finished", "stopped"), files.error.read_text()
    assert set(first.rungs) == {0.3, 0.6}
    assert first.started
    assert first.ended
    assert 0 < first.spent < first.ended - first.started  # without the time until Train had its workers
    assert first.last.value("samples") == 32
    assert (files.model / "unet").is_dir()
    assert not folder.repeat(second.trial, 0).checkpoint.exists()
    card = json.loads((files.checkpoint / "last" / "state.json").read_text())
    assert card["images"] == pytest.approx(600, abs=64)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")


@pytest.mark.slow
def test_a_repeat_that_waits_for_gpus_is_handed_out_again_when_other_nodes_are_fit(impatient, two_slots, prepared):
    """What it had asked Ray for is gone then; else its successor would never have its GPUs."""
    ledger, task = prepared(trials=1, rungs_kimg=[0.3])
    other = ray.remote(lambda: time.sleep(300)).options(num_gpus=2).remote()
    here = ray.get_runtime_context().get_node_id()
    said: list[str] = []
    waiting: list[dict] = []

    def say(line: str) -> None:
        said.append(line)
        if "withdrawing repeat" in line:
            ray.cancel(other, force=True)

    def fit() -> list[str]:
        for group in ray.util.placement_group_table().values():
            if not waiting and group["state"] == "PENDING" and "GPU" in group["bundles"][0]:
                waiting.append(group)
        return [here, GONE] if waiting else [here]

    ledger.say = say
    tune_loop.run_repeats(ledger, tune_repeat, task, lambda: 1, tune_loop.Limits(ledger), fit, reuse=False)
    repeat = ledger.trials[0].repeats[0]
    assert len([line for line in said if "withdrawing repeat" in line]) == 1
    assert (repeat.status, repeat.attempt) == ("finished", 1), repeat.cause
    groups = ray.util.placement_group_table()
    assert groups[waiting[0]["placement_group_id"]]["state"] == "REMOVED"


def kill(what: str, ledger: Ledger, attempt: int) -> int:
    """Wait until this attempt at the first repeat has come to a checkpoint, and kill a process of it."""
    files = ledger.folder.repeat(0, 0)
    card = files.checkpoint / "last" / "state.json"
    before = card.stat().st_mtime_ns if card.exists() else 0
    while not (card.exists() and card.stat().st_mtime_ns > before and ledger.trials[0].repeats[0].attempt == attempt):
        time.sleep(0.05)
    pid = next(pid for pid in descendants(os.getpid()) if f"ray::{what}" in title(pid))
    os.kill(pid, signal.SIGKILL)
    return json.loads(card.read_text())["step"]


@pytest.mark.slow
def test_a_killed_train_worker_and_a_killed_controller_cost_an_attempt_each_and_no_place(two_slots, prepared):
    ledger, task = prepared(trials=1, rungs_kimg=[0.3, 6.0, 12.0], retries=2)
    with ThreadPoolExecutor(1) as killer:
        first = killer.submit(kill, "RayTrainWorker", ledger, 1)
        second = killer.submit(kill, "TrainController", ledger, 2)
        tune_loop.run_repeats(ledger, tune_repeat, task, lambda: 1, tune_loop.Limits(ledger), fit_nodes, reuse=False)
    assert 0 < first.result() < second.result()  # it went on from where it was
    repeat = ledger.trials[0].repeats[0]
    assert (repeat.status, repeat.attempt) == ("finished", 3), repeat.cause
    images = [line.images for line in metrics_log.read_rows(ledger.folder.repeat(0, 0).metrics)]
    assert images == sorted(set(images))
    deadline = time.monotonic() + 30
    while ray.available_resources().get("GPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray.available_resources()["GPU"] == 2


@pytest.mark.slow
def test_two_repeats_with_half_a_gpu_each_train_at_the_same_time_on_one(prepared):
    cluster.start_here(num_cpus=2, num_gpus=1, include_dashboard=True)
    try:
        ledger, task = prepared(trials=2, leaders=1, rungs_kimg=[0.3])
        ledger = Ledger(ledger.folder, ledger.space, 0, devices=0.5, say=print)
        halves = task | {"gpus": 0.5}
        tune_loop.run_repeats(ledger, tune_repeat, halves, lambda: 2, tune_loop.Limits(ledger), fit_nodes, reuse=False)
    finally:
        ray.shutdown()
    first, second = (trial.repeats[0] for trial in ledger.trials)
    assert (first.status, second.status) == ("finished", "finished")
    assert first.node == second.node
    assert first.started
    assert first.ended
    assert second.started
    assert second.ended
    assert max(first.started, second.started) < min(first.ended, second.ended)
    for repeat in (first, second):
        row = repeat.last
        assert row
        assert row.seconds
        assert row.value("device_hours") == pytest.approx(0.5 * row.seconds / 3600)
