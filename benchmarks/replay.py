"""A sweep without training: learning curves of a real one, replayed with noise on nodes that do not exist.

`python -m benchmarks.replay SWEEP_FOLDER` records the curves anew, those of a sweep's finished repeats.
"""

import csv
import heapq
import itertools
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_platform.plan import Plan, SweepOptions
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder
from scrimp_spaces import space as spaces
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
    return Plan(options, space, space.base(), Storage(storage), folder, storage, facts, resumed=False)


def replay(folder: SweepFolder, searcher: "RepeatSearcher", places: int, ask: Callable[..., Any]) -> None:
    """Do Tune's part and the workers', on so many places at once and in simulated time.

    Every call of the searcher goes through `ask(function, *arguments)`.
    """
    from scrimp_platform.search.tune_loop import ROW  # it imports Ray

    curves, names = read_curves(), map(str, itertools.count())
    training: list[tuple[float, str, MetricsRow, Iterator[MetricsRow]]] = []
    now = 0.0
    while True:
        while len(training) < places and isinstance(task := ask(searcher.suggest, name := next(names)), dict):
            trial, repeat = task["trial"], task["repeat"]
            rungs = train(folder.repeat(trial, repeat), noisy(curves[trial % len(curves)], trial, repeat))
            line = next(rungs)
            heapq.heappush(training, (now + line.seconds, name, line, rungs))
        if not training:
            return
        now, name, line, rungs = heapq.heappop(training)
        if ask(searcher.handle_result, name, {ROW: line}) and (following := next(rungs, None)):
            heapq.heappush(training, (now - line.seconds + following.seconds, name, following, rungs))
        else:
            ask(searcher.on_trial_complete, name)


def train(files: RepeatFolder, curve: Sequence[MetricsRow]) -> Iterator[MetricsRow]:
    """Write what a worker writes, up to a rung; yield the rung's line."""
    begun = 0
    for end, line in enumerate(curve, 1):
        if line.rung is not None:
            with files.metrics.open("a") as file:
                file.writelines(metrics_log.row_text(one) for one in curve[begun:end])
            begun = end
            yield line


def noisy(curve: Sequence[MetricsRow], trial: int, repeat: int) -> list[MetricsRow]:
    """Return a curve as another trial and another seed might have had it."""
    logarithm = random.Random(f"{trial}").gauss(0, NOISE_OF_TRIALS)
    logarithm += random.Random(f"{trial}.{repeat}").gauss(0, NOISE_OF_SEEDS)
    factor = math.exp(logarithm)
    return [scaled(line, factor) for line in curve]


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
