"""A made-up sweep with every kind of file that a real one leaves, written by the project's own writers; no training."""

import csv
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from made_up_sweep import make_space, write_sweep
from PIL import Image
from trainers_small import small_state

from scrimp_platform import node_metrics, recommended, store
from scrimp_platform.log import Log
from scrimp_platform.search import steering, warm_start
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.records import Preparation
from scrimp_platform.search.steering import Steering
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import RepeatFolder, SweepFolder, WorkFolder
from scrimp_platform.sweep import write_results
from scrimp_trainers.common import checksums, environment, metrics_log
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.export import export_model
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training import checkpoint, snapshots

SPACE = make_space(
    proposals="tpe",
    search={
        "optimizer.lr": {"loguniform": [5e-4, 1e-2]},
        "ema.halflife_kimg": {"loguniform": [0.5, 10.0]},
        "network.dropout": {"uniform": [0.0, 0.3]},
    },
    override={"network.channels": 8, "network.attention": [], "network.blocks": 1, "sampler.steps": 2},
    budget={"trials": 6, "leaders": 2, "repeats": 4, "rungs_kimg": [4, 8]},
)
SEED = 3


def write_finished_sweep(path: Path) -> SweepFolder:
    """Write the folder. Its driver is said to have been interrupted, so that `scrimp status` reads all of it."""
    folder = write_sweep(path, SPACE, reason="interrupted", seed=SEED)
    _write_as_driver(folder)
    _write_requests(folder)
    chosen = recommended.find(folder)
    _write_as_worker(chosen.files, chosen.seed)
    _write_as_mlflow_and_ray(folder)
    write_results(folder, SPACE)
    return folder


def open_ledger(folder: SweepFolder, said: list[str]) -> tuple[Ledger, Steering]:
    """Open a sweep as a resumed driver does."""
    ledger = Ledger(folder, SPACE, SEED, 1, said.append, warm_start.load(folder))
    return ledger, Steering(ledger, lambda reason: None)


def _write_as_driver(folder: SweepFolder) -> None:
    warm_start.save(WarmStart(notes=("nothing: the storage has no other sweep",)), folder)
    write_atomic(folder.space, SPACE.to_yaml())
    write_atomic(folder.parts / "own.py", '"""A part of a user\'s own."""\n')
    Log(folder.log)("training repeat 0.0")
    with store.exclusive(folder.lock, "sweep"):
        pass

    reference = Preparation("reference-0123abcd", "reference", 4.0, SEED, "finished", cost=0.25)
    reference.save(folder.preparation(reference.name))
    write_atomic(folder.preparation(reference.name).recipe, SPACE.base().to_yaml())
    _write_as_any_worker(folder.preparation(reference.name))


def _write_requests(folder: SweepFolder) -> None:
    """Ask twice for a limit that is in force already; the driver has answered the first request."""
    _ask(folder, 1)
    _, answering = open_ledger(folder, [])
    answering.begin()
    _ask(folder, 2)


def _ask(folder: SweepFolder, number: int) -> None:
    request = steering.make("set", field="repeats", value=SPACE.budget.repeats)
    store.write_json(folder.request(f"{number:020d}-1"), asdict(request))


def _write_as_any_worker(files: WorkFolder) -> None:
    with store.exclusive(files.lock, files.label):
        pass
    write_atomic(files.error, "Traceback (most recent call last):\nOSError: the disk is gone\n")
    write_atomic(files.stacks, "Thread 0x1 (most recent call first):\n")


def _write_as_worker(files: RepeatFolder, seed: int) -> None:
    _write_as_any_worker(files)
    attempt = {"images": 0, **environment.describe_environment("7f3a" * 16)}
    store.write_json(files.path / "environments.json", {"attempts": [attempt]})
    line = checksums.seal({node_metrics.TIME: time.time(), **node_metrics.measure(files.path)})
    write_atomic(files.system, json.dumps(line) + "\n")

    recipe = recipes.read(files.recipe)
    _write_what_is_trained(files, recipe, seed)
    _write_what_is_prepared(files)
    store.write_json(files.path / store.TUNED_FILE, {"chosen": {"width": 0.1, "guidance": 1.0, "steps": 2}})


def _write_what_is_trained(files: RepeatFolder, recipe: Recipe, seed: int) -> None:
    """Write checkpoints, snapshots and the model of a network that has seen no image."""
    state = small_state(recipe.replace({"ema.snapshots": 2}), seed)
    content = checkpoint.copy_content(state, {}, {})
    last = files.checkpoint / "last"
    previous = files.checkpoint / "previous"
    for _ in range(2):
        checkpoint.write(last, content, previous)
    checkpoint.write(files.checkpoint / "best", content)
    assert state.power
    for images in (4000, 8000):
        snapshots.write(files.path, state.power, images)

    dataset = files.path.parents[3] / "datasets" / "digits"
    scores = metrics_log.read_rows(files.metrics)[-1].to_entries()
    export_model(files.model, state.ema, recipe, manifests.load_manifest(dataset), scores)


def _write_what_is_prepared(files: RepeatFolder) -> None:
    """Write what workers leave of a sparse recipe with a coreset and class weights."""
    with files.layers.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "shape", "masked", "density", "flops_share"])
        writer.writerow(["conv_in", "8x1x3x3", "True", "0.5", "1"])
    write_atomic(files.path / "coreset.csv", "image,score,kept\n0,0.5,True\n")
    write_atomic(files.path / "class_weights.json", json.dumps({str(label): 0.1 for label in range(10)}) + "\n")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(files.coreset_png)


def _write_as_mlflow_and_ray(folder: SweepFolder) -> None:
    store.write_json(folder.tracking, {"runs": {}, "uri": "http://127.0.0.1:5000", "experiment": "1"})
    write_atomic(folder.ray / "1" / "tuner.pkl", b"\x80\x04N.")
