"""A sweep's folder as MLflow is to show it, without a sweep; and a kill while it is sent."""

import itertools
import time
from pathlib import Path

import PIL.Image
import pytest
import requests
from made_up_rows import make_row
from test_platform_race import make_space

from scrimp_platform import store
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_platform.tracking.mirror import Mirror
from scrimp_trainers.common import metrics_log

RUNGS = [20.0, 60.0]  # as make_space has them
NUMBERS = itertools.count()


def ended_sweep(where: Path) -> SweepFolder:
    """A sweep that has ended: a trial with two repeats of the race, one that halving stopped, one that failed."""
    folder = SweepFolder(where / f"sweep-{next(NUMBERS)}")
    store.write_json(folder.description, description(folder))
    for number, status in enumerate(("complete", "pruned", "failed")):
        Trial(number, {"optimizer.lr": 0.001 * (number + 1), "network.channels": 32}, status).save(folder)
    add_repeat(folder, Repeat(0, 0, 11, "search", "finished"), rungs=RUNGS)
    add_repeat(folder, Repeat(0, 1, 12, "race", "finished"), rungs=RUNGS)
    add_repeat(folder, Repeat(0, 2, 15, "race", "finished"), rungs=RUNGS)
    add_repeat(folder, Repeat(1, 0, 13, "search", "stopped", cause="not among the best at 20 kimg"), rungs=RUNGS[:1])
    add_repeat(folder, Repeat(2, 0, 14, "search", "failed", cause="Diverged: step 7: loss is nan"), rungs=[])
    folder.leaderboard.write_text("rank,trial\n")
    folder.best_recipe.write_text("about: the winner\n")
    folder.report.write_text("<p>report</p>")
    return folder


def description(folder: SweepFolder) -> dict:
    return {
        "name": folder.path.name,
        "id": folder.path.name,
        "space_name": "tracked",
        "versions": {},
        "started": time.time() - 1000,
        "driver_started": time.time() - 1000,
        "seed": 5,
        "dataset": {
            "name": f"data-{folder.path.name}",
            "content_hash": "c0ffee" * 10,
            "folder": "/data",
            "modality": "images",
            "shape": [1, 8, 8],
            "picture": [1, 8, 8],
            "classes": 0,
            "splits": {"train": 300, "holdout": 20},
        },
        "space": make_space(constraints={"memorized_fraction": {"max": 0.05}}).model_dump(mode="json"),
    }


def add_repeat(
    folder: SweepFolder, repeat: Repeat, rungs: list[float], ended: float = 300, last_score: float | None = None
) -> None:
    """Add a repeat that ended so many seconds after it was handed out; with a score of its own at the last rung."""
    repeat.started = time.time() - 900
    repeat.ended = None if repeat.open else repeat.started + ended
    files = folder.repeat(repeat.trial, repeat.repeat)
    store.write_atomic(files.recipe, "about: a recipe\n")
    add_lines(folder, repeat, range(4, int(max(rungs, default=8)) + 1, 4), rungs)
    if last_score is not None:
        row = make_row(kimg=60.064, rung=60.0, fd_classifier=last_score, extractor="classifier", memorized_fraction=0.0)
        metrics_log.append_row(files.metrics, row)
    repeat.rungs = {row.rung: row for row in metrics_log.read_rows(files.metrics) if row.rung is not None}
    repeat.save(files)
    if repeat.status == "finished":
        for file in ("last/network.safetensors", "best/network.safetensors"):
            store.write_atomic(files.checkpoint / file, f"weights of {files.label}")
        store.write_atomic(files.model / "README.md", "# model card")
        store.write_atomic(files.model / "unet" / "config.json", f'"{files.label}"')


def add_lines(folder: SweepFolder, repeat: Repeat, ticks, rungs: list[float]) -> None:
    files = folder.repeat(repeat.trial, repeat.repeat)
    with files.metrics.open("a") as file:
        for kimg in ticks:
            tick = {"kimg": kimg + 0.064, "loss": 1 / kimg, "grad_norm": float("nan"), "seconds": kimg * 2.0}
            file.write(metrics_log.row_text(make_row(**tick)))
            if float(kimg) in rungs:
                scores = {"fd_classifier": 100 / kimg + repeat.repeat, "extractor": "classifier"}
                row = make_row(**tick, rung=float(kimg), **scores, memorized_fraction=0.0)
                file.write(metrics_log.row_text(row))
                files.samples.mkdir(exist_ok=True)
                PIL.Image.new("L", (16, 16), kimg).save(files.samples / f"{kimg:g}.png")


def sync_until_killed(mirror: Mirror, answers: int, patches: pytest.MonkeyPatch) -> bool:
    """Tell MLflow how a sweep has ended, and be killed after so many answers; return whether fewer were enough."""

    class Killed(BaseException):
        pass

    left = itertools.count(answers - 1, -1)
    send = requests.Session.send

    def dying(self, request, **settings):
        answer = send(self, request, **settings)
        if next(left) == 0:
            raise Killed  # the server has done it, and nobody heard
        return answer

    with patches.context() as patch:
        patch.setattr(requests.Session, "send", dying)
        try:
            mirror.sync("complete")
        except Killed:
            return False
    return True
