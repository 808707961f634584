"""Learning curves of our own: the same recipes on six small datasets, recorded one repeat after another.

`python -m benchmarks.search.record run` trains what is missing, in the system's idle class and on one thread, and ends
when nothing is; the same command goes on after an interruption, also on another machine. `recorded.yaml` is the space,
`recorded.json` its recipes, and `curves/DATASET/RECIPE-SEED.json` a repeat: everything it showed at its rungs.
"""

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.background import take_idle_time
from benchmarks.search.datasets import ORIGINALS, dataset
from scrimp_platform import store
from scrimp_platform.cli.main import main
from scrimp_spaces.space import Space, load_space
from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.recipe.scoring import SMALLEST

HERE = Path(__file__).parent
SPACE = HERE / "recorded.yaml"
RECIPES = HERE / "recorded.json"
CURVES = HERE / "curves"
STORAGE = Path("runs/curves")

DRAWN_WITH = 17
"""Seed of the recipes."""
TWICE = 16
"""Recipes that are trained with a second seed, too: the first."""
OBJECTIVE = "fd_classifier"
DIGITS = 6
"""Significant digits of a recorded number."""
RUNG = (
    *("rung", "kimg", "loss", "lr", "cpu_seconds", "seconds", "train_flops"),
    *(OBJECTIVE, "kd_classifier", "kd_classifier_std", "isc_classifier", "precision_classifier", "recall_classifier"),
    *("memorized_fraction", "memorized_fraction_holdout", "similarity_mean", "similarity_mean_holdout"),
)
"""What is kept of a rung's row. `cpu_seconds` is the repeat's processor time so far, scoring included: on a machine
that others use, `seconds` on the clock say little."""
COST = ("parameters", "nonzero_parameters", "sample_flops")
"""What is kept of the last one only."""
PACKAGES = ("torch", "diffusers", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Repeat:
    """One repeat to record."""

    dataset: str
    recipe: int
    seed: int

    @property
    def name(self) -> str:
        """Its dataset, recipe and seed, as its file is called."""
        return f"{self.dataset}/{self.recipe:02d}-{self.seed}"

    def file(self, curves: Path) -> Path:
        """Return its record."""
        return curves / f"{self.name}.json"


def draw_recipes(space: Space) -> list[dict[str, Any]]:
    """Return the values of the searched fields of the space's recipes, which its own proposer draws."""
    from scrimp_platform.search import proposals
    from scrimp_platform.search.records import Trial

    drawn: list[Trial] = []
    for number in range(space.budget.trials or 0):
        drawn.append(Trial(number, proposals.propose(drawn, space, DRAWN_WITH)))
    return [trial.params for trial in drawn]


def recipes_text(recipes: Sequence[dict[str, Any]]) -> str:
    """Return the recipes as JSON, a line each."""
    lines = ",\n".join(json.dumps(values) for values in recipes)
    return f"[\n{lines}\n]\n"


def record_text(row: Mapping[str, Any]) -> str:
    """Return a record as JSON, a line for each entry."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in row.items())
    return f"{{\n{lines}\n}}\n"


def read_recipes() -> list[dict[str, Any]]:
    """Return the recipes that all datasets share, by number."""
    return json.loads(RECIPES.read_text())


def repeats() -> list[Repeat]:
    """Return all repeats, in the order in which they are recorded.

    All datasets advance together, and second seeds are spread over the whole, so that any beginning is of use.
    """
    count = len(read_recipes())
    places = [(recipe, recipe, 1) for recipe in range(count)]
    places += [(recipe * count // TWICE + 1, recipe, 2) for recipe in range(TWICE)]
    return [Repeat(name, recipe, seed) for _, recipe, seed in sorted(places) for name in ORIGINALS]


def read_curves(curves: Path = CURVES) -> list[dict[str, Any]]:
    """Return the recorded repeats, in the order in which they are recorded."""
    files = [repeat.file(curves) for repeat in repeats()]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def record_missing(originals: Path, curves: Path, storage: Path) -> None:
    """Train what is missing, except what another process is at; a dataset that cannot be made is skipped.

    Raises
    ------
    UserError
        If a dataset is not the one that earlier repeats were trained on.
    """
    datasets = dict(_datasets(originals, curves, storage / "datasets"))
    space = load_space(SPACE)
    recipes = read_recipes()
    if datasets:
        _warm_up(space, recipes, next(iter(datasets.values())), storage / "work")

    for repeat in repeats():
        if repeat.dataset not in datasets or repeat.file(curves).exists():
            continue
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(store.exclusive(storage / "locks" / repeat.name, repeat.name))
            except UserError:
                continue  # another process trains it
            if repeat.file(curves).exists():
                continue  # it has just done so
            row = train(repeat, recipes[repeat.recipe], space, datasets[repeat.dataset], storage / "work")
            write_atomic(repeat.file(curves), record_text(row))
            click.echo(f"{repeat.name}: {_in_words(row)}")


def _datasets(originals: Path, curves: Path, folder: Path) -> Iterator[tuple[str, Dataset]]:
    """Yield the datasets that can be made, by name."""
    known = {row["dataset"]: row["dataset_hash"] for row in read_curves(curves)}
    for name in ORIGINALS:
        try:
            made = open_dataset(dataset(name, originals, folder))
        except UserError as error:
            click.echo(f"{error}; skipped", err=True)
            continue
        content_hash = made.manifest.content_hash
        if known.get(name, content_hash) != content_hash:
            raise UserError(
                f"{name}: {content_hash[:12]} is not the dataset of the recorded curves, {known[name][:12]}; check the "
                "originals and the version of Pillow"
            )
        yield name, made


def _warm_up(space: Space, recipes: Sequence[dict[str, Any]], data: Dataset, folder: Path) -> None:
    """Train a few images with each network, so that no repeat's time holds what a process does only once: imports."""
    budget = space.budget.model_copy(update={"rungs_kimg": (0.1,)})
    scoring = space.scoring.model_copy(update={"samples": SMALLEST})
    brief = space.model_copy(update={"budget": budget, "scoring": scoring})
    by_network = {values["network.kind"]: number for number, values in enumerate(recipes)}
    for number in by_network.values():
        train(Repeat("warm-up", number, os.getpid()), recipes[number], brief, data, folder)


def train(repeat: Repeat, values: dict[str, Any], space: Space, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train a repeat from its start and return its record; one that diverges has the rungs before."""
    from scrimp_trainers.run import train_repeat

    # One that was cut off starts again, so that its times are those of one attempt.
    work = folder / repeat.name
    shutil.rmtree(work, ignore_errors=True)

    begun = time.process_time()
    rows = train_repeat(
        space.base().replace(values),
        data,
        work,
        repeat.seed,
        rungs_kimg=space.budget.rungs_kimg,
        scoring=space.scoring,
        checkpoint_seconds=math.inf,
        device="cpu",
    )
    rungs: list[dict[str, float | None]] = []
    cost: dict[str, float | None] = {}
    ending = "finished"
    try:
        for row in rows:
            if row.rung is not None:
                cpu_seconds = time.process_time() - begun
                rungs.append({name: _short(row.value(name)) for name in RUNG} | {"cpu_seconds": _short(cpu_seconds)})
                cost = {name: _short(row.value(name)) for name in COST}
    except Diverged as error:
        ending = f"diverged: {error}"
    shutil.rmtree(work)

    which = {"dataset": repeat.dataset, "recipe": repeat.recipe, "seed": repeat.seed, "values": values}
    return which | {"ending": ending, "rungs": rungs} | cost | origin(data)


def origin(data: Dataset) -> dict[str, Any]:
    """Return what a record depends on besides its recipe and seed: data, code, versions, machine."""
    from benchmarks.measure import machine
    from scrimp_trainers.common.environment import describe_environment

    facts = data.manifest
    assert facts.classifier is not None
    return {
        "dataset_hash": facts.content_hash,
        "classifier": facts.classifier.sha256,
        "code": describe_environment(facts.content_hash)["code"],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "machine": machine(threads=1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _short(value: float) -> float | None:
    """Round a number to what is recorded; none if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _in_words(row: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{rung[OBJECTIVE]:.4g}" for rung in row["rungs"] if rung[OBJECTIVE] is not None)
    return f"{OBJECTIVE} {scores or 'none'}; {_cpu_seconds(row):.0f} s; {row['ending']}"


def _cpu_seconds(row: Mapping[str, Any]) -> float:
    return row["rungs"][-1]["cpu_seconds"] if row["rungs"] else 0.0


def work_in_background() -> None:
    """Use only what nobody else wants of a core, and one thread."""
    take_idle_time()

    # Set before torch is imported: the classifiers' two threads would spin while they wait for each other.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    import torch

    torch.set_num_threads(1)


def status_lines(curves: Path) -> Iterator[str]:
    """Yield a line for each dataset, and what the rest will take."""
    rows = read_curves(curves)
    for name in ORIGINALS:
        total = sum(repeat.dataset == name for repeat in repeats())
        own = [row for row in rows if row["dataset"] == name]
        diverged = sum(row["ending"] != "finished" for row in own)
        line = f"{name}: {len(own)} of {total} recorded, {diverged} diverged"
        yield f"{line}, {statistics.mean(map(_cpu_seconds, own)):.0f} s of one core a repeat" if own else line
    if rows:
        left = len(repeats()) - len(rows)
        hours = left * statistics.mean(map(_cpu_seconds, rows)) / 3600
        yield f"left: {left} repeats, about {hours:.1f} hours of one core"


def table_lines(curves: Path) -> Iterator[str]:
    """Yield the score of every recipe on every dataset at the last rung, the mean of its seeds, beside its values."""
    final: dict[tuple[int, str], list[float]] = {}
    for row in read_curves(curves):
        complete = row["ending"] == "finished" and row["rungs"][-1][OBJECTIVE] is not None
        score = row["rungs"][-1][OBJECTIVE] if complete else math.inf
        final.setdefault((row["recipe"], row["dataset"]), []).append(score)

    yield "recipe  " + "".join(f"{name:>11}" for name in ORIGINALS)
    for number, values in enumerate(read_recipes()):
        scores = [final.get((number, name)) for name in ORIGINALS]
        cells = [f"{statistics.mean(score):11.4g}" if score else " " * 11 for score in scores]
        fields = " ".join(f"{path}={_brief(value)}" for path, value in values.items())
        yield f"{number:6}  {''.join(cells)}  {fields}"


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


ORIGINALS_OPTION = click.option(
    "--originals",
    type=click.Path(path_type=Path),
    envvar="SCRIMP_DATA_DIR",
    show_envvar=True,
    default=Path("data"),
    show_default=True,
    help="Folder of the original data.",
)
CURVES_OPTION = click.option(
    "--curves", type=click.Path(path_type=Path), default=CURVES, help="Folder of the records.  [default: beside this]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command() -> None:
    """Record learning curves."""


@command.command("run")
@ORIGINALS_OPTION
@CURVES_OPTION
@click.option(
    "--storage",
    type=click.Path(path_type=Path),
    default=STORAGE,
    show_default=True,
    help="Folder of the prepared datasets and of repeats in training.",
)
@click.option("--workers", type=click.IntRange(1, 2), default=1, show_default=True, help="Repeats at a time.")
def run_command(originals: Path, curves: Path, storage: Path, workers: int) -> None:
    """Train what is missing. The same command goes on."""
    work_in_background()
    folders = ["--originals", originals, "--curves", curves, "--storage", storage]
    again = [sys.executable, "-m", "benchmarks.search.record", "run", *map(str, folders)]
    others = [subprocess.Popen(again) for _ in range(workers - 1)]
    try:
        record_missing(originals, curves, storage)
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.terminate()


@command.command("status")
@CURVES_OPTION
def status_command(curves: Path) -> None:
    """Say how much is recorded, and what the rest will take."""
    click.echo("\n".join(status_lines(curves)))


@command.command("table")
@CURVES_OPTION
def table_command(curves: Path) -> None:
    """Print the last score of every recipe on every dataset."""
    click.echo("\n".join(table_lines(curves)))


@command.command("recipes")
def recipes_command() -> None:
    """Draw the recipes anew from the space."""
    write_atomic(RECIPES, recipes_text(draw_recipes(load_space(SPACE))))


if __name__ == "__main__":
    main(command=command)
