"""Sweeps whose curves are made up, run through the real ledger: real records, rules and journal, no training."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from made_up_rows import make_row
from PIL import Image

from scrimp_platform import store
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.records import Preparation, Repeat
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data import manifest
from scrimp_trainers.data.manifest import Manifest, Shard, Split

TREE: dict[str, Any] = {
    "recipe": "tiny-edm",
    "search": {
        "optimizer.lr": {"loguniform": [5e-4, 1e-2]},
        "network.channels": {"choice": [16, 24, 32]},
        "ema.halflife_kimg": {"loguniform": [0.5, 10.0]},
        "network.dropout": {"uniform": [0.0, 0.3]},
    },
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier", "samples": 1000},
    "budget": {"trials": 14, "rungs_kimg": [10, 20, 40, 60], "reduction": 2, "leaders": 3, "repeats": 3},
}


def make_space(**changes: Any) -> Space:
    budget = TREE["budget"] | changes.pop("budget", {})
    return spaces.parse_space(TREE | changes | {"budget": budget}, "space")


def curve(space: Space, params: dict[str, Any], seed: int) -> Iterator[MetricsRow]:
    """Yield the lines of a repeat: the better the closer its values are to a sweet spot.

    A score of 1/m of the samples is too high by m - 1.
    """
    rng = np.random.default_rng(seed)
    lr, channels = params.get("optimizer.lr", 2e-3), params.get("network.channels", 32)
    miss = abs(np.log(lr / 3e-3)) + abs(np.log(params.get("ema.halflife_kimg", 3) / 3)) / 3
    miss += 2 * params.get("network.dropout", 0)
    parameters = 700.0 * channels**2
    floor = 14 + 9 * miss + 40 / channels + rng.normal(0, 0.7)
    total = space.budget.rungs_kimg[-1]
    rungs = {int(rung): rung for rung in space.budget.rungs_kimg}
    for kimg in range(1, int(total) + 1):
        seconds = kimg * (0.8 + channels / 32) + len([r for r in rungs if r <= kimg]) * 3
        line: dict[str, Any] = {"kimg": float(kimg), "images": kimg * 1000, "step": kimg * 1000 // 64, "lr": lr}
        line |= {"loss": 0.16 + 0.5 * np.exp(-kimg / 6) + 0.02 * miss + rng.normal(0, 0.006), "seconds": seconds}
        if kimg in rungs:
            copied = 0.01 + 0.02 * kimg / total * channels / 32
            line |= {
                "rung": rungs[kimg],
                "fd_classifier": floor + 260 * np.exp(-kimg / (7 + 2 * miss)) + rng.normal(0, 0.3),
            }
            line |= {"memorized_fraction": copied, "memorized_fraction_holdout": 0.012, "parameters": parameters}
            line["fd_classifier"] += space.scoring.samples / space.samples_at(kimg) - 1
            if "fd_classifier_class_mean" in space.objectives:
                line |= by_class(line["fd_classifier"], rng)
            line |= {"train_flops": parameters * kimg * 6e4, "samples": space.samples_at(kimg), "reference": "train"}
        yield make_row(**{name: float(v) if isinstance(v, np.floating) else v for name, v in line.items()})


def by_class(whole: float, rng: np.random.Generator) -> dict[str, float]:
    """Score ten classes, some of them harder than others."""
    values = [whole * (1.2 + 0.15 * (label * 7 % 10)) + rng.normal(0, 1) for label in range(10)]
    scores = {f"fd_classifier_class_{label}": value for label, value in enumerate(values)}
    return scores | {"fd_classifier_class_mean": float(np.mean(values))}


def write_sweep(
    path: Path,
    space: Space,
    fate: Callable[[Repeat], str] = lambda repeat: "",
    most: int = 1000,
    reason: str = "complete",
    seed: int = 5,
) -> SweepFolder:
    """Write the folder of a sweep.

    Parameters
    ----------
    fate
        What makes a repeat fail half-way, if anything.
    most
        Repeats that are handed out; the last one is cut off half-way if the sweep would go on.
    """
    folder = SweepFolder(path)
    dataset = make_dataset(path.parent / "datasets" / "digits")
    facts = manifest.load_manifest(dataset)
    record = {"name": path.name, "space": space.model_dump(mode="json"), "seed": seed, "versions": {"scrimp": "0.1.0"}}
    record |= {"id": path.name, "space_name": "made-up", "started": time.time(), "driver_started": time.time()}
    record["dataset"] = {"name": facts.name, "content_hash": facts.content_hash, "folder": str(dataset)}
    store.write_json(folder.description, record)
    ledger = Ledger(folder, space, seed, 1, lambda decision: None)
    handed = 0
    while handed < most and (repeat := next_repeat(ledger)):
        handed += 1
        failure = fate(repeat) or ("cut off" if handed == most else "")
        _train(ledger, repeat, failure)
    store.write_json(folder.outcome, {"reason": reason, "ended": time.time(), "trials": len(folder.trial_numbers())})
    return folder


def next_repeat(ledger: Ledger) -> Repeat | None:
    """Return what a ledger hands out, in a sweep whose recipes need no reference."""
    work = ledger.propose()
    assert not isinstance(work, Preparation)
    return work


def next_preparation(ledger: Ledger) -> Preparation:
    """Return the reference or proxy that a ledger hands out."""
    work = ledger.propose()
    assert isinstance(work, Preparation)
    return work


def train_all(ledger: Ledger) -> None:
    """Train whatever a ledger has to do."""
    while repeat := next_repeat(ledger):
        _train(ledger, repeat, "")


def _train(ledger: Ledger, repeat: Repeat, failure: str) -> None:
    files = ledger.folder.repeat(repeat.trial, repeat.repeat)
    params = next(trial.params for trial in ledger.trials if trial.number == repeat.trial)
    files.metrics.unlink(missing_ok=True)
    for line in curve(ledger.space, params, repeat.seed):
        if failure and line.kimg > ledger.space.budget.rungs_kimg[-1] * 0.1:
            if failure != "cut off":
                ledger.finish(repeat, failure)
            return
        with files.metrics.open("a") as file:
            file.write(metrics_log.row_text(line))
        if line.rung is not None:
            paint(files, line)
            if not ledger.report(repeat, line):
                return
    ledger.finish(repeat)


def paint(files: RepeatFolder, line: MetricsRow) -> None:
    """Leave pictures behind as a repeat does."""
    rng = np.random.default_rng(files.trial)
    for path in (files.samples / f"{line.rung:g}.png", files.samples_png, files.neighbours_png):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(path)


def make_dataset(folder: Path, name: str = "digits") -> Path:
    shard = Shard(file="train-000000.tar", count=1617, sha256="0" * 64)
    facts = Manifest(
        name=name,
        content_hash="7f3a" * 16,
        size=8,
        channels=1,
        classes=[str(i) for i in range(10)],
        splits={"train": Split(count=1617, per_class=None, shards=[shard])},
        reference="train",
        provenance={"source": "digits"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.MANIFEST_FILE).write_text(facts.to_json())
    return folder
