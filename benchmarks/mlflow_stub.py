"""A server that answers MLflow's client as MLflow's own does, at once: it remembers runs and forgets the rest."""

import contextlib
import json
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlsplit

EXPERIMENT = {"experiment_id": "1", "name": "digits", "lifecycle_stage": "active"}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve from a process of its own; yield the address."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def heard(uri: str) -> list[str]:
    """Return the names of the runs that were made."""
    with urllib.request.urlopen(f"{uri}/heard") as answer:  # noqa: S310
        return json.load(answer)


def _serve(pipe: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    pipe.send(server.server_port)
    server.serve_forever()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # one packet an answer
    runs: dict[str, dict[str, Any]] = {}

    def _answer(self) -> None:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = {
            "/heard": self._heard,
            "/api/2.0/mlflow/experiments/get-by-name": lambda: {"experiment": EXPERIMENT},
            "/api/2.0/mlflow/runs/create": lambda: {"run": self._create(json.loads(body))},
            "/api/2.0/mlflow/runs/get": lambda: {"run": self.runs[parse_qs(address.query)["run_id"][0]]},
            "/api/2.0/mlflow/runs/search": lambda: {"runs": list(self.runs.values())},  # all are one sweep's
            "/api/2.0/mlflow/runs/update": lambda: {"run_info": self.runs[json.loads(body)["run_id"]]["info"]},
        }.get(address.path, dict)()
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        number = uuid.uuid4().hex
        info = {"run_id": number, "run_name": wanted["run_name"], "experiment_id": "1", "status": "RUNNING"}
        info |= {"start_time": wanted["start_time"], "lifecycle_stage": "active"}
        info |= {"artifact_uri": f"mlflow-artifacts:/1/{number}/artifacts"}
        self.runs[number] = {"info": info, "data": {"tags": wanted["tags"]}}
        return self.runs[number]

    def _heard(self) -> list[str]:
        return [run["info"]["run_name"] for run in self.runs.values()]

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""
