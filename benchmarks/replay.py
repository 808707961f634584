"""A sweep without training: learning curves of a real one, replayed with noise on nodes that do not exist.

`python -m benchmarks.replay SWEEP_FOLDER` records the curves anew, those of a sweep's finished repeats.
"""

import csv
import itertools
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.search.curves import Curve, Values
from benchmarks.search.simulate import Decision, Simulation, Task
from scrimp_platform.plan import Plan, SweepOptions
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.manifest import Manifest, Split

if TYPE_CHECKING:
    from scrimp_platform.search.tune_loop import RepeatSearcher

CURVES = Path(__file__).with_name("curves.csv")
OBJECTIVE = "fd_classifier"
COLUMNS = (
    *("curve", "kimg", "rung", "loss", "lr", "seconds", "images_per_second", "parameters", "train_flops"),
    *(OBJECTIVE, "precision_classifier", "recall_classifier", "memorized_fraction"),
)
TRIALS, REPEATS = 2, 6
"""Trials a node, and repeats of a raced trial: with one leader for five nodes that is at most three repeats a node."""
NOISE_OF_TRIALS, NOISE_OF_SEEDS = 0.2, 0.05
"""Deviations of the logarithm of a score."""


def make_plan(storage: Path, nodes: int, tracking_uri: str) -> Plan:
    """Plan a sweep of the quickstart space for so many nodes, on a dataset that need not exist."""
    space = spaces.load_space("quickstart")
    changes = {"trials": TRIALS * nodes, "leaders": max(1, nodes // (REPEATS - 1)), "repeats": REPEATS}
    space = space.model_copy(update={"budget": space.budget.model_copy(update=changes)})
    facts = Manifest(
        name="digits",
        content_hash="0" * 64,
        size=8,
        channels=1,
        classes=[str(label) for label in range(10)],
        splits={"train": Split(count=1618, per_class=None, shards=[])},
        reference="train",
        provenance={"source": "digits"},
    )
    folder = SweepFolder(storage / "replay")
    options = SweepOptions(storage=storage, tracking_uri=tracking_uri)
    return Plan(options, space, space.base(), Storage(storage), folder, storage, facts, resumed=False)


class RecordedCurves:
    """A surface of these curves, with noise; nobody knows which recipe is truly the best of it."""

    name = "recorded"
    horizon = 0.0
    best = math.nan

    def __init__(self, space: Space) -> None:
        self.space = space
        self._curves = read_curves()

    def truth(self, values: Values) -> float:
        """Return nan."""
        return math.nan

    def train(self, values: Values, seed: int) -> Curve:
        """Return the rungs of a repeat's lines."""
        rungs = [line for line in self.lines(values, seed) if "rung" in line]
        hours_per_kimg = rungs[-1]["seconds"] / rungs[-1]["kimg"] / 3600
        return Curve(hours_per_kimg, {line["rung"]: line[OBJECTIVE] for line in rungs})

    def lines(self, values: Values, seed: int) -> list[MetricsRow]:
        """Return a curve as this recipe and this seed might have had it."""
        recipe = repr(sorted(values.items()))
        chance = random.Random(recipe)
        curve = chance.choice(self._curves)
        logarithm = chance.gauss(0, NOISE_OF_TRIALS)
        logarithm += random.Random(f"{recipe}/{seed}").gauss(0, NOISE_OF_SEEDS)
        factor = math.exp(logarithm)
        return [line | {OBJECTIVE: line[OBJECTIVE] * factor} if OBJECTIVE in line else line for line in curve]


class TuneStandIn:
    """Tune's part and the workers', for the simulator: every call of the searcher goes through `ask`."""

    def __init__(
        self, ledger: Ledger, searcher: "RepeatSearcher", curves: RecordedCurves, ask: Callable[..., Any]
    ) -> None:
        self._ledger = ledger
        self._searcher = searcher
        self._curves = curves
        self._ask = ask
        self._names = map(str, itertools.count())

    def propose(self) -> Task | None:
        """Return the searcher's next repeat."""
        name = next(self._names)
        config = self._ask(self._searcher.suggest, name)
        if not isinstance(config, dict):
            return None
        trial = next(trial for trial in self._ledger.trials if trial.number == config["trial"])
        repeat = trial.repeats[config["repeat"]]
        return Task((name, repeat), trial.params, repeat.seed)

    def report(self, task: Task, kimg: float, score: float, hours: float) -> Decision:
        """Write the lines that a worker has written by this rung, and pass on the last of them."""
        name, repeat = task.key
        lines = self._curves.lines(task.values, task.seed)
        ends = [place for place, line in enumerate(lines) if "rung" in line]
        end = next(place for place in ends if lines[place]["rung"] == kimg)
        begun = max((place + 1 for place in ends if place < end), default=0)
        with self._ledger.folder.repeat(repeat.trial, repeat.repeat).metrics.open("a") as file:
            file.writelines(metrics_log.row_text(line) for line in lines[begun : end + 1])
        if self._ask(self._searcher.handle_result, name, lines[end]):
            return "continue"
        self._ask(self._searcher.on_trial_complete, name, lines[end])
        return "stop"

    def end(self, task: Task, failure: str) -> None:
        """Pass on that a repeat has ended."""
        name, repeat = task.key
        self._ask(self._searcher.on_trial_complete, name, repeat.last)

    def recommend(self) -> None:
        """Recommend nothing."""

    def statement(self) -> None:
        """Say nothing."""


def replay(ledger: Ledger, searcher: "RepeatSearcher", places: int, ask: Callable[..., Any]) -> None:
    """Run a sweep on so many places at once and in simulated time."""
    curves = RecordedCurves(ledger.space)
    Simulation(TuneStandIn(ledger, searcher, curves, ask), curves, nodes=places, limit=math.inf).run()


def read_curves() -> list[list[MetricsRow]]:
    """Return the recorded curves, each as the lines of a `metrics.jsonl`."""
    with CURVES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ({name: float(value) for name, value in row.items() if value} for row in rows)
    return [
        [{name: value for name, value in row.items() if name != "curve"} for row in curve]
        for _, curve in itertools.groupby(numbers, key=lambda row: row["curve"])
    ]


def record(sweep: Path) -> None:
    """Write the curves of a sweep's finished repeats."""
    from scrimp_platform.search import records

    folder = SweepFolder(sweep)
    finished = [repeat for repeat in records.read_records(folder).repeats if repeat.status == "finished"]
    with CURVES.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for number, repeat in enumerate(finished):
            for line in metrics_log.read_rows(folder.repeat(repeat.trial, repeat.repeat).metrics):
                short = {name: f"{value:.6g}" for name, value in line.items() if isinstance(value, int | float)}
                writer.writerow(short | {"curve": number})


if __name__ == "__main__":
    record(Path(sys.argv[1]))
