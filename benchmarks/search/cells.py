"""Cells of the comparison: one method on one surface with one seed, each in a small file once it is finished."""

import dataclasses
import functools
import json
import math
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.search import peers, tables, warm
from benchmarks.search.curves import Surface
from benchmarks.search.goals import ConstrainedSynthetic, TwoObjectives
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Method, Outcome, Simulation
from benchmarks.search.surfaces import Synthetic
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

ROOT = Path(__file__).parents[2]
TABLES = ROOT / ".venv-search" / "tables"
PEERS_PYTHON = ROOT / ".venv-search" / "bin" / "python"
RESULTS = Path(__file__).with_name("results")
MEMORY = Path("/dev/shm")  # noqa: S108

SURFACES: Mapping[str, Callable[[int], Surface]] = {
    "synthetic-2": partial(Synthetic, noise=0.02),
    "synthetic-5": partial(Synthetic, noise=0.05),
    "synthetic-10": partial(Synthetic, noise=0.10),
    "synthetic-2-constrained": partial(ConstrainedSynthetic, noise=0.02),
    "synthetic-2-two-objectives": partial(TwoObjectives, noise=0.02),
    **{name: partial(tables.Table, name, folder=TABLES) for name in tables.SOURCES},
}
"""From a seed."""
SCRIMP = "scrimp"
SWEEPS: Mapping[str, Mapping[str, Any]] = {
    SCRIMP: {},
    "scrimp-cheapest": {"prefer": "cheapest"},
    "scrimp-tpe": {"proposals": "tpe"},
    "scrimp-random": {"proposals": "random"},
    "scrimp-gp": {"proposals": "gp"},
}
"""Sweeps of Scrimp, by what their space has in place of a surface's."""
WARM = "scrimp-warm"
"""A sweep that is given those of the same seed on all related surfaces."""
MISLED = "scrimp-misled"
"""A sweep that is given these in reverse order; on a synthetic surface, three sweeps on unrelated ones."""
BEFORE = "scrimp-before"
"""Scrimp before it paused and promoted trials: recorded cells, which cannot be run again."""
PEERS: Mapping[str, Callable[[Surface, int], Method]] = {
    "random": peers.Random,
    "optuna-tpe": partial(peers.Optuna, sampler="TPESampler"),
    "optuna-tpe-halving": partial(peers.Optuna, sampler="TPESampler", pruned=True),
    "optuna-gp": partial(peers.Optuna, sampler="GPSampler"),
    "optuna-nsga2": partial(peers.Optuna, sampler="NSGAIISampler"),
    "ray-optuna-asha": peers.Ray,
    "syne-tune-asha": partial(peers.SyneTune, scheduler="ASHA"),
    "syne-tune-bohb": partial(peers.SyneTune, scheduler="BOHB"),
    "syne-tune-mobster": partial(peers.SyneTune, scheduler="MOBSTER"),
    "smac": peers.Smac,
}
OF_SEVERAL_GOALS = ("violations", "volumes", "infeasible")
METHODS = (*SWEEPS, WARM, MISLED, BEFORE, *PEERS)


@dataclass(frozen=True)
class Cell:
    """One method on one surface with one seed."""

    surface: str
    method: str
    seed: int

    def file(self, results: Path) -> Path:
        """Where its outcome is kept."""
        return results / self.surface / self.method / f"{self.seed:04}.json"


def run(cells: Iterable[Cell], results: Path) -> None:
    """Run the cells that have not been run; one whose method cannot run says why, and is tried again next time."""
    for cell in cells:
        if cell.file(results).exists():
            continue
        try:
            record = summary(simulate(cell))
        except Exception as error:
            reason = traceback.format_exception_only(error)[-1].strip()
            print(f"{cell.surface} {cell.method} {cell.seed}: {reason}", file=sys.stderr, flush=True)
            save(unavailable(results, cell.surface, cell.method), {"reason": reason})
            continue
        unavailable(results, cell.surface, cell.method).unlink(missing_ok=True)
        save(cell.file(results), record)


def unavailable(results: Path, surface: str, method: str) -> Path:
    """Where it is kept why a method did not run."""
    return results / surface / method / "unavailable.json"


def simulate(cell: Cell) -> Outcome:
    """Run a cell until the surface's GPU-hours are spent.

    Scrimp has them as its budget, and recommends the best recipe, not the cheapest of those that cannot be told apart.
    """
    surface = SURFACES[cell.surface](cell.seed)
    if cell.method in PEERS:
        return Simulation(PEERS[cell.method](surface, cell.seed), surface).run()

    if cell.method == SCRIMP:
        return cold(cell.surface, cell.seed)[0]
    with tempfile.TemporaryDirectory(dir=memory()) as folder, no_disk():
        space = space_of(surface, SWEEPS.get(cell.method, {}))
        sweep = Scrimp(space, cell.seed, Path(folder), start_of(cell, space))
        return Simulation(sweep, surface).run()


def space_of(surface: Surface, changes: Mapping[str, Any]) -> Space:
    """Return the space of a sweep of Scrimp."""
    budget = surface.space.budget.model_copy(update={"max_gpu_hours": surface.horizon})
    return surface.space.model_copy(update={"budget": budget, "prefer": "best"} | dict(changes))


@functools.cache
def cold(name: str, seed: int) -> tuple[Outcome, "tempfile.TemporaryDirectory[str]"]:
    """Return what came of Scrimp's sweep without a warm start, and its folder."""
    surface = SURFACES[name](seed)
    folder = tempfile.TemporaryDirectory(dir=memory(), prefix=f"{name}-")
    with no_disk():
        space = space_of(surface, {})
        outcome = Simulation(Scrimp(space, seed, Path(folder.name)), surface).run()
        warm.describe(SweepFolder(Path(folder.name)), space, name)
    return outcome, folder


def start_of(cell: Cell, space: Space) -> WarmStart:
    """Return what a cell's sweep is given of earlier ones."""
    if cell.method not in (WARM, MISLED):
        return WarmStart()
    if cell.method == MISLED and cell.surface not in tables.SOURCES:
        earlier = [cold(cell.surface, seed)[1] for seed in warm.unrelated_seeds(cell.seed)]
        return warm.given([Path(folder.name) for folder in earlier], space)
    earlier = [cold(name, cell.seed)[1] for name in warm.related(cell.surface)]
    start = warm.given([Path(folder.name) for folder in earlier], space)
    return start if cell.method == WARM else warm.reversed_order(start)


def memory() -> Path | None:
    """Where files are kept in memory, if there is such a place: what is measured is the search, not a disk."""
    return MEMORY if MEMORY.is_dir() else None


def no_disk() -> Any:
    """Return a context in which nobody waits for a disk."""
    return mock.patch("os.fsync")


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return what is kept of an outcome."""
    record = dataclasses.asdict(outcome)
    record.pop("hours")
    for name in OF_SEVERAL_GOALS:
        if not record[name]:  # the surface has neither constraints nor several objectives
            record.pop(name)
    return {name: short(value) for name, value in record.items()}


def short(value: Any) -> Any:
    """Return numbers with six digits, and none in place of nan."""
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def save(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record on one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(f".{os.getpid()}")
    partial_file.write_text(json.dumps(record) + "\n")
    partial_file.replace(file)


def load(surface: str, method: str, seeds: Iterable[int], results: Path) -> dict[int, dict[str, Any]]:
    """Return the records of the cells that are there, by seed."""
    files = {seed: Cell(surface, method, seed).file(results) for seed in seeds}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def median_hours(records: Iterable[Mapping[str, Any]], within: float, step: float) -> float:
    """Return the median of the GPU-hours after which the recommendation stays this near the best; inf if most never do.

    It has to stay so up to the horizon: a recommendation that was good for a while is no use to who ends later.
    """
    return statistics.median(hours_to(record["regrets"], within, step) for record in records)


def hours_to(regrets: list[float | None], within: float, step: float) -> float:
    """Return the GPU-hours from which on all regrets are within this."""
    hours = math.inf
    for place in reversed(range(len(regrets))):
        regret = regrets[place]
        if regret is None or regret > within:
            break
        hours = step * (place + 1)
    return hours
