"""A sweep without training: learning curves of a real one, replayed with noise on nodes that do not exist.

`python -m benchmarks.replay SWEEP_FOLDER` records the curves anew, those of a sweep's finished repeats.
"""

import csv
import itertools
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.search.curves import Curve, Values
from benchmarks.search.simulate import Decision, Simulation, Task
from scrimp_platform.plan import Plan, SweepOptions
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.worker import ROW
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.manifest import Manifest, Split

if TYPE_CHECKING:
    from scrimp_platform.search.tune_loop import RepeatSearcher

CURVES = Path(__file__).with_name("curves.csv")
OBJECTIVE = "fd_classifier"
NOT_RECORDED = {"images": 0, "step": 0, "nonzero_fraction": 1.0, "train_flops": 0.0}
"""What every row has; the recorded curves lack it, or have it only at rungs."""
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
    return Plan(
        options, space, space.base(), Storage(storage), folder, storage, facts, resumed=False, warm_start=WarmStart()
    )


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
        lines = self.lines(values, seed)
        scores = {line.rung: line.value(OBJECTIVE) for line in lines if line.rung is not None}
        return Curve(lines[-1].seconds / lines[-1].kimg / 3600, scores)

    def lines(self, values: Values, seed: int) -> list[MetricsRow]:
        """Return a curve as this recipe and this seed might have had it."""
        recipe = repr(sorted(values.items()))
        chance = random.Random(recipe)
        curve = chance.choice(self._curves)
        logarithm = chance.gauss(0, NOISE_OF_TRIALS)
        logarithm += random.Random(f"{recipe}/{seed}").gauss(0, NOISE_OF_SEEDS)
        factor = math.exp(logarithm)
        return [scaled(line, factor) for line in curve]


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

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        """Write the lines that a worker has written by this rung, and pass on the last of them."""
        name, repeat = task.key
        lines = self._curves.lines(task.values, task.seed)
        ends = [place for place, line in enumerate(lines) if line.rung is not None]
        end = next(place for place in ends if lines[place].rung == kimg)
        begun = max((place + 1 for place in ends if place < end), default=0)
        with self._ledger.folder.repeat(repeat.trial, repeat.repeat).metrics.open("a") as file:
            file.writelines(metrics_log.row_text(line) for line in lines[begun : end + 1])
        if self._ask(self._searcher.handle_result, name, {ROW: lines[end]}):
            return "continue"
        self._ask(self._searcher.on_trial_complete, name)
        return "stop"

    def end(self, task: Task, failure: str) -> None:
        """Pass on that a repeat has ended."""
        name, _ = task.key
        self._ask(self._searcher.on_trial_complete, name)

    def recommend(self) -> None:
        """Recommend nothing."""

    def front(self) -> list[Values]:
        """Recommend nothing."""
        return []

    def statement(self) -> None:
        """Say nothing."""


def replay(ledger: Ledger, searcher: "RepeatSearcher", places: int, ask: Callable[..., Any]) -> None:
    """Run a sweep on so many places at once and in simulated time."""
    curves = RecordedCurves(ledger.space)
    Simulation(TuneStandIn(ledger, searcher, curves, ask), curves, nodes=places, limit=math.inf).run()


def scaled(line: MetricsRow, factor: float) -> MetricsRow:
    """Return a row with its score multiplied, if it has one."""
    if OBJECTIVE not in line.scores:
        return line
    return replace(line, scores=line.scores | {OBJECTIVE: line.value(OBJECTIVE) * factor})


def read_curves() -> list[list[MetricsRow]]:
    """Return the recorded curves, each as the lines of a `metrics.jsonl`."""
    curves: dict[str, list[MetricsRow]] = defaultdict(list)
    with CURVES.open(newline="") as file:
        for row in csv.DictReader(file):
            number = row.pop("curve")
            values = {name: float(value) for name, value in row.items() if value}
            curves[number].append(MetricsRow.from_entries(NOT_RECORDED | values))
    return list(curves.values())


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
                entries = line.to_entries()
                short = {name: f"{value:.6g}" for name, value in entries.items() if isinstance(value, int | float)}
                writer.writerow(short | {"curve": number})


if __name__ == "__main__":
    record(Path(sys.argv[1]))
