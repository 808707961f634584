"""What it saves to leave EMA width, guidance and sampler steps out of a search, and to choose them after training.

`python -m benchmarks.posthoc` trains recipes of three small spaces with snapshots, scores each with every width,
guidance and number of steps, and replays pairs of searches on these records: one over the recipes and these settings
together, one over the recipes alone, which pays for the choice of the settings wherever it has trained one to the end.
It prints after how many device-hours each has trained one to the end that is within 5% of the best. A record and a pair
are a small JSON file each; the same command goes on. `--brief` rehearses it in a minute.
"""

import hashlib
import itertools
import json
import math
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.search.datasets import dataset
from benchmarks.search.scrimp import NOT_SIMULATED
from scrimp_platform.search.recording import Recording
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.replay import METHODS, Search
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import Diverged
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.recipe.recipe import Recipe

SPACES = ("ld-diffusion-small", "sparse-to-sparse-small", "mdt-small")
OBJECTIVE = "fd_classifier"
OVERRIDE = {"conditioning.classes": True, "conditioning.label_drop": 0.1, "ema.snapshots": 48}
"""Guidance needs classes; a third of these snapshots, at the first rung, still makes all widths."""
WIDTHS = (0.05, 0.10, 0.15)
GUIDANCE = (1.0, 1.5)
STEPS = (8, 16)
UNSEARCHED = (0.10, 1.0, 16)
"""The width, guidance and steps by which recipes are compared at the rungs where these are not searched."""
NEAR = 0.05
"""What counts as found, as a share above the best true score."""
GOAL = 0.6
CHOICE_SEED, TRUTH_SEED = 1, 2
"""Of the samples by which settings are chosen, and of those by which that is judged."""
METHOD = "scrimp"


@dataclass(frozen=True)
class Extent:
    """How much is recorded and replayed."""

    spaces: Sequence[str] = SPACES
    recipes: int = 16
    pairs: int = 20
    samples: int = 500
    shrink: float = 1.0
    """Factor on the length of training."""
    override: Mapping[str, Any] = field(default_factory=dict)

    def space(self, name: str) -> Space:
        """Return a space with one objective, and no settings in the search."""
        tree = yaml_files.parse_yaml(spaces.space_yaml(name), name)
        rungs = [self.shrink * rung for rung in tree["budget"]["rungs_kimg"]]
        changes = {
            "override": tree.get("override", {}) | OVERRIDE | self.override,
            "objectives": {OBJECTIVE: "minimize"},
            "constraints": {},
            "scoring": {"extractor": "classifier", "samples": self.samples},
            "budget": tree["budget"] | {"trials": self.recipes, "rungs_kimg": rungs},
        }
        return Space.of(**tree | changes)


BRIEF = Extent(
    spaces=SPACES[:1],
    recipes=2,
    pairs=2,
    samples=20,
    shrink=0.02,
    override={"network.channels": 8, "training.batch_size": 8},
)


def main(extent: Extent, storage: Path) -> None:
    """Record what is missing, replay what is missing, and print the table."""
    for name in extent.spaces:
        record_missing(name, extent, storage)
        replay_missing(name, extent, storage)
    for line in table_lines(extent, storage):
        click.echo(line)


def record_missing(name: str, extent: Extent, storage: Path) -> None:
    """Train and score the recipes of a space that have no record."""
    space = extent.space(name)
    chance = random.Random(name)
    drawn = [space.draw(chance) for _ in range(extent.recipes)]
    missing = [number for number in range(extent.recipes) if not _record_file(storage, name, number).exists()]
    if not missing:
        return
    data = open_dataset(dataset("digits", Path(), storage / "datasets"))
    for number in missing:
        record = train(space, drawn[number], number, data, storage / "work")
        write_atomic(_record_file(storage, name, number), json.dumps(record, indent=1) + "\n")
        click.echo(f"{name} {number}: {record['ending']}, {record['seconds']:.0f} s of one core")


def train(space: Space, values: dict[str, Any], seed: int, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train a recipe from its start, and score it with every setting at every rung; return its record."""
    from scrimp_trainers.metrics.score import Scorer
    from scrimp_trainers.run import train_repeat

    shutil.rmtree(folder, ignore_errors=True)  # one that was cut off
    recipe = space.base().replace(values)
    rungs = space.budget.rungs_kimg
    scorer = Scorer(data, space.scoring, "cpu")
    rows = train_repeat(recipe, data, folder, seed, rungs_kimg=rungs, checkpoint_seconds=math.inf, device="cpu")
    record: dict[str, Any] = {"values": values, "ending": "finished", "train_seconds": {}, "settings": []}
    begun = time.process_time()
    training = 0.0
    scores: dict[tuple[float, float, int], dict[str, Any]] = {}
    mark = begun
    try:
        for row in rows:
            if row.rung is None:
                continue
            training += time.process_time() - mark
            record["train_seconds"][f"{row.rung:g}"] = training
            for setting, found in score_settings(
                recipe, seed, scorer, folder, row.images, is_last=row.rung == rungs[-1]
            ):
                own = scores.setdefault(setting, {"scores": {}, "seconds": {}})
                own["scores"][f"{row.rung:g}"] = found.score
                own["seconds"][f"{row.rung:g}"] = found.seconds
                own["truth"] = found.truth
            mark = time.process_time()
    except Diverged as error:
        training += time.process_time() - mark
        record["ending"] = f"diverged: {error}"
    shutil.rmtree(folder)
    record["settings"] = [{"setting": setting} | own for setting, own in scores.items()]
    return record | {"trained_seconds": training, "seconds": time.process_time() - begun}


@dataclass(frozen=True)
class Found:
    """The score of a setting by the samples of the choice, its seconds of one core, and that by others at the end."""

    score: float
    seconds: float
    truth: float | None


def score_settings(
    recipe: Recipe, seed: int, scorer: Any, folder: Path, images: int, *, is_last: bool
) -> Iterator[tuple[tuple[float, float, int], Found]]:
    """Score what has been trained so far with every setting."""
    from scrimp_trainers.common import weights
    from scrimp_trainers.training.snapshots import Snapshots, put
    from scrimp_trainers.training.state import build_network

    facts = scorer.dataset.manifest
    network = build_network(recipe, facts.size, facts.channels, len(facts.classes or ()), seed)
    file = folder / "checkpoint" / "last" / "ema.safetensors"
    network.load_kept(weights.read_weights(file), file)  # what its masks have left at zero is zero there
    for width in WIDTHS:
        put(Snapshots.find(folder, images).average(width), network, recipe, folder)
        for guidance, steps in itertools.product(GUIDANCE, STEPS):
            sampled = recipe.replace({"sampler.guidance": guidance, "sampler.steps": steps})
            begun = time.process_time()
            score = _score(network, sampled, scorer, CHOICE_SEED)
            seconds = time.process_time() - begun
            truth = _score(network, sampled, scorer, TRUTH_SEED) if is_last else None
            yield (width, guidance, steps), Found(score, seconds, truth)


def _score(network: Any, recipe: Recipe, scorer: Any, seed: int) -> float:
    from scrimp_trainers.sampling import generate

    samples = generate(network, recipe, scorer.scoring.samples, seed=seed)
    return float(scorer.score(samples, network.classes).values[OBJECTIVE])


def replay_missing(name: str, extent: Extent, storage: Path) -> None:
    """Replay the pairs of searches that have no file for these records."""
    records = _records(name, extent, storage)
    space = extent.space(name)
    version = hashlib.sha256(json.dumps(records).encode()).hexdigest()[:8]
    for pair in range(extent.pairs):
        file = storage / name / f"pair-{pair:02d}.json"
        if file.exists() and json.loads(file.read_text())["of"] == version:
            continue
        hours = {}
        for arm, recording in (("inside", inside(space, records)), ("outside", outside(space, records))):
            search = Search(recording, METHODS[METHOD], pair)
            search.run()
            hours[arm] = search.found_hours if math.isfinite(search.found_hours) else None
        write_atomic(file, json.dumps({"of": version, "hours": hours}) + "\n")


def inside(space: Space, records: Sequence[Mapping[str, Any]]) -> Recording:
    """Return a recording in which every recipe with every setting is a trial, trained for itself."""
    fields = {
        "ema.halflife_kimg": {"choice": list(WIDTHS)},  # stands for the width
        "sampler.guidance": {"choice": list(GUIDANCE)},
        "sampler.steps": {"choice": list(STEPS)},
    }
    tree = space.model_dump(mode="json", exclude_defaults=True)
    searched = Space.of(**tree | {"search": tree["search"] | fields})

    trials: list[Trial] = []
    good: set[int] = set()
    limit = _limit(records)
    for record in records:
        for own in _settings(record):
            params = record["values"] | dict(zip(fields, own["setting"], strict=True))
            number = len(trials)
            trials.append(_trial(number, params, record, own["scores"], own["seconds"]))
            if own["truth"] is not None and own["truth"] <= limit:
                good.add(number)
    return _recording(searched, trials, good)


def outside(space: Space, records: Sequence[Mapping[str, Any]]) -> Recording:
    """Return a recording in which every recipe is a trial, whose settings are chosen once it is trained to the end."""
    trials: list[Trial] = []
    good: set[int] = set()
    limit = _limit(records)
    last = f"{space.budget.rungs_kimg[-1]:g}"
    for number, record in enumerate(records):
        usual = next((own for own in record["settings"] if tuple(own["setting"]) == UNSEARCHED), None)
        scores = dict(usual["scores"]) if usual else {}
        seconds = dict(usual["seconds"]) if usual else {}
        if last in scores:
            best = min(record["settings"], key=lambda own: _or_infinite(own["scores"][last]))
            scores[last] = best["scores"][last]
            seconds[last] = sum(own["seconds"][last] for own in record["settings"])
            if best["truth"] <= limit:
                good.add(number)
        trials.append(_trial(number, record["values"], record, scores, seconds))
    return _recording(space, trials, good)


def _settings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a recipe scored with each setting; of one that diverged before the first rung, nothing with each."""
    nothing = {"scores": {}, "seconds": {}, "truth": None}
    every = itertools.product(WIDTHS, GUIDANCE, STEPS)
    return record["settings"] or [{"setting": setting} | nothing for setting in every]


def _limit(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the highest true score that counts as found."""
    truths = [own["truth"] for record in records for own in record["settings"]]
    return (1 + NEAR) * min(truth for truth in truths if truth is not None and math.isfinite(truth))


def _or_infinite(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _trial(
    number: int,
    params: dict[str, Any],
    record: Mapping[str, Any],
    scores: Mapping[str, float],
    scoring_seconds: Mapping[str, float],
) -> Trial:
    """Return a trial as a sweep has it: its rows at the rungs hold the seconds of training and scoring so far."""
    rungs: dict[float, MetricsRow] = {}
    scored = 0.0
    for rung, score in scores.items():
        scored += scoring_seconds[rung]
        seconds = record["train_seconds"][rung] + scored
        kimg = float(rung)
        rungs[kimg] = MetricsRow(**NOT_SIMULATED, kimg=kimg, rung=kimg, seconds=seconds, scores={OBJECTIVE: score})
    ended = record["ending"] == "finished"
    spent = 0.0 if ended else record["trained_seconds"]
    repeat = Repeat(number, 0, 0, "search", status="finished" if ended else "failed", spent=spent, rungs=rungs)
    return Trial(number, params, "complete" if ended else "failed", [repeat])


def _recording(space: Space, trials: Sequence[Trial], good: set[int]) -> Recording:
    """Return a recording whose search goes on until something good is found."""
    by_number = {trial.number: trial for trial in trials}
    recommended = min(good, default=0)
    return Recording(space, 0, by_number, recommended, frozenset(good), search_hours=0.0, race_hours=0.0)


def table_lines(extent: Extent, storage: Path) -> Iterator[str]:
    """Yield a line for each space: the median hours of both arms, and their ratio."""
    yield f"device-hours until a recipe within {NEAR:.0%} of the best is trained, medians of {extent.pairs} pairs"
    yield f"{'space':24}{'recipes':>8}{'inside':>9}{'outside':>9}{'ratio':>7}   goal at most {GOAL:g}"
    for name in extent.spaces:
        pairs = [json.loads((storage / name / f"pair-{pair:02d}.json").read_text()) for pair in range(extent.pairs)]
        medians = [
            statistics.median(math.inf if pair["hours"][arm] is None else pair["hours"][arm] for pair in pairs)
            for arm in ("inside", "outside")
        ]
        ratio = medians[1] / medians[0]
        yield f"{name:24}{extent.recipes:8}{medians[0]:9.3f}{medians[1]:9.3f}{ratio:7.2f}"


def _records(name: str, extent: Extent, storage: Path) -> list[dict[str, Any]]:
    return [json.loads(_record_file(storage, name, number).read_text()) for number in range(extent.recipes)]


def _record_file(storage: Path, name: str, number: int) -> Path:
    return storage / name / f"recipe-{number:02d}.json"


@click.command()
@click.option("--recipes", default=Extent.recipes, show_default=True, help="Recipes of each space.")
@click.option("--pairs", default=Extent.pairs, show_default=True, help="Pairs of searches.")
@click.option(
    "--storage",
    type=click.Path(path_type=Path),
    default=Path("runs/posthoc"),
    show_default=True,
    help="Folder of the records, the pairs and the dataset.",
)
@click.option("--brief", is_flag=True, help="Rehearse it: two recipes of one space, for a minute.")
def command(recipes: int, pairs: int, storage: Path, brief: bool) -> None:
    """Compare searches with EMA width, guidance and steps inside and outside."""
    from benchmarks.search.record import work_in_background

    work_in_background()
    main(BRIEF if brief else Extent(recipes=recipes, pairs=pairs), storage / "brief" if brief else storage)


if __name__ == "__main__":
    command(prog_name="python -m benchmarks.posthoc")
