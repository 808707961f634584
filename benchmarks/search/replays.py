"""How far to trust `scrimp replay`: methods replayed on a sweep of Scrimp, beside the same methods run for themselves.

`python -m benchmarks.search.replays [SURFACE] [SWEEPS] [METHOD..]` prints the table. A replayed method has found what
the sweep calls good; one that is run for itself, on one node, any recipe whose true score is within 2% of that of the
recommended one.
"""

import copy
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.search import cells
from benchmarks.search.curves import Surface
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Decision, Simulation, Task
from scrimp_platform import store
from scrimp_platform.search import replay
from scrimp_platform.search.replay import METHODS, USUAL
from scrimp_platform.search.verdict import MARGIN
from scrimp_platform.store import SweepFolder

SEEDS = 2
"""Of each replayed method on each sweep."""
FIRST = 10
"""Seed of the first sweep: no replayed method has that of a sweep."""
LONGEST = 3
"""Horizons of the surface for which a method is run for itself."""


class UntilGood(Scrimp):
    """A sweep that ends once it has trained a recipe to the end whose true score is low enough."""

    surface: Surface
    enough: float
    has_found = False

    def propose(self) -> Task | None:
        """Go on until it is found."""
        return None if self.has_found else super().propose()

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        """Look at what is trained to the end."""
        if kimg == self._space.budget.rungs_kimg[-1]:
            self.has_found |= self.surface.truth(task.values) <= self.enough
        return super().report(task, kimg, score, hours, **others)


def run_for_itself(surface: Surface, method: str, seed: int, enough: float) -> float:
    """Return the GPU-hours after which a method on one node has trained a recipe with such a true score to the end."""
    surface = copy.copy(surface)
    surface.space = replay.as_searched(surface.space, METHODS[method])
    with tempfile.TemporaryDirectory(dir=cells.memory()) as folder, cells.no_disk():
        sweep = UntilGood(surface.space, seed, Path(folder))
        sweep.surface = surface
        sweep.enough = enough
        outcome = Simulation(sweep, surface, nodes=1, limit=LONGEST * surface.horizon).run()
    return outcome.spent if sweep.has_found else math.inf


def compare(name: str, seed: int, methods: Sequence[str]) -> dict[str, list[tuple[bool, float, bool, float]]]:
    """Return by method whether it found in the sweep's hours, and after how many of these: replayed, and by itself."""
    surface = cells.SURFACES[name](seed)
    _, folder = cells.cold(name, seed)
    files = SweepFolder(Path(folder.name))
    store.write_json(files.outcome, {"reason": "complete", "trials": len(files.trial_numbers())})
    replayed = replay.replay(files, methods, SEEDS)
    sweep = replayed.recording
    enough = (1 + MARGIN) * surface.truth(sweep.trials[sweep.recommended].params)

    compared: dict[str, list[tuple[bool, float, bool, float]]] = {}
    for own in replayed.methods:
        alone = [run_for_itself(surface, own.method, 1000 * seed + other, enough) for other in range(SEEDS)]
        pairs = zip(own.hours_by_seed, alone, strict=True)
        limit = sweep.search_hours
        compared[own.method] = [(a <= limit, a / limit, b <= limit, b / limit) for a, b in pairs]
    return compared


def main(arguments: Sequence[str]) -> None:
    """Print for each method how often and when it finds as good a recipe."""
    name = arguments[0] if arguments else "synthetic-2"
    sweeps = int(arguments[1]) if len(arguments) > 1 else 5
    methods = arguments[2:] or USUAL
    rows: dict[str, list[tuple[bool, float, bool, float]]] = defaultdict(list)
    for seed in range(FIRST, FIRST + sweeps):
        for method, own in compare(name, seed, methods).items():
            rows[method] += own
            print(name, seed, method, own, file=sys.stderr, flush=True)

    print(
        f"{name}, {sweeps} sweeps: as good a recipe, in hours of the sweep's own search; {SEEDS} seeds of each method"
    )
    print("method        replayed: within 1, %  median   by itself: within 1, %  median")
    for method, own in rows.items():
        within, hours, within_alone, hours_alone = zip(*own, strict=True)
        print(
            f"{method:14} {100 * statistics.fmean(within):20.0f} {statistics.median(hours):8.2f}"
            f" {100 * statistics.fmean(within_alone):24.0f} {statistics.median(hours_alone):8.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
