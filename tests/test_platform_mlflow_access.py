"""Who gets into the embedded MLflow server, and what it serves: nothing without the password, no file of others."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scrimp_platform.store import Storage
from scrimp_platform.tracking import mlflow_app, mlflow_server
from scrimp_platform.tracking.mlflow_server import PASSWORD_FILE, USER_NAME, Server
from scrimp_trainers.common.errors import UserError

NOBODY = 65534
API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server in a folder that every account of the machine may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = mlflow_server.join_or_start(Storage(Path(folder) / "runs"))
        server.wait_until_ready()
        yield server
        server.release()


def ask(server: Server, path: str, *, body: bytes | None = None, method: str = "GET", secret: str = "") -> int:
    """Return the status of a request."""
    request = urllib.request.Request(server.uri + path, body, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    if secret:
        request.add_header("Authorization", _basic(secret))
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def _basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"{USER_NAME}:{secret}".encode()).decode()


REQUESTS = [
    ("GET", f"{API}/experiments/get-by-name?experiment_name=Default", None),
    ("POST", f"{API}/experiments/create", b'{"name": "mine"}'),
    ("POST", f"{API}/runs/search", b'{"experiment_ids": ["0"]}'),
    ("GET", f"{FILES}/0/secret.txt", None),
    ("PUT", f"{FILES}/0/mine.txt", b"mine"),
    ("GET", "/get-artifact?path=x&run_uuid=0", None),
    ("POST", "/graphql", b'{"query": "{ test { output } }"}'),
    ("GET", "/", None),
    ("GET", "/static-files/index.html", None),
]


@pytest.mark.parametrize("secret", ["", "guess", "scrimp"])
@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
def test_nothing_is_answered_without_the_password(server, method, path, body, secret):
    assert ask(server, path, body=body, method=method, secret=secret) == 401


def test_with_the_password_the_api_answers_and_files_go_in_and_out(server):
    secret = mlflow_server.read_or_create_password(server.folder)
    assert ask(server, REQUESTS[0][1], secret=secret) == 200
    assert ask(server, f"{FILES}/0/a.txt", body=b"text", method="PUT", secret=secret) == 200
    assert ask(server, f"{FILES}/0/a.txt", secret=secret) == 200
    assert (server.folder / "artifacts" / "0" / "a.txt").read_text() == "text"


@pytest.mark.parametrize("path", ["config", "providers", "message", "skills/install"])
def test_the_assistant_which_would_run_commands_here_is_off_even_with_the_password(server, path):
    secret = mlflow_server.read_or_create_password(server.folder)
    for prefix in ("", "/", "/./"):  # no spelling of the path leads past
        assert ask(server, f"{prefix}/ajax-api/3.0/mlflow/assistant/{path}", secret=secret) in (403, 404)


def test_a_browsers_first_visit_is_on_the_side_for_training(server):
    secret = mlflow_server.read_or_create_password(server.folder)
    page = urllib.request.Request(server.uri, headers={"Authorization": _basic(secret)})  # noqa: S310
    with urllib.request.urlopen(page, timeout=20) as response:  # noqa: S310
        html = response.read().decode()
    assert mlflow_app.FIRST_VISIT in html
    assert 'src="static-files/' in html


OTHER_ACCOUNT = """
import json, sys, urllib.error, urllib.request
uri, password, requests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    print("read", open(password).read())
except PermissionError:
    print("refused")
for method, path, body in requests:
    request = urllib.request.Request(uri + path, body.encode() if body else None, method=method)
    try:
        print(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
def test_another_account_of_the_machine_can_neither_read_nor_write_nor_ask(server):
    requests = json.dumps([(method, path, body and body.decode()) for method, path, body in REQUESTS])
    command = ["/usr/bin/python3", "-c", OTHER_ACCOUNT, server.uri, server.folder / PASSWORD_FILE, requests]
    answer = subprocess.run(command, user=NOBODY, group=NOBODY, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["refused", *["401"] * len(REQUESTS)]


def test_the_password_is_its_owners_and_stands_nowhere_else(server):
    file = server.folder / PASSWORD_FILE
    secret = file.read_text().encode()
    assert len(secret) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    shown = [Path(process, "cmdline") for process in Path("/proc").glob("[0-9]*")]
    for place in [*shown, *(path for path in server.folder.rglob("*") if path.is_file() and path != file)]:
        try:
            assert secret not in place.read_bytes(), place
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue


def test_a_password_that_others_could_read_is_refused(tmp_path):
    assert mlflow_server.read_or_create_password(tmp_path) == mlflow_server.read_or_create_password(tmp_path)
    (tmp_path / PASSWORD_FILE).chmod(0o644)
    with pytest.raises(UserError, match="others can read this password"):
        mlflow_server.read_or_create_password(tmp_path)


@pytest.mark.parametrize("location", ["/etc", "file:///etc", "s3://bucket", "mlflow-artifacts:/../.."])
def test_an_experiment_cannot_choose_where_its_files_lie(server, location):
    secret = mlflow_server.read_or_create_password(server.folder)
    body = json.dumps({"name": f"at {location}", "artifact_location": location}).encode()
    assert ask(server, f"{API}/experiments/create", body=body, method="POST", secret=secret) == 400


@pytest.mark.parametrize("source", ["/etc", "file:///etc", "mlflow-artifacts:/../../../../../../etc"])
def test_a_version_of_a_model_cannot_be_a_folder_outside(server, source):
    secret = mlflow_server.read_or_create_password(server.folder)
    name = source.replace("/", "-").replace(":", "-")
    model = json.dumps({"name": name}).encode()
    version = json.dumps({"name": name, "source": source}).encode()
    assert ask(server, f"{API}/registered-models/create", body=model, method="POST", secret=secret) == 200
    assert ask(server, f"{API}/model-versions/create", body=version, method="POST", secret=secret) == 400
    assert ask(server, f"/model-versions/get-artifact?name={name}&version=1&path=passwd", secret=secret) >= 400


def test_links_out_of_the_artifacts_are_not_followed(server, tmp_path):
    secret = mlflow_server.read_or_create_password(server.folder)
    (tmp_path / "diary.txt").write_text("private")
    artifacts = server.folder / "artifacts"
    artifacts.mkdir(exist_ok=True)
    (artifacts / "out").symlink_to(tmp_path)
    (artifacts / "diary.txt").symlink_to(tmp_path / "diary.txt")
    assert ask(server, f"{FILES}/out/diary.txt", secret=secret) == 400
    assert ask(server, f"{FILES}/diary.txt", secret=secret) == 400
    assert ask(server, "/api/2.0/mlflow-artifacts/artifacts?path=out", secret=secret) == 400
    assert ask(server, f"{FILES}/out/mine.txt", body=b"mine", method="PUT", secret=secret) == 400
    assert ask(server, f"{FILES}/out/diary.txt", method="DELETE", secret=secret) == 400
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
    assert (tmp_path / "diary.txt").read_text() == "private"


ENSURE = """
import sys
from pathlib import Path
from scrimp_platform.tracking import mlflow_app, mlflow_server
from scrimp_platform.store import Storage
server = mlflow_server.join_or_start(Storage(Path(sys.argv[1])))
server.wait_until_ready()
print(server.process.pid, flush=True)
sys.stdin.read()
"""


def test_after_the_death_of_its_last_user_the_server_ends_by_itself(tmp_path):
    command = [sys.executable, "-c", ENSURE, tmp_path / "runs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout
        group = int(user.stdout.readline())
        user.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("the server outlived its user")


@pytest.mark.parametrize("name", ["what?", "a%20b", "no#1"])
def test_a_storage_whose_name_would_be_taken_for_an_address_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="use another folder"):
        mlflow_server.check_storage_name(tmp_path / name)
