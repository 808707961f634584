"""A whole sweep by its command, killed in the middle and started again: real training, Ray, MLflow, report."""

import contextlib
import csv
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from recording_proxy import recording_proxy

from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder, read_json
from scrimp_spaces import space as spaces
from scrimp_trainers.common import metrics_log
from scrimp_trainers.recipe import recipe as recipes

ROOT = Path(__file__).parents[1]
SPACE = """
about: Small enough for a test
recipe: tiny-edm
override: {network.channels: 16, sampler.steps: 2}
search:
  optimizer.lr: {loguniform: [1.0e-3, 1.0e-2]}
  ema.halflife_kimg: {loguniform: [0.1, 1]}
objectives: {fd_classifier: minimize}
scoring: {extractor: classifier, samples: 64}
budget: {trials: 3, rungs_kimg: [2, 6], reduction: 2, leaders: 2, repeats: 3}
"""


def command(folder: Path, data: Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "sweep.py"),
        "--space",
        "lab.yaml",
        "--data",
        str(data),
        "--storage",
        str(folder),
    ]


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    with recording_proxy() as proxy:
        yield proxy


def listening(pid: int) -> list[tuple[str, str]]:
    """Return the command of each process that listens, of a process and all below it, and the address it listens at."""
    listeners = []
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            title = " ".join(each.cmdline())
            connections = each.net_connections("inet")
            listeners += [(title, one.laddr.ip) for one in connections if one.status == psutil.CONN_LISTEN]
    return listeners


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory, scored_digits, proxy) -> dict:
    """Run the sweep until a repeat has finished, kill its driver, and run the same command to its end."""
    environment = os.environ | proxy[0]
    environment.pop("PYTEST_CURRENT_TEST", None)  # where MLflow sees it, it sends no statistics anyway
    work = tmp_path_factory.mktemp("sweep")
    (work / "lab.yaml").write_text(SPACE)
    arguments = command(work / "runs", scored_digits.folder)
    folder = Storage(work / "runs").sweep("lab-digits")
    with (work / "first.log").open("w") as log:
        driver = subprocess.Popen(arguments, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while not any(repeat.status == "finished" for repeat in records.read_records(folder).repeats):
        assert driver.poll() is None, (work / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while not any("uvicorn" in title for title, _ in listening(driver.pid)):  # MLflow may take longer
        assert driver.poll() is None, (work / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    listeners = listening(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {
        files.label: files.metrics.stat()
        for files in folder.repeats()
        if read_json(files.record)["status"] in ("finished", "stopped")
    }
    again = subprocess.run(arguments, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
    results = {"folder": folder, "before": before, "again": again, "work": work, "arguments": arguments}
    return results | {"listeners": listeners}


LISTENERS = {
    r"/gcs_server ": "Ray's control store",
    r"/raylet ": "Ray's node and object managers",
    r"ray::(Dashboard|RuntimeEnv)Agent": "its agents",
    r"/ray/autoscaler/.*/monitor\.py|/ray/dashboard/dashboard\.py": "metrics of Ray's autoscaler and dashboard",
    r"ray::|/sweep\.py ": "Ray's workers",
    r" uvicorn ": "MLflow",
}
"""Which processes of a sweep listen, and what the table of ports in docs/cluster.md calls them."""
CLOUD = re.compile(rb"^GET http://(169\.254\.169\.254|metadata\.google\.internal)/")
"""How Ray asks, whatever its settings are, whether it was started in a cloud."""


def test_whatever_listens_does_so_on_loopback_alone(killed_and_resumed):
    listeners = killed_and_resumed["listeners"]
    addresses = {address.removeprefix("::ffff:") for _, address in listeners}
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), listeners


def test_whatever_listens_is_in_the_table_of_ports(killed_and_resumed):
    section = (ROOT / "docs" / "cluster.md").read_text().split("**Ports.**")[1].split("\n\n")[1]
    named = [row.split(" | ")[2] for row in section.splitlines()[2:]]
    unmet = set(LISTENERS)
    for title, _ in killed_and_resumed["listeners"]:
        kind = next((pattern for pattern in LISTENERS if re.search(pattern, title)), None)
        assert kind, f"listens, but is not in docs/cluster.md: {title}"
        assert any(LISTENERS[kind] in what for what in named), LISTENERS[kind]
        unmet.discard(kind)
    # These take fixed ports, and do without where another Ray of this machine has them.
    assert not [kind for kind in unmet if "monitor" not in kind]


def test_a_sweep_on_one_machine_reaches_none_of_its_processes_by_a_proxy(killed_and_resumed, proxy):
    assert killed_and_resumed["again"].returncode == 0
    assert [line for line in proxy[1] if not CLOUD.search(line)] == []


def test_the_same_command_ends_with_a_leaderboard(killed_and_resumed):
    again, folder = killed_and_resumed["again"], killed_and_resumed["folder"]
    assert again.returncode == 0, again.stderr
    assert re.search(r"Trial \d (is within|is the best|leads)", again.stdout)
    with folder.leaderboard.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["rank"] == "1"
    assert len(rows) == 3
    assert int(rows[0]["repeats"]) == 2
    assert float(rows[0]["fd_classifier_ci_low"]) < float(rows[0]["fd_classifier_mean"])
    assert read_json(folder.outcome)["reason"] == "complete"


def test_finished_repeats_are_not_touched_and_none_is_missing(killed_and_resumed):
    folder, before = killed_and_resumed["folder"], killed_and_resumed["before"]
    after = {files.label: files.metrics.stat() for files in folder.repeats()}
    assert before
    for label, stat in before.items():
        assert (after[label].st_ino, after[label].st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    trials = records.read_records(folder).trials
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert all(repeat.status in ("finished", "stopped") for trial in trials for repeat in trial.repeats)
    for files in folder.repeats():
        marks = [line.images for line in metrics_log.read_rows(files.metrics)]
        assert marks == sorted(set(marks))


def test_running_it_once_more_trains_nothing(killed_and_resumed):
    folder = killed_and_resumed["folder"]
    before = {files.label: files.metrics.stat().st_mtime_ns for files in folder.repeats()}
    once_more = subprocess.run(killed_and_resumed["arguments"], cwd=killed_and_resumed["work"], capture_output=True)
    assert once_more.returncode == 0
    assert {files.label: files.metrics.stat().st_mtime_ns for files in folder.repeats()} == before


def test_the_winning_recipe_is_one_that_train_takes(killed_and_resumed):
    recipe = recipes.load(killed_and_resumed["folder"].best_recipe)
    space = spaces.parse_space(read_json(killed_and_resumed["folder"].description)["space"], "space")
    assert recipe.training.kimg == 6
    assert space.search["optimizer.lr"].allows(recipe.optimizer.lr)


def test_mlflow_has_the_three_levels(killed_and_resumed):
    import sqlite3

    folder: SweepFolder = killed_and_resumed["folder"]
    database = sqlite3.connect(Storage(folder.path.parent).mlflow / "mlflow.db")
    parents = dict(
        database.execute(
            "select r.run_uuid, t.value from runs r left join tags t on t.run_uuid = r.run_uuid "
            "and t.key = 'mlflow.parentRunId'"
        )
    )

    def depth(run: str) -> int:
        return 0 if parents[run] is None else 1 + depth(parents[run])

    depths = [depth(run) for run in parents]
    assert depths.count(0) == 1
    assert depths.count(1) == 3
    assert depths.count(2) == len(list(folder.repeats()))


def test_the_winner_s_model_samples_without_scrimp(killed_and_resumed, tmp_path):
    folder = killed_and_resumed["folder"]
    model = next(files.model for files in folder.repeats() if files.model.exists())
    card = (model / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("set_timesteps(3)", "set_timesteps(4)")
    check = "\nimport sys\nassert not any('scrimp' in name for name in sys.modules)\nprint(tuple(images.shape))"
    answer = subprocess.run([sys.executable, "-c", code + check], cwd=model, capture_output=True, text=True)
    assert answer.stdout.strip() == "(16, 1, 8, 8)", answer.stderr


def test_a_second_driver_of_the_same_sweep_is_refused(killed_and_resumed):
    import fcntl

    with killed_and_resumed["folder"].lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = subprocess.run(
            killed_and_resumed["arguments"], cwd=killed_and_resumed["work"], capture_output=True, text=True
        )
    assert answer.returncode == 2
    assert "in use by another process" in answer.stderr


def test_ctrl_c_ends_it_cleanly_with_what_is_known(scored_digits, tmp_path):
    (tmp_path / "lab.yaml").write_text(SPACE.replace("[2, 6]", "[2, 600]"))
    arguments = command(tmp_path / "runs", scored_digits.folder)
    folder = Storage(tmp_path / "runs").sweep("lab-digits")
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    driver = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    deadline = time.monotonic() + 400
    while not any(repeat.rungs for repeat in records.read_records(folder).repeats):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    assert "Not complete: interrupted" in output
    assert read_json(folder.outcome)["reason"] == "interrupted"
    assert folder.report.exists()
    assert json.loads(folder.description.read_text())["name"] == "lab-digits"
