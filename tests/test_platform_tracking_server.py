"""Which MLflow server a sweep's records go to, and what becomes of the sweep while none answers."""

import socket
import threading
import time

import pytest
from tracked_sweep import ended_sweep

from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_platform.tracking.mirror_thread import MirrorThread
from scrimp_trainers.common.errors import UserError


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return ended_sweep(tmp_path)


class Embedded:
    def __init__(self, name: str):
        self.uri = name

    def wait_until_ready(self):
        if self.uri == "killed":
            raise UserError("it has ended")

    def log_in(self):
        pass

    def release(self, timeout_s=mlflow_server.STEP_TIMEOUT_S):
        self.given = timeout_s


def test_an_embedded_server_that_was_killed_is_started_anew(tmp_path, monkeypatch):
    names = iter(["killed", "anew", "killed", "killed"])
    monkeypatch.setattr(mlflow_server, "join_or_start", lambda storage: Embedded(next(names)))
    first, second = (MirrorThread(SweepFolder(tmp_path / "lab"), Storage(tmp_path), None) for _ in range(2))
    assert first._embedded_server() == "anew"
    with pytest.raises(UserError, match="it has ended"):
        second._embedded_server()


@pytest.mark.parametrize(("total", "given"), [({"total_timeout_s": 0.2}, 0.2), ({}, mlflow_server.STEP_TIMEOUT_S)])
def test_a_server_has_little_time_to_end_where_the_sweep_is_cut_short(folder, monkeypatch, total, given):
    server = Embedded("http://127.0.0.1:9")
    monkeypatch.setattr(mlflow_server, "join_or_start", lambda storage: server)
    thread = MirrorThread(folder, Storage(folder.path.parent), None, str)
    thread._embedded_server()
    thread.start()
    thread.stop(stall_timeout_s=0.2, **total)
    assert server.given == given


def test_no_server_is_started_after_the_end(folder, monkeypatch):
    started: list[object] = []

    class Slow:
        """A server that answers nobody before it is stopped."""

        uri = "http://127.0.0.1:9"

        def __init__(self, storage):
            started.append(self)
            self.ended = threading.Event()

        def wait_until_ready(self):
            assert self.ended.wait(60)
            raise UserError("it has ended")

        def release(self, timeout_s=mlflow_server.STEP_TIMEOUT_S):
            self.ended.set()

    monkeypatch.setattr(mlflow_server, "join_or_start", Slow)
    said: list[str] = []
    thread = MirrorThread(folder, Storage(folder.path.parent), None, said.append)
    thread.start()
    while not started:
        time.sleep(0.01)
    thread.stop(stall_timeout_s=0.1)
    thread._thread.join(60)
    assert not thread._thread.is_alive()
    assert len(started) == 1
    assert said == [f"MLflow is not up to date (it is slow); `scrimp sync {folder.path}` sends the rest"]


def test_a_server_that_never_answers_holds_up_nothing(folder):
    said: list[str] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        thread = MirrorThread(
            folder, Storage(folder.path.parent), f"http://127.0.0.1:{silent.getsockname()[1]}", said.append
        )
        thread.start()
        began = time.monotonic()
        thread.stop(stall_timeout_s=1)
        assert time.monotonic() - began < 3
    assert said == [f"MLflow is not up to date (it is slow); `scrimp sync {folder.path}` sends the rest"]


@pytest.mark.parametrize("uri", ["localhost:5000", "mlruns", "file:///tmp/mlruns", "http://", "http://[x"])
def test_what_is_no_address_of_a_server_is_refused(folder, uri):
    with pytest.raises(UserError, match=r"--tracking-uri .*http://host:5000"):
        MirrorThread(folder, Storage(folder.path.parent), uri)
