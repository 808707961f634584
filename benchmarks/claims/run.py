"""Train what the claims need and record it, one arm with one seed at a time."""

import contextlib
import math
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.claims import claim as claims
from benchmarks.claims import records
from benchmarks.claims.claim import Budget, Claim, arms_of, device_of, owner, seeds_of
from benchmarks.claims.data import FEATURES, LICENCES, dataset, extractor_weights
from scrimp_platform import store
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.metrics.names import class_mean, score_names
from scrimp_trainers.recipe.scoring import Scoring

CHECKPOINT_SECONDS = 300.0
DIGITS = 6
"""Significant digits of a recorded number."""
PACKAGES = ("torch", "diffusers", "numpy", "pillow", "scikit-learn")
COST = ("loss", "train_flops", "nonzero_parameters")


def run(chosen: Sequence[Claim], budgets: Sequence[str], kept: Path, storage: Path) -> Iterator[Path]:
    """Train what is missing, except what another process is at, and yield each record once it is written.

    A budget whose items cannot be prepared is skipped by name.

    Parameters
    ----------
    chosen
        Claims, in this order; those that share an experiment run it once.
    budgets
        Names of budgets, in the order in which each claim runs them.
    kept
        Folder of the records.
    storage
        Folder of prepared datasets and of trainings under way.
    """
    for name in dict.fromkeys(owner(claim).name for claim in chosen if not claim.not_run):
        claim = claims.load(name)
        for budget in budgets:
            if budget not in claim.budgets:
                continue
            try:
                data = open_dataset(dataset(claim.budgets[budget].data, storage / "datasets"))
            except UserError as error:
                click.echo(f"{name}, {budget}: {error}; skipped", err=True)
                continue
            yield from _run_experiment(claim, budget, data, kept, storage)


def trainings(claim: Claim, budget: Budget) -> list[tuple[str, int]]:
    """Return arms with seeds in the order in which they are trained: all arms with the first seed come first."""
    arms = arms_of(claim, budget)
    last = max(seeds_of(budget, arm) for arm in arms)
    return [(arm, seed) for seed in range(1, last + 1) for arm in arms if seed <= seeds_of(budget, arm)]


def _run_experiment(claim: Claim, budget: str, data: Dataset, kept: Path, storage: Path) -> Iterator[Path]:
    for arm, seed in trainings(claim, claim.budgets[budget]):
        name = f"{claim.name}/{budget}/{arm}-seed{seed}"
        with contextlib.ExitStack() as held:
            if records.read(kept, claim, budget, arm, seed):
                continue
            try:
                held.enter_context(store.exclusive(storage / "locks" / name, name))
            except UserError:
                continue  # another process trains it
            if records.read(kept, claim, budget, arm, seed):
                continue  # it has just done so
            record = train(claim, budget, arm, seed, data, storage / "work" / name)
            file = records.file_of(kept, claim, budget, arm, seed)
            write_atomic(file, records.text(record))
            yield file


def scoring_of(claim: Claim, budget: Budget, data: Dataset) -> Scoring:
    """Return how samples are scored, with the extractors that `features.py` has fitted to this dataset."""
    parts.load_files([FEATURES])
    each = [
        {"extractor": name, "weights": extractor_weights(name, data.folder), "samples": budget.samples}
        for name in claim.extractors
    ]
    return Scoring.model_validate(each)


def train(claim: Claim, budget: str, arm: str, seed: int, data: Dataset, work: Path) -> dict[str, Any]:
    """Train an arm with a seed, or go on where it was interrupted, and return its record."""
    from scrimp_trainers.run import train_repeat

    settings = claim.budgets[budget]
    factor = claim.lengths.get(arm, 1.0)
    scoring = scoring_of(claim, settings, data)
    resumed = work.exists()
    begun = time.process_time()
    rows = train_repeat(
        claims.recipe(claim, settings, arm),
        data,
        work,
        seed,
        rungs_kimg=[factor * rung for rung in settings.rungs_kimg],
        scoring=scoring,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        device="cuda" if device_of(budget) == "gpu" else "cpu",
    )

    curve: list[dict[str, float]] = []
    hours = 0.0
    ending = "finished"
    try:
        for row in rows:
            hours = row.seconds / 3600
            if row.rung is not None:
                # Rungs of a longer arm keep the name of the other arms' rung, beside the kimg that it has seen.
                rung = settings.rungs_kimg[len(curve)]
                curve.append({"rung": rung, "kimg": row.kimg} | _scores(row, scoring, claim))
    except Diverged as error:
        ending = f"diverged: {error}"
    shutil.rmtree(work)

    spent = None if resumed else _short((time.process_time() - begun) / 3600)
    which = {"claim": claim.name, "budget": budget, "arm": arm, "seed": seed, "ending": ending}
    cost = {"device_hours": _short(hours), "cpu_hours": spent}
    return which | {"curve": curve, "design": claims.design(claim, settings, arm)} | cost | _origin(settings, data)


def _scores(row: MetricsRow, scoring: Scoring, claim: Claim) -> dict[str, float]:
    named = {each.score for each in [*claim.comparisons, *claim.regime]}
    names = dict.fromkeys([*score_names(scoring), *class_mean(scoring), *COST, *sorted(named)])
    values = {name: row.value(name) for name in names}
    return {name: _short(value) for name, value in values.items() if math.isfinite(value)}


def _origin(budget: Budget, data: Dataset) -> dict[str, Any]:
    """Return what a record depends on besides its design and seed, and whose items it is of."""
    from benchmarks.measure import machine
    from scrimp_trainers.common.environment import describe_environment

    facts = data.manifest
    return {
        "source": LICENCES[budget.data.source],
        "dataset_hash": facts.content_hash,
        "classifier": facts.classifier.sha256 if facts.classifier else None,
        "code": describe_environment(facts.content_hash)["code"],
        "commit": _commit(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "machine": machine(threads=1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _commit() -> str | None:
    """Return the checkout's commit; None where there is no git or no repository."""
    with contextlib.suppress(OSError):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        return asked.stdout.strip() or None
    return None


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def minutes_of(claim: Claim, budget: str, storage: Path) -> float:
    """Measure what an arm with one seed takes of one core, from short trainings of the first arm."""
    settings = claim.budgets[budget]
    data = open_dataset(dataset(settings.data, storage / "datasets"))
    brief = settings.rungs_kimg[-1] / 40

    def seconds(last: float) -> float:
        short = settings.model_copy(update={"rungs_kimg": (brief / 2, last)})
        work = storage / "work" / f"time-{claim.name}"
        shutil.rmtree(work, ignore_errors=True)
        begun = time.process_time()
        train(claim.model_copy(update={"budgets": {budget: short}}), budget, arms_of(claim, settings)[0], 1, data, work)
        return time.process_time() - begun

    # The first also fills caches. The others score twice each, and differ by 2 / 40 of the training.
    seconds(brief)
    once, longer = seconds(brief), seconds(3 * brief)
    training = 20 * (longer - once)
    scoring = (once - training / 40) / 2
    factor = sum(claim.lengths.get(arm, 1.0) for arm, _ in trainings(claim, settings)) / len(trainings(claim, settings))
    return (factor * training + scoring * len(settings.rungs_kimg)) / 60
