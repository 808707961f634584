"""The embedded MLflow server: a child process on loopback, with its artifacts under the storage folder.

A storage has one, shared by the sweeps that use it at the same time; the last to leave stops it. Locks say what is
alive, since the system gives up those of a killed process: the server inherits `server.lock`, whoever uses it holds
`users.lock`, and when nobody does it ends by itself. They are for one machine, that of the driver: on a network file
system locks are not to be relied on.

It asks for a password (mlflow_app.py), which is made once, in a file that its owner alone can read.
"""

import contextlib
import fcntl
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

USER = "scrimp"
PASSWORD = "password"  # noqa: S105 -- the name of a file
HOST = "127.0.0.1"
PORT = 5000
HEADER = "X-Scrimp-Storage"
PATIENCE = 10.0  # seconds that one step of starting or stopping may take
START = 300.0  # seconds until a server that does not answer is given up
WATCH = 10.0  # seconds between two looks at a server


@dataclass
class Server:
    """The server of a storage, as one of its users sees it."""

    folder: Path
    uri: str
    process: subprocess.Popen[bytes] | None
    """None if it ran before this user came."""
    _seat: IO[str] = field(repr=False)

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    def ready(self) -> bool:
        """Whether it answers by now.

        Raises
        ------
        UserError
            If it has ended.
        """
        # Another program may have taken the port while the server was starting, so who answers has to say whose it is.
        if answers(self.uri, mlflow_database.identity(self.folder)):
            return True
        if not _alive(self.folder):
            raise UserError(f"the MLflow server at {self.uri} has ended; {self.log} says why")
        return False

    def wait(self) -> None:
        """Wait until it answers.

        Raises
        ------
        UserError
            If it ends instead, or does neither for long.
        """
        deadline = time.monotonic() + START
        while not self.ready():
            if time.monotonic() > deadline:
                raise UserError(f"the MLflow server at {self.uri} does not answer; see {self.log}")
            time.sleep(0.2)

    def watch(self, say: Callable[[str], object]) -> None:
        """Stay while it runs, and back its database up once a day; `say` is called where that fails.

        Raises
        ------
        UserError
            When it has ended.
        """
        saved = ""
        while True:
            self.ready()
            today = time.strftime("%Y-%m-%d")
            if saved != today:
                saved = today
                try:
                    mlflow_database.back_up(self.folder)
                except UserError as error:
                    say(str(error))
            time.sleep(WATCH)

    def log_in(self) -> None:
        """Let MLflow's client in this process give the password with every request."""
        os.environ["MLFLOW_TRACKING_USERNAME"] = USER
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password(self.folder)

    def stop(self) -> None:
        """Leave the server; if nobody else uses it, it ends, and the database is backed up.

        Raises
        ------
        UserError
            If that fails; the server has ended all the same.
        """
        if self._seat.closed:
            return
        with self._seat:
            try:
                fcntl.flock(self._seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if not self.folder.is_dir():  # the storage is gone
                if self.process:
                    _kill(self.process)
                return
            pid = (store.read_json(self.folder / "server.json") or {}).get("pid")
            if pid and _alive(self.folder):
                _end(pid, self.folder)
            if self.process:
                self.process.wait()
            mlflow_database.back_up(self.folder)


def ensure(storage: Storage) -> Server:
    """Return the storage's server, started now if none runs; it may take 20 s until it is `ready`.

    Raises
    ------
    UserError
        If it runs on another machine, or cannot be started.
    """
    folder = storage.mlflow
    folder.mkdir(parents=True, exist_ok=True)
    password(folder)
    seat = (folder / "users.lock").open("a")
    fcntl.flock(seat, fcntl.LOCK_SH)
    with store.exclusive(folder / "start.lock", f"MLflow server of {folder}", PATIENCE):
        process = None if _alive(folder) else _start(folder)
    facts = store.read_json(folder / "server.json")
    if facts["host"] != os.uname().nodename:
        raise UserError(f"the MLflow server of {folder} runs on {facts['host']}; use that, or name a --tracking-uri")
    return Server(folder, f"http://{HOST}:{facts['port']}", process, seat)


def password(folder: Path) -> str:
    """Return the password of a storage's server, made now if there is none.

    Raises
    ------
    UserError
        If its file belongs to somebody else, or others could read it.
    """
    file = folder / PASSWORD
    with contextlib.suppress(FileExistsError):
        # Of its owner alone from the first moment; whole under its name or not there at all.
        made = folder / f".{PASSWORD}.{os.getpid()}.{threading.get_ident()}"
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as secret:  # noqa: PTH123
            secret.write(secrets.token_urlsafe(24))
        try:
            os.link(made, file)
        finally:
            made.unlink()
    try:
        facts = file.stat()
        secret = file.read_text()
    except PermissionError:
        raise UserError(
            f"{file}: the MLflow server of this storage is another account's; name a --tracking-uri"
        ) from None
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise UserError(f"{file}: others can read this password; remove the file, and a new one is made")
    return secret


def check_storage(path: Path) -> None:
    """Refuse a folder whose name MLflow would take apart as an address.

    Raises
    ------
    UserError
        If there is `?`, `#` or `%` in it.
    """
    if odd := [character for character in "?#%" if character in str(path)]:
        raise UserError(f"--storage {path}: {odd[0]} in its name leads MLflow's database elsewhere; use another folder")


def answers(uri: str, identity: str | None = None) -> bool:
    """Whether an MLflow server answers at this address, the one of this identity if that is given."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as response:  # noqa: S310
            return identity is None or response.headers.get(HEADER) == identity
    except (OSError, ValueError):
        return False


def check_address(uri: str) -> str:
    """Return a server's address without a slash at its end.

    Raises
    ------
    UserError
        If it is none, or one with a password.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # a bracket alone, for one
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise UserError(
            "--tracking-uri: a password in the address would stand in logs; write it into ~/.mlflow/credentials, "
            "below [mlflow], as mlflow_tracking_username and mlflow_tracking_password"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--tracking-uri {uri}: not the address of an MLflow server, such as http://host:5000")
    return uri.rstrip("/")


def ui_link(uri: str, experiment: str) -> str:
    """Address of an experiment in the MLflow UI, in its view of training rather than of language models."""
    return f"{uri}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def _start(folder: Path) -> subprocess.Popen[bytes]:
    database, port = mlflow_database.prepare(folder), _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--app-name", "scrimp", "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    command += ["--uvicorn-opts", f"--no-access-log --header {HEADER}:{mlflow_database.identity(folder)}"]
    # Settings of the user's own MLflow are not meant for this server. Its job runners are eight processes for nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    facts = {"host": os.uname().nodename, "port": port}
    with (folder / "server.lock").open("a") as lock, (folder / "server.log").open("w") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.write_json(folder / "server.json", facts)
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which still has things to tell
            pass_fds=[lock.fileno()],
        )
    store.write_json(folder / "server.json", facts | {"pid": process.pid})
    return process


def _free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return probe.getsockname()[1]
    raise UserError(f"MLflow server: no free port on {HOST}")


def _alive(folder: Path) -> bool:
    with (folder / "server.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end(pid: int, folder: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not _alive(folder):
                return
            time.sleep(0.1)
