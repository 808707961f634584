"""Where the regret of a sweep comes from: proposals, halving, the choice of leaders, or that of the recommended one.

`python -m benchmarks.search.losses [SURFACE] [SEEDS]` prints the table.
"""

import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from benchmarks.search import cells
from benchmarks.search.curves import regret
from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder


@dataclass(frozen=True)
class Losses:
    """True regrets in percent: of the best trial that was proposed, trained to the end, raced, and recommended.

    The last one is that of the end, after the race; nan where nothing was raced.
    """

    proposed: float
    complete: float
    raced: float
    recommended: float


def losses(name: str, seed: int) -> Losses:
    """Run a sweep of Scrimp on a surface, and return what is lost where."""
    surface = cells.SURFACES[name](seed)
    outcome, folder = cells.cold(name, seed)
    trials = records.read_records(SweepFolder(Path(folder.name))).trials
    raced = [trial for trial in trials if any(repeat.phase == "race" for repeat in trial.repeats)]
    complete = [trial for trial in trials if trial.status == "complete"]
    best = [
        min((regret(surface, trial.params) for trial in chosen), default=np.nan) for chosen in (trials, complete, raced)
    ]
    return Losses(*(100 * value for value in (*best, outcome.final_regret)))


def main(arguments: Sequence[str]) -> None:
    """Print what is lost where, by seed, and the means."""
    name = arguments[0] if arguments else "synthetic-2"
    seeds = range(int(arguments[1]) if len(arguments) > 1 else 10)
    print(f"{name}: true regret, %, of the best trial that was")
    print("seed  proposed  trained to the end  raced  recommended")
    rows = []
    for seed in seeds:
        rows.append(astuple(losses(name, seed)))
        print(f"{seed:4}  {rows[-1][0]:8.2f}  {rows[-1][1]:18.2f}  {rows[-1][2]:5.2f}  {rows[-1][3]:11.2f}", flush=True)
    means = np.nanmean(rows, axis=0)
    print(f"mean  {means[0]:8.2f}  {means[1]:18.2f}  {means[2]:5.2f}  {means[3]:11.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
