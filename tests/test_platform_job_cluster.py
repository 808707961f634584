"""A sweep as a job of a real Ray cluster with a token: it outlives its terminal, is attached to, ends, and goes on."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_platform_sweep import ROOT, SPACE

from scrimp_platform import store
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Start Ray as `ray up` does, but where no other sweep on this machine finds it; yields what leads there."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        port, dashboard, agent, client = (server.getsockname()[1] for server in servers)
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    (home / "token").write_text("a-token-for-the-tests-of-jobs")
    (home / "token").chmod(0o600)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={home}", "--num-cpus=2"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}"]
    before = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (home / "log").open("w") as log:
        ray = subprocess.Popen(command, env=before, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: ray.poll() is not None or "Ray runtime started" in (home / "log").read_text(), 120)
        assert ray.poll() is None, (home / "log").read_text()
        yield environment
    finally:
        ray.terminate()
        ray.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _with_a_terminals_signals() -> None:
    """Undo what `nohup` leaves to its children: a terminal that closes ends what runs in it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A terminal in which the sweep's command runs."""

    def __init__(self, folder: Path, data: Path, environment: dict[str, str], name: str):
        arguments = ["--space", "lab.yaml", "--data", str(data), "--storage", str(folder / "two runs")]
        self.log = folder / name
        with self.log.open("w") as log:
            command = [sys.executable, str(ROOT / "sweep.py"), *arguments]
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env=environment, preexec_fn=_with_a_terminals_signals
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def job(self) -> str:
        return "".join(re.findall("Running as job (.*?),", self.text))


@pytest.fixture(scope="module")
def terminals() -> Iterator[list[Terminal]]:
    """Terminals that are closed at the end, whatever happens."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.process.kill()


@pytest.fixture(scope="module")
def story(environment, scored_digits, terminals, tmp_path_factory) -> dict:
    """Start the sweep and lose the terminal; attach, and end it by Ctrl-C; let it go on to its end."""
    work = tmp_path_factory.mktemp("work")
    (work / "lab.yaml").write_text(SPACE.replace("[2, 6]", "[2, 30]"))
    folder = Storage(work / "two runs").sweep("lab-digits")

    def scored(count: int) -> bool:
        return sum(len(repeat.rungs) for repeat in records.read_records(folder).repeats) >= count

    terminals.append(Terminal(work, scored_digits.folder, environment, "first"))
    wait_for(lambda: scored(1) or terminals[0].process.poll() is not None, 400)
    terminals[0].process.send_signal(signal.SIGHUP)
    terminals[0].process.wait(10)
    driver = store.holder(folder.lock)
    wait_for(lambda: scored(2), 120)

    terminals.append(Terminal(work, scored_digits.folder, environment, "second"))
    wait_for(lambda: "starting repeat 0.0 of the search" in terminals[1].text, 60)
    alone = store.holder(folder.lock)
    terminals[1].process.send_signal(signal.SIGINT)
    terminals[1].process.wait(200)
    ended = store.read_json(folder.outcome)

    terminals.append(Terminal(work, scored_digits.folder, environment, "third"))
    terminals[2].process.wait(600)
    return {"folder": folder, "terminals": terminals, "drivers": (driver, alone), "ended": ended}


def test_the_sweep_outlives_its_terminal(story):
    first, _, _ = story["terminals"]
    assert first.process.returncode == -signal.SIGHUP
    assert story["drivers"][0]
    assert story["drivers"][0] == story["drivers"][1]


def test_the_same_command_attaches_and_shows_all_that_was_printed(story):
    first, second, _ = story["terminals"]
    assert first.job
    assert second.job == first.job
    shown = first.text.split(first.job, 2)[2]
    assert shown in second.text


def test_ctrl_c_ends_it_cleanly_with_what_is_known(story):
    _, second, _ = story["terminals"]
    assert second.process.returncode == 130
    assert "Not complete: interrupted" in second.text
    assert "Traceback" not in second.text
    assert story["ended"]["reason"] == "interrupted"


def test_the_next_job_goes_on_to_the_end(story):
    _, second, third = story["terminals"]
    folder: SweepFolder = story["folder"]
    assert third.process.returncode == 0, third.text
    assert third.job != second.job
    assert "(resumed)" in third.text
    assert re.search(r"Trial \d (leads|is)", third.text), third.text
    assert store.read_json(folder.outcome)["reason"] == "complete"
    trials = records.read_records(folder).trials
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert all(repeat.status in ("finished", "stopped") for trial in trials for repeat in trial.repeats)


def test_the_log_is_lines_and_no_drawing(story):
    for terminal in story["terminals"]:
        assert "\x1b" not in terminal.text
        assert "\r" not in terminal.text
        assert not re.search(r"sdk\.py|job_manager\.py|Running entrypoint", terminal.text)  # nor what Ray has to say


def test_the_token_is_nowhere_to_be_read(story, environment):
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    for file in (file for file in story["folder"].path.parents[1].rglob("*") if file.is_file()):
        assert token not in file.read_bytes()
