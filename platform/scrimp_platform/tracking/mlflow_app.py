"""The app of `mlflow server --app-name scrimp`: MLflow behind a password, restricted to its own artifact folder.

Every account of the machine can reach a server on loopback, and the server reads and writes files as the account that
started it. Therefore each request must carry the password, which only that account can read, and no file outside the
artifact folder is served or written, whatever an experiment or a symbolic link says.
"""

import base64
import binascii
import hmac
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from mlflow import server
from mlflow.exceptions import MlflowException
from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, fastapi_app
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from scrimp_platform.tracking.mlflow_server import PASSWORD_FILE, USER_NAME
from scrimp_trainers.common.files import try_lock

USERS_LOCK = "users.lock"
CHECK_INTERVAL_S = 5.0
PUBLIC_PATH = "/health"
"""Needs no password; it shows only that a server is running, and for which storage."""

ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
FIRST_VISIT = """<script>
for (const [name, value] of [
  ["mlflow.workflowType_v1", '"machine_learning"'],
  ["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"],
]) if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
</script>"""
"""Lets a new browser begin on the side for training, with the assistant closed; what a user chooses later stays."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ConfinedArtifacts(LocalArtifactRepository):
    """A local artifact repository that refuses every path outside the server's artifact folder."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._refuse_outside(self.artifact_dir)

    def get_local_path(self, artifact_path: str) -> str:
        """Return the path of a file."""
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
        """Return the path if it is inside the artifact folder once symbolic links are resolved."""
        allowed = Path(os.environ[ARTIFACTS_DESTINATION_ENV_VAR]).resolve()
        if not Path(path).resolve().is_relative_to(allowed):
            raise MlflowException.invalid_parameter_value("this server keeps artifacts in its own storage only")
        return str(path)


class Authenticated:
    """An ASGI application that passes requests with the right password on to another one."""

    def __init__(self, app: Any, password: str) -> None:
        self._app = app
        self._expected = f"{USER_NAME}:{password}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        is_public = scope["type"] == "lifespan" or scope["path"] == PUBLIC_PATH
        if is_public or self._has_password(dict(scope["headers"])):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b"This server requires a password; `scrimp ui` prints where it is.\n"
            await respond(send, 401, b"text/plain", body, (b"www-authenticate", b'Basic realm="MLflow of Scrimp"'))

    def _has_password(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request carries the user name and the password (HTTP basic authentication)."""
        kind, _, encoded = headers.get(b"authorization", b"").partition(b" ")
        try:
            credentials = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(credentials, self._expected)


class TrainingSide:
    """MLflow's ASGI application for training alone: without its assistant, and with `FIRST_VISIT` in its page."""

    def __init__(self, app: Any) -> None:
        self._app = app
        page = Path(server.__file__).parent / server.REL_STATIC_DIR / "index.html"
        self._page = page.read_text().replace("<head>", f"<head>{FIRST_VISIT}", 1).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path == "/":
            headers = [(b"x-frame-options", b"SAMEORIGIN"), (b"cache-control", b"no-cache")]
            await respond(send, 200, b"text/html; charset=utf-8", self._page, *headers)
        elif scope["type"] == "http" and path.startswith(ASSISTANT):
            await respond(send, 403, b"text/plain", b"The assistant is off: it would run commands on this machine.\n")
        else:
            await self._app(scope, receive, send)


async def respond(send: Send, status: int, kind: bytes, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole response."""
    start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def confine_artifacts() -> None:
    """Restrict MLflow to `ConfinedArtifacts`, and refuse experiments with an artifact location of their own."""
    registry = artifact_repository_registry._artifact_repository_registry
    registry._registry.clear()
    for scheme in ("", "file"):
        registry.register(scheme, ConfinedArtifacts)
    registry.register("mlflow-artifacts", MlflowArtifactsRepository)

    create = SqlAlchemyStore.create_experiment

    def create_experiment(
        self: SqlAlchemyStore, name: str, artifact_location: str | None = None, *arguments: Any, **options: Any
    ) -> str:
        if artifact_location:
            raise MlflowException.invalid_parameter_value("artifact_location: this server chooses it itself")
        return create(self, name, None, *arguments, **options)

    SqlAlchemyStore.create_experiment = create_experiment


def stop_when_unused(folder: Path) -> None:
    """Wait until no process holds the users' lock, then end all processes of the server.

    This also ends a server whose users were killed.
    """
    with (folder / USERS_LOCK).open("a") as users_lock:
        time.sleep(CHECK_INTERVAL_S)
        while not try_lock(users_lock):
            time.sleep(CHECK_INTERVAL_S)

        # A new user waits for the lock, and thus for the end of this process.
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(CHECK_INTERVAL_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)


def create_app() -> Authenticated:
    """Create the app; MLflow calls this by its entry point `mlflow.app`, in the server's folder."""
    confine_artifacts()
    folder = Path.cwd()
    threading.Thread(target=stop_when_unused, args=(folder,), daemon=True).start()
    password = (folder / PASSWORD_FILE).read_text()
    return Authenticated(TrainingSide(fastapi_app.app), password)
