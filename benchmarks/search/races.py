"""Races of a recorded search, again and again with other seeds: what Scrimp says of its leaders, beside the truth."""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.search import cells
from benchmarks.search.cells import Cell
from benchmarks.search.curves import Surface
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Outcome, Simulation

NAME = "scrimp-races"
FIRST_SEED = 10_000
"""Of the races; the searches' seeds are below."""
KEPT = ("stated", "best", "near", "alone", "raced", "truth", "final_regret", "spent", "idle")


def run(surfaces: Iterable[str], seeds: Iterable[int], races: int, results: Path) -> None:
    """Record the search of each seed that has no races yet, and race its leaders so many times."""
    for seed in seeds:
        for surface in surfaces:
            file = Cell(surface, NAME, seed).file(results)
            if file.exists():
                continue
            try:
                records = race_again(cells.SURFACES[surface](seed), seed, races)
            except FileNotFoundError as error:
                print(f"{surface} {NAME} {seed}: {error}", file=sys.stderr, flush=True)
                continue
            cells.save(file, {"races": records})


def race_again(surface: Surface, seed: int, races: int) -> list[dict[str, Any]]:
    """Search once; then resume the sweep so many times, each time with a seed of its own for what is still to do."""
    with tempfile.TemporaryDirectory(dir=cells.memory()) as folder, cells.no_disk():
        searched = Path(folder) / "search"
        searched.mkdir()
        budget = surface.space.budget.model_copy(update={"repeats": 1})
        without_race = surface.space.model_copy(update={"budget": budget})
        Simulation(Scrimp(without_race, seed, searched), surface, step=math.inf, limit=math.inf).run()
        return [_race(surface, searched, Path(folder) / "race", FIRST_SEED + race) for race in range(races)]


def _race(surface: Surface, searched: Path, folder: Path, seed: int) -> dict[str, Any]:
    shutil.copytree(searched, folder)
    race = Simulation(Scrimp(surface.space, seed, folder), surface, step=math.inf, limit=math.inf)
    outcome: Outcome = race.run()
    shutil.rmtree(folder)
    record = cells.summary(outcome)
    return {name: record[name] for name in KEPT}
