"""Whether what a sweep says of ten more trials comes true: stated gains beside true ones, on surfaces with known truth.

`python -m benchmarks.search.gains [SURFACE] [SEEDS]` prints the table.
"""

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.search import cells
from benchmarks.search.curves import Surface
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Simulation, Task
from scrimp_platform.search import gain
from scrimp_platform.search.gain import AHEAD, Gain
from scrimp_platform.search.verdict import MARGIN

EVERY = 5
"""Trials between two statements."""


class Stating(Scrimp):
    """Scrimp, which is asked for its expected gain whenever it has proposed some more trials."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.stated: list[tuple[int, Gain]] = []

    def propose(self) -> Task | None:
        """State the gain first, where it is time for it."""
        trials = self._ledger.trials
        if len(trials) % EVERY == 0 and all(len(trials) != count for count, _ in self.stated):
            stated = gain.of_more_trials(trials, self._space, self._ledger.folder)
            if stated:
                self.stated.append((len(trials), stated))
        return super().propose()

    def recipes(self) -> list[dict]:
        """Return the recipe of each trial."""
        return [trial.params for trial in self._ledger.trials]


def compare(surface: Surface, seed: int) -> list[tuple[int, Gain, float]]:
    """Run a search; return for each statement the trials before it, the statement, and the true gain."""
    with tempfile.TemporaryDirectory(dir=cells.memory()) as folder, cells.no_disk():
        scrimp = Stating(surface.space, seed, Path(folder))
        Simulation(scrimp, surface, limit=math.inf).run()
        truths = [surface.truth(values) for values in scrimp.recipes()]
        compared = []
        for count, stated in scrimp.stated:
            before = np.nanmin(truths[:count])
            after = np.nanmin(truths[: count + AHEAD])
            if count + AHEAD <= len(truths):
                compared.append((count, stated, 1 - after / before))
        return compared


def main(arguments: Sequence[str]) -> None:
    """Print stated and true gains, by how many trials there were."""
    name = arguments[0] if arguments else "synthetic-2"
    seeds = range(int(arguments[1]) if len(arguments) > 1 else 10)
    rows = [row for seed in seeds for row in compare(cells.SURFACES[name](seed), seed)]
    print(f"{name}, {len(seeds)} searches: the gain of {AHEAD} more trials, % of the best true score")
    print("trials  statements  stated  true   stated: over 2%, %  it is")
    for low, high in ((10, 30), (30, 60), (60, 100), (100, 1000)):
        part = [row for row in rows if low <= row[0] < high]
        if part:
            stated = 100 * np.mean([own.share for _, own, _ in part])
            true = 100 * np.mean([value for _, _, value in part])
            likely = 100 * np.mean([own.probability for _, own, _ in part])
            often = 100 * np.mean([value > MARGIN for _, _, value in part])
            print(f"{low:4}-{high - 1:<4} {len(part):8} {stated:8.2f} {true:6.2f} {likely:15.1f} {often:12.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
