"""What sweeps left in the storage folder, for the tests on workstations and for the soak."""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sweep:
    """One sweep's folder."""

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
        path = self.folder / "sweep.log"
        return path.read_text() if path.exists() else ""

    def driver(self) -> int:
        """Return its driver's process, as its node numbers it."""
        return int((self.folder / "driver.lock").read_text().split()[1])

    def done(self) -> dict[str, Path]:
        """Folders of its finished repeats."""
        return self.repeats("finished")

    def underway(self) -> dict[str, Path]:
        """Repeats that have a rung and a checkpoint behind them, and are not finished."""
        saved = {name: path for name, path in self.repeats("running").items() if (path / "checkpoint/last").exists()}
        return {name: path for name, path in saved.items() if any("rung" in line for line in lines(path))}

    def underway_on(self, host: str) -> list[str]:
        """Those of them that train there."""
        return [name for name, path in self.underway().items() if host_of(path) == host]


class Before:
    """What was on disk when a fault struck: repeats that were finished, and what the others had saved."""

    def __init__(self, sweep: Sweep) -> None:
        self.finished = {name: result(path) for name, path in sweep.done().items()}
        self.saved = {name: saved(path) for name, path in sweep.underway().items()}


def result(repeat: Path) -> tuple[list[dict[str, Any]], str]:
    """Return what it has written; the seconds in it tell one training from another to the same numbers."""
    return lines(repeat), (repeat / "repeat.json").read_text()


def saved(repeat: Path) -> list[dict[str, Any]]:
    """Lines of a repeat that its checkpoint has behind it; one after as many images may be written again."""
    images = read_json(repeat / "checkpoint" / "last" / "state.json")["images"]
    return [line for line in lines(repeat) if line["images"] < images]


def lines(repeat: Path) -> list[dict[str, Any]]:
    """Return what it has measured; a line that is being written is left out."""
    written = (repeat / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in written if line.endswith("\n")]


def host_of(repeat: Path) -> str:
    """Where its last worker ran; empty before the first."""
    lock = repeat / "worker.lock"
    words = lock.read_text().split() if lock.exists() else []
    return words[-1] if words else ""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def wait_for(what: str, happened: Callable[[], Any], limit: float, every: float = 1.0) -> Any:
    deadline = time.monotonic() + limit
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what}: not within {limit:g} s"
        time.sleep(every)
    return found
