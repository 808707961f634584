"""What a sweep loses and saves if the rungs below the last score fewer samples, on a space as small as `ld-diffusion`.

`python -m benchmarks.search.rung_samples [SEEDS] [FEWER] [BIAS]` runs seeds such as `0-19` with all samples at every
rung and with 1/FEWER of them below the last, on the same surface, and prints the paired differences.

A score of 1/m of the samples costs 1/m, and differs in two ways. Its sampling noise has m times the variance, as any
smooth function of sample means; at worst all that the noise of the surface changes from rung to rung is sampling noise,
and so it is here. And a Fréchet distance of N samples is too high by c/N (Chong and Forsyth 2020), about the same for
all recipes: at the full count by BIAS times the best score of the surface, so that the lower rungs have m - 1 times as
much on top.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.background import take_idle_time
from benchmarks.search import cells
from benchmarks.search.curves import Curve, Values, draws
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Simulation
from benchmarks.search.statistics import paired
from benchmarks.search.surfaces import HOURS, LASTING, RUNGS, Synthetic
from scrimp_spaces.space import Space

NOISE = 0.02
SCORE_HOURS = 0.02 * HOURS
"""Of all samples: 0.73 of 36.5 hours of training, as `scrimp spaces ld-diffusion --on 2x24GB` says."""
BUDGET = {"trials": 30, "leaders": 3, "repeats": 11}
"""As in `ld-diffusion`; without a limit in hours, so that both do the same work."""
HORIZON = 10_000.0
DEFAULTS = ("0-19", "5", "0.1")
POINTS = 0.5
"""More regret than this, in points, is too much."""


@dataclass(frozen=True)
class End:
    """What a sweep ended with: the true regret of its recommendation in percent, and GPU-hours."""

    regret: float
    hours: float


class RungSamples:
    """A synthetic surface whose scoring costs, with `1/fewer` of the samples at rungs below the last."""

    def __init__(self, seed: int, fewer: float, bias: float) -> None:
        self._synthetic = Synthetic(seed, NOISE)
        self._fewer = fewer
        self._bias = bias
        self.name = self._synthetic.name
        self.space = _with_budget(self._synthetic.space)
        self.horizon = HORIZON
        self.best = self._synthetic.best

    def truth(self, values: Values) -> float:
        """Return the mean score at the last rung over all seeds."""
        return self._synthetic.truth(values)

    def train(self, values: Values, seed: int) -> Curve:
        """Return what a repeat with this seed shows."""
        curve = self._synthetic.train(values, seed)
        chance = draws(f"{self.name}/{self._synthetic.seed}/samples", values, seed)
        further_std = NOISE * math.sqrt((1 - LASTING) * (self._fewer - 1))
        scores = dict(curve.scores)
        hours = dict.fromkeys(RUNGS, SCORE_HOURS)
        for kimg in RUNGS[:-1]:
            hours[kimg] /= self._fewer
            noise = math.exp(chance.gauss(0, further_std) - further_std**2 / 2)
            scores[kimg] = scores[kimg] * noise + self._bias * (self._fewer - 1) * self.best
        return replace(curve, scores=scores, hours_per_score=hours)


def _with_budget(space: Space) -> Space:
    budget = space.budget.model_copy(update=BUDGET)
    return space.model_copy(update={"budget": budget, "prefer": "best"})


def end(seed: int, fewer: float, bias: float) -> End:
    """Run a sweep until it ends by itself."""
    surface = RungSamples(seed, fewer, bias)
    with tempfile.TemporaryDirectory(dir=cells.memory()) as folder, cells.no_disk():
        sweep = Scrimp(surface.space, seed, Path(folder))
        outcome = Simulation(sweep, surface, step=HORIZON).run()
    return End(100 * outcome.final_regret, outcome.spent)


def main(arguments: Sequence[str]) -> None:
    """Print both ends of each seed, and the paired differences."""
    take_idle_time()
    seeds, fewer, bias = [*arguments, *DEFAULTS[len(arguments) :]]
    first, _, last = seeds.partition("-")

    print(f"synthetic-2: all samples at every rung, and 1/{fewer} of them below the last; bias {bias}")
    print("seed  regret, %: all  fewer  GPU-hours: all  fewer")
    with_all: list[End] = []
    with_fewer: list[End] = []
    for seed in range(int(first), int(last or first) + 1):
        with_all.append(end(seed, 1.0, float(bias)))
        with_fewer.append(end(seed, float(fewer), float(bias)))
        one, other = with_all[-1], with_fewer[-1]
        print(f"{seed:4}  {one.regret:14.2f}  {other.regret:5.2f}  {one.hours:14.0f}  {other.hours:5.0f}", flush=True)

    regret = paired([one.regret for one in with_fewer], [one.regret for one in with_all])
    hours = paired([one.hours for one in with_fewer], [one.hours for one in with_all])
    mean = statistics.fmean(one.regret for one in with_all)
    print(f"mean regret with all {mean:.2f}%; fewer minus all, with 95% intervals:")
    print(f"regret {regret.mean:+.2f} points [{regret.low:+.2f}, {regret.high:+.2f}], at most {POINTS:g} are allowed")
    print(f"GPU-hours {hours.mean:+.1f} [{hours.low:+.1f}, {hours.high:+.1f}]")


if __name__ == "__main__":
    main(sys.argv[1:])
