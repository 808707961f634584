"""A sweep's search in optuna-dashboard, on loopback.

The dashboard has no password and can delete studies, so it is given a copy of the sweep's journal.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError

HOST = "127.0.0.1"
PORT = 8080


@dataclass(frozen=True)
class StudyServer:
    """A dashboard that listens, and answers once it is served."""

    server: WSGIServer

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.server.server_port}"


class QuietHandler(WSGIRequestHandler):
    """Answers requests, and prints none of them."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name that it overrides
        """Print nothing."""


@contextlib.contextmanager
def copied(sweep: SweepFolder) -> Iterator[Path]:
    """Copy a sweep's journal for as long as the block lasts.

    Raises
    ------
    UserError
        If the sweep has none.
    """
    if not sweep.journal.is_file():
        raise UserError(f"--study {sweep.path}: has no {sweep.journal.name}; name the folder of a sweep")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copy(sweep.journal, folder))


def start(journal: Path, port: int | None) -> StudyServer:
    """Open a journal in the dashboard; by default on port 8080, or a free one.

    Raises
    ------
    UserError
        If optuna-dashboard is not installed, or the port is in use.
    """
    try:
        import optuna_dashboard
    except ImportError:
        raise UserError("--study: needs optuna-dashboard: pip install optuna-dashboard") from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    app: Any = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(str(journal))))
    for wanted in (port,) if port else (PORT, 0):
        with contextlib.suppress(OSError):
            return StudyServer(make_server(HOST, wanted, app, handler_class=QuietHandler))
    raise UserError(f"--port {port}: in use by another program; choose another one")


def serve(study: StudyServer) -> None:
    """Answer requests until Ctrl-C."""
    with study.server, contextlib.suppress(KeyboardInterrupt):
        study.server.serve_forever()
