"""The embedded MLflow server: a child process on loopback, with its artifacts under the storage folder.

Each storage has at most one server. Sweeps that run at the same time share it, and the last one stops it. File locks
show which processes are alive, because the kernel releases them when a process is killed: the server inherits
`server.lock`, and each process that uses it holds `users.lock`. The server stops when nobody holds `users.lock`. The
locks work only on the driver's machine, since locks on a network file system are not reliable.

The server requires a password (mlflow_app.py). It is created once, in a file that only its owner can read.
"""

import contextlib
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from scrimp_platform import store
from scrimp_platform.store import Storage
from scrimp_platform.tracking import mlflow_database
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import try_lock, wait_for_lock

USER_NAME = "scrimp"
PASSWORD_FILE = "password"  # noqa: S105 -- the name of a file
HOST = "127.0.0.1"
PORT = 5000
VIEW = "scrimp"
"""Name of the view with a sweep's columns; the experiment has it as a tag."""
STORAGE_HEADER = "X-Scrimp-Storage"
"""Response header that identifies the storage of a server."""
STEP_TIMEOUT_S = 10.0
"""Time limit of one step of starting or stopping a server."""
STARTUP_TIMEOUT_S = 300.0
"""Time after which a new server that does not respond is given up."""
MONITOR_INTERVAL_S = 10.0


@dataclass
class Server:
    """One user's handle of the server of a storage."""

    folder: Path
    uri: str
    process: subprocess.Popen[bytes] | None
    """None if the server was running already."""
    _users_lock: IO[str] = field(repr=False)
    """The open file `users.lock`, locked in shared mode while the server is used."""

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return self.folder / "server.log"

    def is_ready(self) -> bool:
        """Whether the server responds by now.

        Raises
        ------
        UserError
            If it has ended.
        """
        # Another program may have taken the port while the server was starting, so the response must identify it.
        if is_reachable(self.uri, mlflow_database.folder_id(self.folder)):
            return True
        if not _is_alive(self.folder):
            raise UserError(f"the MLflow server at {self.uri} has ended; {self.log} says why")
        return False

    def wait_until_ready(self) -> None:
        """Wait until the server responds.

        Raises
        ------
        UserError
            If it ends, or does not respond in time.
        """
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise UserError(f"the MLflow server at {self.uri} does not answer; see {self.log}")
            time.sleep(0.2)

    def monitor(self, say: Callable[[str], object]) -> None:
        """Wait until the server ends, and back up its database once a day; a failed backup is passed to `say`.

        Raises
        ------
        UserError
            When the server has ended.
        """
        backup_day = ""
        while True:
            self.is_ready()
            today = time.strftime("%Y-%m-%d")
            if backup_day != today:
                backup_day = today
                try:
                    mlflow_database.back_up(self.folder)
                except UserError as error:
                    say(str(error))
            time.sleep(MONITOR_INTERVAL_S)

    def log_in(self) -> None:
        """Let MLflow's client in this process send the password with every request."""
        os.environ["MLFLOW_TRACKING_USERNAME"] = USER_NAME
        os.environ["MLFLOW_TRACKING_PASSWORD"] = read_or_create_password(self.folder)

    def release(self, timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Stop using the server. The last user stops it and backs up the database.

        A server that has not ended after `timeout_s` is killed; its database stays whole.

        Raises
        ------
        UserError
            If the backup fails; the server has ended all the same.
        """
        if self._users_lock.closed:
            return
        with self._users_lock:
            if not try_lock(self._users_lock):  # others use the server
                return

            if not self.folder.is_dir():  # the storage is gone
                if self.process:
                    _kill(self.process)
                return

            facts = store.read_json(self.folder / "server.json") or {}
            pid = facts.get("pid")
            if pid and _is_alive(self.folder):
                _terminate(pid, self.folder, timeout_s)
            if self.process:
                self.process.wait()
            mlflow_database.back_up(self.folder)


def join_or_start(storage: Storage, port: int | None = None) -> Server:
    """Return the storage's server; if none is running, start one. It may take 20 s until `is_ready` is true.

    Raises
    ------
    UserError
        If the server runs on another machine or on another port than the given one, or cannot be started.
    """
    folder = storage.mlflow
    folder.mkdir(parents=True, exist_ok=True)
    read_or_create_password(folder)

    # With the shared lock held first, no other process stops the server from now on.
    users_lock = (folder / "users.lock").open("a")
    wait_for_lock(users_lock, shared=True)
    process = None
    with store.exclusive(folder / "start.lock", f"MLflow server of {folder}", STEP_TIMEOUT_S):
        if not _is_alive(folder):
            process = _start(folder, port)

    facts = store.read_json(folder / "server.json")
    if facts["host"] != os.uname().nodename:
        raise UserError(f"the MLflow server of {folder} runs on {facts['host']}; use that, or pass a --tracking-uri")
    server = Server(folder, f"http://{HOST}:{facts['port']}", process, users_lock)
    if port not in (None, facts["port"]):
        server.release()
        raise UserError(f"--port {port}: the MLflow server of this storage runs at {server.uri} already; leave it out")
    return server


def read_or_create_password(folder: Path) -> str:
    """Return the password of a storage's server; the first call creates it.

    Raises
    ------
    UserError
        If the file belongs to another account, or other accounts can read it.
    """
    file = folder / PASSWORD_FILE
    with contextlib.suppress(FileExistsError):
        _create_password(file)
    try:
        facts = file.stat()
        password = file.read_text()
    except PermissionError:
        raise UserError(
            f"{file}: the MLflow server of this storage belongs to another account; pass a --tracking-uri"
        ) from None
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise UserError(f"{file}: others can read this password; remove the file to have a new one created")
    return password


def _create_password(file: Path) -> None:
    """Create the password file: readable by its owner only from the start, and never seen half written."""
    temporary = file.with_name(f".{PASSWORD_FILE}.{os.getpid()}.{threading.get_ident()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:  # noqa: PTH123
        stream.write(secrets.token_urlsafe(24))
    try:
        os.link(temporary, file)
    finally:
        temporary.unlink()


def check_storage_name(path: Path) -> None:
    """Refuse a folder whose name contains a character that is special in the address of MLflow's database.

    Raises
    ------
    UserError
        If the path contains `?`, `#` or `%`.
    """
    for character in "?#%":
        if character in str(path):
            raise UserError(
                f"--storage {path}: {character} in its name leads MLflow's database elsewhere; use another folder"
            )


def is_reachable(uri: str, storage_id: str | None = None) -> bool:
    """Whether an MLflow server responds at this address; with `storage_id`, whether it is that storage's server."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as response:  # noqa: S310
            return storage_id is None or response.headers.get(STORAGE_HEADER) == storage_id
    except (OSError, ValueError):
        return False


def check_address(uri: str) -> str:
    """Return a server's address without a trailing slash.

    Raises
    ------
    UserError
        If it is not an HTTP address, or contains a password.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # such as an unpaired bracket
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise UserError(
            "--tracking-uri: a password in the address would appear in logs; write it into ~/.mlflow/credentials, "
            "below [mlflow], as mlflow_tracking_username and mlflow_tracking_password"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--tracking-uri {uri}: not the address of an MLflow server, such as http://host:5000")
    return uri.rstrip("/")


def ui_link(uri: str, experiment: str) -> str:
    """Return the address of an experiment in the MLflow UI, in the view for training, with a sweep's columns."""
    return f"{uri}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def experiment_links(storage: Storage, uri: str) -> dict[str, str]:
    """Return where a server shows the training runs of each dataset, by name: that of the last sweep first."""
    started: dict[str, float] = {}
    links: dict[str, str] = {}
    for sweep in storage.sweeps():
        description = store.read_sound(sweep.description)
        tracking = store.read_sound(sweep.tracking)
        if description and tracking and tracking.get("uri", "").startswith(f"http://{HOST}:"):
            name = description["dataset"]["name"]
            links[name] = ui_link(uri, tracking["experiment"])
            started[name] = max(started.get(name, 0.0), description.get("driver_started", 0.0))
    return {name: links[name] for name in sorted(links, key=lambda name: -started[name])}


def _start(folder: Path, port: int | None) -> subprocess.Popen[bytes]:
    database = mlflow_database.prepare_database(folder)
    port, reservation = _reserve_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--app-name", "scrimp", "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    header = f"{STORAGE_HEADER}:{mlflow_database.folder_id(folder)}"
    command += ["--uvicorn-opts", f"--no-access-log --header {header}"]

    # The settings of the user's own MLflow must not reach this server. Job execution would start eight idle processes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    facts = {"host": os.uname().nodename, "port": port}
    with reservation, (folder / "server.lock").open("a") as lock, (folder / "server.log").open("w") as log:
        wait_for_lock(lock)
        store.write_json(folder / "server.json", facts)
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal must not stop it: the sweep still has data to send
            pass_fds=[lock.fileno(), reservation.fileno()],
        )
    store.write_json(folder / "server.json", facts | {"pid": process.pid})
    return process


def _reserve_port(wanted: int | None) -> tuple[int, socket.socket]:
    """Return a free port, with a socket that reserves it among the MLflow servers of this machine while it is open.

    A server takes seconds until it listens. Without the reservation, two that start at once would choose the same port.
    """
    for port in (wanted,) if wanted else (PORT, 0):
        reservation = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            port = probe.getsockname()[1]
            reservation.bind(f"\0scrimp-mlflow-{port}")  # the zero byte: a name in the kernel, not a file
            return port, reservation
        reservation.close()
    if wanted:
        raise UserError(f"--port {wanted}: in use by another program; choose another one")
    raise UserError(f"MLflow server: no free port on {HOST}")


def _is_alive(folder: Path) -> bool:
    with (folder / "server.lock").open("a") as lock:
        return not try_lock(lock, shared=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _terminate(pid: int, folder: Path, timeout_s: float) -> None:
    """End a server and its workers with SIGTERM, after `timeout_s` with SIGKILL, and wait until they have ended."""
    for signal_number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, STEP_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal_number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not _is_alive(folder):
                return
            time.sleep(0.1)
