"""MLflow's server behind a password, with the artifacts of its own storage only: `mlflow server --app-name scrimp`.

On loopback every account of the machine reaches the server, and it reads and writes files as the one that started it.
So each request has to bear the password that only this account can read; and whatever an experiment or a link says,
no file outside the folder of artifacts is served or written.
"""

import base64
import binascii
import fcntl
import hmac
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, fastapi_app
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from scrimp_platform.tracking.mlflow_server import PASSWORD, USER

USERS = "users.lock"
WATCH_INTERVAL_S = 5.0
OPEN = "/health"
"""Says no more than that a server is there, and of which storage."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OwnArtifacts(LocalArtifactRepository):
    """Artifacts in files, none of which lies outside the folder that the server was started with."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._refuse_outside(self.artifact_dir)

    def get_local_path(self, artifact_path: str) -> str:
        """Return where a file lies."""
        return self._refuse_outside(super().get_local_path(artifact_path))

    def list_artifacts(self, path: str | None = None) -> list[Any]:
        """List a folder."""
        self._refuse_outside(Path(self.artifact_dir, path or ""))
        return super().list_artifacts(path)

    def _get_or_create_artifact_dir(self, artifact_path: str | None = None) -> str:
        self._refuse_outside(Path(self.artifact_dir, artifact_path or ""))
        return super()._get_or_create_artifact_dir(artifact_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file or a folder."""
        self._refuse_outside(Path(self.artifact_dir, artifact_path or ""))
        super().delete_artifacts(artifact_path)

    def _refuse_outside(self, path: str | Path) -> str:
        """Return the path; links are followed to see where it leads."""
        allowed = Path(os.environ[ARTIFACTS_DESTINATION_ENV_VAR]).resolve()
        if not Path(path).resolve().is_relative_to(allowed):
            raise MlflowException.invalid_parameter_value("this server keeps artifacts in its own storage only")
        return str(path)


class Authenticated:
    """An ASGI application that asks for the password before it lets a request through to another one."""

    def __init__(self, app: Any, password: str) -> None:
        self._app = app
        self._expected = f"{USER}:{password}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] == OPEN or self._knows(dict(scope["headers"])):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            asks = [(b"www-authenticate", b'Basic realm="MLflow of Scrimp"'), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 401, "headers": asks})
            await send(
                {
                    "type": "http.response.body",
                    "body": b"This server asks for a password; `scrimp ui` says where it is.\n",
                }
            )

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, encoded = headers.get(b"authorization", b"").partition(b" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(given, self._expected)


def keep_artifacts_in_storage() -> None:
    """Let MLflow open no other kind of artifact repository, and make no experiment with a location of its own."""
    registry = artifact_repository_registry._artifact_repository_registry
    registry._registry.clear()
    for scheme in ("", "file"):
        registry.register(scheme, OwnArtifacts)
    registry.register("mlflow-artifacts", MlflowArtifactsRepository)
    create = SqlAlchemyStore.create_experiment

    def create_experiment(
        self: SqlAlchemyStore, name: str, artifact_location: str | None = None, *arguments: Any, **options: Any
    ) -> str:
        if artifact_location:
            raise MlflowException.invalid_parameter_value("artifact_location: this server chooses it by itself")
        return create(self, name, None, *arguments, **options)

    SqlAlchemyStore.create_experiment = create_experiment


def end_with_the_last_user(folder: Path) -> None:
    """End all of the server's processes once nobody holds the lock of its users, not even by a killed process."""
    with (folder / USERS).open("a") as users:
        while True:
            time.sleep(WATCH_INTERVAL_S)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
        # Whoever comes now waits for the lock, and so for the end of this process.
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(WATCH_INTERVAL_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)


def create_app() -> Authenticated:
    """Make what the server runs, in the folder of the storage's MLflow; an entry point of MLflow's names it."""
    keep_artifacts_in_storage()
    folder = Path.cwd()
    threading.Thread(target=end_with_the_last_user, args=(folder,), daemon=True).start()
    return Authenticated(fastapi_app.app, (folder / PASSWORD).read_text())
