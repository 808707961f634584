"""The embedded MLflow server: one a storage, on loopback, ended and backed up by the last who uses it."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scrimp_platform import store
from scrimp_platform.store import Storage
from scrimp_platform.tracking import mlflow_server
from scrimp_trainers.common.errors import UserError


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path / "runs of a lab")


@pytest.fixture
def ensure(storage):
    """`mlflow_server.join_or_start` for the storage; whatever it returned is left at the end."""
    with contextlib.ExitStack() as servers:

        def call() -> mlflow_server.Server:
            server = mlflow_server.join_or_start(storage)
            servers.callback(server.release)
            return server

        yield call


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Let a shell script take the place of the server."""

    def install(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(mlflow_server.sys, "executable", str(program))

    return install


@contextlib.contextmanager
def taken(port: int):
    """Occupy a port, unless somebody has it anyway."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", port))
            other.listen()
        yield


def listening(port: int) -> set[str]:
    """Local addresses, as the kernel writes them, of what listens on a port."""
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_one_server_serves_all_who_use_the_storage_and_ends_with_the_last(storage, ensure, monkeypatch):
    monkeypatch.setattr(mlflow_server, "PORT", free_port())
    with taken(mlflow_server.PORT):
        first, second = ensure(), ensure()
        assert first.process
        assert not second.process
        assert first.uri == second.uri
        port = int(first.uri.rpartition(":")[2])
        assert port != mlflow_server.PORT
        first.wait_until_ready()
    assert second.is_ready()
    assert listening(port) == {"0100007F"}  # 127.0.0.1
    assert (storage.mlflow / "mlflow.db").is_file()

    first.release()
    assert second.is_ready()
    assert not (storage.mlflow / "backup").exists()
    second.release()
    assert not mlflow_server.is_reachable(first.uri)
    assert (storage.mlflow / "backup" / f"mlflow-{time.strftime('%Y-%m-%d')}.db").is_file()
    with pytest.raises(UserError, match="ended"):
        second.wait_until_ready()


def test_of_many_that_start_at_once_one_starts_the_server(storage, ensure, pretend):
    pretend("exec sleep 60")
    with ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda _: ensure(), range(8)))
    assert sum(server.process is not None for server in servers) == 1
    assert len({server.uri for server in servers}) == 1
    pid = store.read_json(storage.mlflow / "server.json")["pid"]
    for server in servers[:-1]:
        server.release()
    os.kill(pid, 0)
    servers[-1].release()
    for server in servers:
        if server.process:
            server.process.wait(timeout=10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_servers_of_two_storages_that_start_at_once_choose_different_ports(tmp_path, monkeypatch, pretend):
    monkeypatch.setattr(mlflow_server, "PORT", free_port())
    pretend("exec sleep 60")  # it never listens, as a server in its first seconds
    servers = [mlflow_server.join_or_start(Storage(tmp_path / name)) for name in ("one", "two")]
    assert servers[0].uri == f"http://127.0.0.1:{mlflow_server.PORT}"
    assert servers[1].uri != servers[0].uri
    for server in servers:
        server.release()

    again = mlflow_server.join_or_start(Storage(tmp_path / "three"))
    assert again.uri == servers[0].uri
    again.release()


def test_a_server_that_ignores_sigterm_is_killed_after_its_timeout(ensure, pretend):
    pretend("trap '' TERM; echo up; while true; do sleep 1; done")
    server = ensure()
    while "up" not in server.log.read_text():
        time.sleep(0.05)
    began = time.monotonic()
    server.release(0.5)
    assert 0.5 <= time.monotonic() - began < mlflow_server.STEP_TIMEOUT_S
    assert server.process
    assert server.process.returncode == -9


def test_a_server_that_dies_says_where_to_look(ensure, pretend):
    pretend("echo the disk is full; exit 1")
    server = ensure()
    with pytest.raises(UserError, match=r"server\.log"):
        server.wait_until_ready()
    assert "the disk is full" in server.log.read_text()


def test_a_server_of_another_machine_is_not_taken_for_one_here(storage, ensure, pretend):
    pretend("exec sleep 60")
    ensure()
    facts = storage.mlflow / "server.json"
    store.write_json(facts, store.read_json(facts) | {"host": "ws7"})
    with pytest.raises(UserError, match="runs on ws7"):
        ensure()


def test_who_watches_a_server_backs_up_once_a_day_and_leaves_when_it_has_ended(ensure, pretend, monkeypatch):
    tried: list[Path] = []

    def back_up(folder: Path) -> None:
        tried.append(folder)
        raise UserError("the disk is full")

    pretend("sleep 2; exit 1")
    monkeypatch.setattr(mlflow_server, "MONITOR_INTERVAL_S", 0.1)
    monkeypatch.setattr(mlflow_server.mlflow_database, "back_up", back_up)
    server = ensure()
    said: list[str] = []
    with pytest.raises(UserError, match="has ended"):
        server.monitor(said.append)
    assert said == ["the disk is full"]
    assert tried == [server.folder]


def test_a_sweep_finds_the_server_of_scrimp_ui_and_keeps_it_when_that_is_stopped(storage, ensure, tmp_path):
    storage.path.mkdir()
    command = [
        sys.executable,
        "-c",
        "from scrimp_platform.cli.main import main; main()",
        "ui",
        "--storage",
        storage.path,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout
        line = ui.stdout.readline()
        assert ui.stdout.readline().startswith(f"user name {mlflow_server.USER_NAME}, password in ")
        server = ensure()
        assert not server.process
        assert server.uri in line
        ui.terminate()
        assert ui.wait(timeout=10) == 0
    assert server.is_ready()


def test_a_port_that_is_asked_for_is_used_or_refused(storage, ensure, pretend):
    pretend("exec sleep 60")
    port = free_port()
    with taken(port), pytest.raises(UserError, match=f"--port {port}: in use by another program"):
        mlflow_server.join_or_start(storage, port)
    server = ensure()
    other = int(server.uri.rpartition(":")[2]) + 1
    with pytest.raises(UserError, match=f"--port {other}: the MLflow server of this storage runs at {server.uri}"):
        mlflow_server.join_or_start(storage, other)


def test_the_training_runs_of_each_dataset_are_found_that_of_the_last_sweep_first(storage):
    for name, dataset, experiment, began in (
        ("a", "digits", "1", 10),
        ("b", "cats", "2", 20),
        ("c", "digits", "1", 5),
        ("d", "dogs", "7", 30),
    ):
        folder = storage.sweep(name)
        store.write_json(folder.description, {"dataset": {"name": dataset}, "driver_started": began})
        uri = "https://mlflow.lab" if name == "d" else "http://127.0.0.1:5003"
        store.write_json(folder.tracking, {"uri": uri, "experiment": experiment, "runs": {}})
    links = mlflow_server.experiment_links(storage, "http://host:1")
    assert list(links.items()) == [
        ("cats", mlflow_server.ui_link("http://host:1", "2")),
        ("digits", mlflow_server.ui_link("http://host:1", "1")),
    ]


def test_another_program_on_the_port_does_not_pass_for_the_server(ensure, pretend):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *args):  # noqa: A002
            pass

    pretend("exec sleep 60")
    server = ensure()
    with http.server.HTTPServer(("127.0.0.1", int(server.uri.rpartition(":")[2])), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert mlflow_server.is_reachable(server.uri)
        assert not server.is_ready()
        other.shutdown()


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(UserError, match=r"into ~/\.mlflow/credentials") as caught:
        mlflow_server.check_address("https://ada:s3cret@mlflow.lab:5000")
    assert "s3cret" not in str(caught.value)


def test_the_link_opens_the_view_of_training_with_the_sweeps_columns():
    link = mlflow_server.ui_link("http://127.0.0.1:5000", "7")
    query = "workflowType=machine_learning&viewStateShareKey=scrimp"
    assert link == f"http://127.0.0.1:5000/#/experiments/7/runs?{query}"
