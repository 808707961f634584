"""Sweeps on workstations, started from a laptop: everything that `ray up` and `ray submit` promise, and faults.

Each sweep compares the same arms on the same seeds, so each has to end with the same leaderboard, whatever befalls it.
"""

import csv
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import workstations
import yaml
from workstations import Fleet

pytestmark = pytest.mark.fleet

HOSTS = int(os.environ.get("HOSTS", "3"))
RUNGS = [2.0, 16.0]
LIMIT = 1800.0  # seconds until what takes some minutes is given up
SPACE = {
    "recipe": "tiny-edm",
    "override": {"network.channels": 16, "sampler.steps": 2},
    # One more than there are workstations: one repeat has to wait until another is finished.
    "arms": {f"lr-{i}": {"optimizer.lr": 1e-3 * (i + 1)} for i in range(HOSTS + 1)},
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier", "samples": 64},
    "budget": {"trials": HOSTS + 1, "repeats": 1, "rungs_kimg": RUNGS},
}
ALIVE = "[node for node in ray.nodes() if node['Alive']]"
FREE = "ray.available_resources().get('GPU', 0)"


@dataclass(frozen=True)
class Sweep:
    """What a sweep left in the storage folder."""

    folder: Path

    def repeats(self, status: str | None = None) -> dict[str, Path]:
        """Folders of its repeats, all or those of a status, by `trial/repeat`."""
        found = sorted(self.folder.glob("trials/*/repeat-*/repeat.json"))
        kept = [path.parent for path in found if status in (None, read_json(path)["status"])]
        return {str(path.relative_to(self.folder / "trials")): path for path in kept}

    def ranking(self) -> list[dict[str, str]]:
        """Its leaderboard, without what depends on the clock."""
        with (self.folder / "leaderboard.csv").open(newline="") as file:
            return [{name: cell for name, cell in row.items() if name != "gpu_hours"} for row in csv.DictReader(file)]

    def log(self) -> str:
        """What its drivers decided."""
        return (self.folder / "sweep.log").read_text()

    def underway(self) -> dict[str, Path]:
        """Repeats that have a rung and a checkpoint behind them, and are not finished."""
        saved = {name: path for name, path in self.repeats("running").items() if (path / "checkpoint/last").exists()}
        return {name: path for name, path in saved.items() if any("rung" in line for line in lines(path))}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def host_of(repeat: Path) -> str:
    """Where its last worker ran."""
    return (repeat / "worker.lock").read_text().split()[-1]


def lines(repeat: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (repeat / "metrics.jsonl").read_text().splitlines()]


def wait_for(what: str, happened: Callable[[], Any], limit: float, every: float = 1.0) -> Any:
    deadline = time.monotonic() + limit
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what}: not within {limit:g} s"
        time.sleep(every)
    return found


def check_cluster(fleet: Fleet, what: str, expression: str, value: str, limit: float) -> None:
    """Wait until an expression has this value on the head, in a process that has joined the cluster."""
    wait_for(what, lambda: ask(fleet, expression) == value, limit, every=10)


def ask(fleet: Fleet, expression: str) -> str:
    code = f"import ray; ray.init(address='auto', logging_level=40, log_to_driver=False); print('=', {expression})"
    printed = fleet.hosts[0].run(f'python -c "{code}"', timeout=LIMIT)
    return printed.rpartition("= ")[2].strip()


def command(name: str) -> str:
    return f"ray submit cluster.yaml sweep.py --space /mnt/arms.yaml --data digits --name {name}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = workstations.up(HOSTS, tmp_path_factory.mktemp("fleet"))
    try:
        (fleet.folder / "shared" / "arms.yaml").write_text(yaml.safe_dump(SPACE))
        fleet.laptop.run("ray up --yes cluster.yaml", timeout=LIMIT)
        check_cluster(fleet, "every workstation joins", f"len({ALIVE})", str(HOSTS), LIMIT)
        yield fleet
    finally:
        workstations.down()


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> Sweep:
    print(fleet.laptop.run(command("undisturbed"), timeout=LIMIT))
    return Sweep(fleet.storage / "undisturbed")


@pytest.fixture
def submitted(fleet: Fleet) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Submits a sweep and does not wait for it."""
    started: list[subprocess.Popen[bytes]] = []

    def submit(name: str) -> subprocess.Popen[bytes]:
        with (fleet.folder / f"{name}.log").open("ab") as log:
            line = fleet.laptop.command(command(name))
            started.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return started[-1]

    yield submit
    for process in started:
        process.kill()
        process.wait()


class Before:
    """What was on disk when a fault struck: repeats that were finished, and what the others had saved."""

    def __init__(self, sweep: Sweep) -> None:
        self.finished = {name: (lines(path), (path / "repeat.json").read_text()) for name, path in done(sweep).items()}
        self.saved = {name: saved(path) for name, path in sweep.underway().items()}


def done(sweep: Sweep) -> dict[str, Path]:
    return sweep.repeats("finished")


def saved(repeat: Path) -> list[dict[str, Any]]:
    """Lines of a repeat that its checkpoint has behind it; one after as many images may be written again."""
    images = read_json(repeat / "checkpoint" / "last" / "state.json")["images"]
    return [line for line in lines(repeat) if line["images"] < images]


def check(fleet: Fleet, sweep: Sweep, before: Before, undisturbed: Sweep) -> None:
    """Nothing lost, nothing twice, nothing anew, every slot free again, and the ranking of the undisturbed sweep."""
    check_counts(sweep)
    for name, (trained, record) in before.finished.items():
        path = sweep.repeats()[name]
        assert (lines(path), (path / "repeat.json").read_text()) == (trained, record), f"{name} was trained again"
    for name, kept in before.saved.items():
        # The seconds in them tell a repeat that went on from one that was trained again to the same numbers.
        assert lines(sweep.repeats()[name])[: len(kept)] == kept, f"{name} did not go on from its checkpoint"
    assert sweep.ranking() == undisturbed.ranking()
    check_free(fleet)


def check_counts(sweep: Sweep) -> None:
    assert list(done(sweep)) == [f"{trial:04d}/repeat-0" for trial in range(HOSTS + 1)]
    for path in done(sweep).values():
        assert [line["rung"] for line in lines(path) if "rung" in line] == RUNGS
    assert [row["repeats"] for row in sweep.ranking()] == ["1"] * (HOSTS + 1)


def check_free(fleet: Fleet) -> None:
    check_cluster(fleet, "every workstation is there", f"len({ALIVE})", str(HOSTS), LIMIT)
    check_cluster(fleet, "every slot is free", FREE, f"{2.0 * HOSTS}", 120)


def test_a_sweep_submitted_from_the_laptop_uses_every_workstation(fleet, undisturbed):
    check_counts(undisturbed)
    assert {host_of(path) for path in done(undisturbed).values()} == {host.name for host in fleet.hosts}
    check_free(fleet)


def test_what_was_prepared_on_the_way_is_on_the_shared_folder(fleet, undisturbed):
    assert (fleet.storage / "datasets" / "digits" / "dataset.json").is_file()
    assert not list(fleet.hosts[0].home.glob("runs*"))


def test_every_workstation_has_one_token_for_its_user_alone_and_no_log_has_it(fleet, undisturbed):
    tokens = set()
    for host in fleet.hosts:
        token = host.home / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
        tokens.add(token.read_text())
        found = host.run("grep -rlF -f ~/.ray/auth_token /tmp /mnt ~/scrimp/node.env ~/.bashrc || true")
        assert found == ""
    assert len(tokens) == 1


def test_nobody_joins_without_the_token(fleet):
    code = f"import ray; ray.init(address='{fleet.hosts[0].address}:6379', logging_level=40); print('joined')"
    host = fleet.hosts[1]
    assert "joined" in host.run(f'python -c "{code}"', timeout=LIMIT)
    assert "joined" not in host.run(f'RAY_AUTH_TOKEN=guessed python -c "{code}" || true', timeout=LIMIT)


def test_a_workstation_is_gone_without_a_word_and_comes_back(fleet, undisturbed, submitted):
    sweep = Sweep(fleet.storage / "gone")
    submit = submitted("gone")
    host = fleet.hosts[-1]

    def struck() -> list[str]:
        return [name for name, path in sweep.underway().items() if host_of(path) == host.name]

    (name,) = wait_for("a repeat is underway there", struck, LIMIT)
    failure = "repeat {}.{} failed (".format(*map(int, name.split("/repeat-")))
    told = sweep.log().count(failure)
    host.crash()
    before = Before(sweep)
    wait_for("its failure is told", lambda: sweep.log().count(failure) > told, 600)
    host.boot()
    assert submit.wait(timeout=LIMIT) == 0
    check(fleet, sweep, before, undisturbed)


def test_the_driver_is_killed_and_the_same_command_goes_on(fleet, undisturbed, submitted):
    sweep = Sweep(fleet.storage / "killed")
    first = submitted("killed")
    wait_for("some are finished and some underway", lambda: done(sweep) and sweep.underway(), LIMIT)
    driver = (sweep.folder / "driver.lock").read_text().split()[1]
    fleet.hosts[0].run(f"kill -9 {driver}")
    assert first.wait(timeout=120) != 0
    before = Before(sweep)
    assert before.finished
    assert submitted("killed").wait(timeout=LIMIT) == 0
    assert "goes on" in sweep.log()
    check(fleet, sweep, before, undisturbed)
