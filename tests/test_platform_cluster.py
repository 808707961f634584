"""How many repeats fit on which machines."""

import os
import re
import signal
import subprocess
import threading
from types import SimpleNamespace
from unittest import mock

import pytest
from ray._private import utils, worker
from ray.exceptions import AuthenticationError

from scrimp_platform import cluster, interrupt
from scrimp_platform.cluster import Node, place
from scrimp_trainers.common.errors import UserError

WORKSTATIONS = tuple(Node(f"ws{i}", 16, 2) for i in range(10))


def test_ten_workstations_with_two_gpus_hold_ten_repeats():
    placement = place(WORKSTATIONS, None)
    assert (placement.gpus_per_repeat, placement.places, placement.devices) == (2, 10, 2)


def test_narrower_repeats_fit_twice_as_often():
    assert place(WORKSTATIONS, 1).places == 20


def test_a_machine_without_gpus_runs_one_repeat_a_core():
    placement = place((Node("laptop", 8, 0),), None)
    assert (placement.gpus_per_repeat, placement.places, placement.devices) == (0, 8, 1)


def test_a_head_without_gpus_holds_none_of_the_repeats():
    assert place((Node("head", 64, 0), *WORKSTATIONS), None).places == 10


def test_what_no_node_can_hold_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"--gpus-per-repeat 4: no node has that many; there are ws0: 2 GPUs, 16 CPUs"):
        place(WORKSTATIONS, 4)


def test_a_head_that_trains_nothing_waits_for_its_workers():
    with pytest.raises(UserError, match=r"no node can train yet, there are head: 0 GPUs, 0 CPUs; wait until"):
        place((Node("head", 0, 0),), None)


def test_two_nodes_with_one_gpu_do_not_hold_a_repeat_of_two():
    with pytest.raises(UserError):
        place((Node("a", 8, 1), Node("b", 8, 1)), 2)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_cluster_that_ray_notes_is_found(tmp_path, monkeypatch, variable):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cluster.running_address() is None

    (tmp_path / "ray").mkdir()
    utils.write_ray_address("10.0.0.1:6379")

    assert cluster.running_address() == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("http://127.0.0.1:8265", None, "RAY_ADDRESS http://127.0.0.1:8265: not a cluster's address"),
        ("head:6379", AuthenticationError("no token found"), "head:6379 rejects this user's token: no token found"),
        ("head:6379", ConnectionError("timed out"), "no Ray cluster answers at head:6379; start it"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_in_a_line(monkeypatch, where, error, told):
    monkeypatch.setenv("RAY_ADDRESS", where)
    if error:
        monkeypatch.setattr("ray.init", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=re.escape(told)):
        cluster.peek()


def test_a_machine_too_busy_to_start_ray_is_told_so_in_a_line(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray does

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match="did not start within 30 s: this machine may be overloaded"):
        cluster.start_here()
    assert "RAY_GCS_SERVER_PORT" not in os.environ


@pytest.fixture
def private_ray(monkeypatch):
    """Processes in place of Ray's own, and the exit status with which the driver ends when one of them dies."""
    parts = {name: [SimpleNamespace(process=subprocess.Popen(["sleep", "60"]))] for name in cluster.VITAL_PROCESSES}
    ended, status = threading.Event(), []

    def end(code: int) -> None:
        status.append(code)
        ended.set()
        threading.Event().wait()  # nothing of a process runs after its end

    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=parts))
    monkeypatch.setattr(cluster, "PROCESS_CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(cluster.os, "_exit", end)
    yield SimpleNamespace(parts=parts, ended=ended, status=status)
    for [part] in parts.values():
        part.process.kill()
        part.process.wait()


@pytest.mark.parametrize("name", cluster.VITAL_PROCESSES)
@pytest.mark.parametrize(("requested", "reason", "status"), [(None, "", 1), (signal.SIGTERM, "interrupted", 143)])
def test_the_driver_ends_with_its_ray_and_says_so(private_ray, monkeypatch, capfd, name, requested, reason, status):
    monkeypatch.setattr(interrupt, "_requested", requested)
    with cluster._exit_when_ray_dies():
        assert not private_ray.ended.wait(0.2)
        private_ray.parts[name][0].process.kill()
        assert private_ray.ended.wait(10)
    assert private_ray.status == [status]
    reason = reason or f"Ray's {name} has died"
    assert capfd.readouterr().err == f"scrimp: {reason}; run the same command again to resume\n"


def test_a_ray_that_is_left_may_end(private_ray):
    with cluster._exit_when_ray_dies():
        pass
    private_ray.parts["raylet"][0].process.kill()
    assert not private_ray.ended.wait(0.3)
