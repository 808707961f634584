"""How long a sweep will take and how much disk: from the last similar one on this machine, or a short measurement."""

import contextlib
import dataclasses
import hashlib
import math
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform import store
from scrimp_platform.cluster import Placement
from scrimp_platform.plan import Plan
from scrimp_platform.search import halving
from scrimp_platform.search.records import Preparation, Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.recipe.needs import needs, reference_equivalent
from scrimp_trainers.recipe.recipe import Recipe, reference_recipe

DRAWS = 100
"""Recipes that are drawn to see what they need."""
ROUNDS = 10
"""Draws of all trials, of which the one that needs most is counted."""


@dataclass(frozen=True)
class Speed:
    """What one repeat costs on a machine."""

    seconds_per_kimg: float
    seconds_per_score: float
    """Of all samples; one of fewer takes their share of it."""
    bytes: int
    seconds_per_needed_kimg: float | None = None
    """Of a reference, which may have another recipe; None if it was not measured."""


def _key(plan: Plan, gpus: float) -> str:
    """Return a hash of what a measurement depends on: the base recipe, the scoring, the data's shape, the devices."""
    settings = (plan.base.model_dump_json(exclude={"about"}), plan.space.scoring.model_dump_json())
    shape = (plan.manifest.size, plan.manifest.channels, plan.manifest.splits["train"].count, gpus)
    return hashlib.sha256(repr((settings, shape)).encode()).hexdigest()[:16]


def last_speed(plan: Plan, gpus: float) -> Speed | None:
    """Return what the last sweep like this one measured on this machine."""
    speeds = store.read_sound(plan.storage.speeds) or {}
    speed = speeds.get(_key(plan, gpus))
    return Speed(**speed) if speed else None


def save_speed(plan: Plan, gpus: float, speed: Speed) -> None:
    """Keep a measurement for the next plan."""
    speeds = store.read_sound(plan.storage.speeds) or {}
    store.write_json(plan.storage.speeds, speeds | {_key(plan, gpus): dataclasses.asdict(speed)})


def measure_base_recipe(plan: Plan) -> Speed:
    """Measure a very short repeat of the base recipe in this process, and as short a reference where one is needed."""
    import torch

    from scrimp_trainers.common.device import select_device
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.precompute import dro
    from scrimp_trainers.run import train_repeat

    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    kimg = max(16 * plan.base.training.batch_size, 1000) / 1000
    samples = min(plan.space.scoring.samples, 64)
    with tempfile.TemporaryDirectory() as folder:
        rows = train_repeat(
            plan.base.replace({"training.kimg": kimg, "reweighting.method": "none"}),
            open_dataset(plan.dataset),
            Path(folder),
            plan.options.seed,
            rungs_kimg=[kimg],
            scoring=plan.space.scoring.model_copy(update={"samples": samples}),
        )
        row = list(rows)[-1]
        size = _bytes_in(Path(folder))

    training = kimg * 1000 / row.images_per_second
    scoring = (row.seconds - training) * plan.space.scoring.samples / samples
    speed = Speed(training / kimg, scoring, size)
    weighed = weighed_recipe(plan.space)
    if weighed is None:
        return speed

    with tempfile.TemporaryDirectory() as folder:
        reference = reference_recipe(weighed.reweighting)
        kimg = max(16 * reference.training.batch_size, 1000) / 1000
        reference = reference.replace({"training.kimg": kimg})
        dro.train_reference(reference, open_dataset(plan.dataset), Path(folder), select_device())
        row = metrics_log.read_rows(Path(folder) / "metrics.jsonl")[-1]
    return dataclasses.replace(speed, seconds_per_needed_kimg=1000 / row.images_per_second)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take."""

    first_repeats: int
    race_repeats: int
    kimg: float
    hours: float
    bytes: int


@dataclass(frozen=True)
class Needed:
    """The references and proxies that the trials of a search need, each once."""

    references: int
    proxies: int
    kimg: float
    """The length of all of them."""
    work: float
    """The same in the kimg of a reference, of which a proxy's take longer."""


NOTHING = Needed(references=0, proxies=0, kimg=0.0, work=0.0)


def needed(space: Space, trials: int) -> Needed:
    """Return what so many trials need: of arms exactly, else the most in some random draws from the space."""
    if space.arms:
        return _needed_by(_recipes(space, list(space.arms.values())))
    if not _may_weigh(space):
        return NOTHING
    chance = random.Random(0)
    draws = [[space.draw(chance) for _ in range(trials)] for _ in range(ROUNDS)]
    return max((_needed_by(_recipes(space, values)) for values in draws), key=lambda each: each.work)


def weighed_recipe(space: Space) -> Recipe | None:
    """Return a recipe of the space that needs a reference or a proxy; None if there is none among some random draws."""
    chance = random.Random(0)
    drawn = list(space.arms.values()) or [space.draw(chance) for _ in range(DRAWS)]
    return next((recipe for recipe in _recipes(space, drawn) if recipe.reweighting.on), None)


def _may_weigh(space: Space) -> bool:
    return space.base().reweighting.on or any(path.startswith("reweighting.") for path in space.search)


def _recipes(space: Space, drawn: Sequence[Mapping[str, Any]]) -> Iterator[Recipe]:
    """Yield the distinct recipes of these values, as far as it matters to what they need."""
    base = space.base()
    seen: list[dict[str, Any]] = []
    for values in drawn:
        relevant = {path: value for path, value in values.items() if path.startswith(("reweighting.", "coreset."))}
        if relevant not in seen:
            seen.append(relevant)
            with contextlib.suppress(UserError):  # a contradiction, which is not trained
                yield base.replace(relevant)


def _needed_by(recipes: Iterable[Recipe]) -> Needed:
    needed_once = {need.name: need for recipe in recipes for need in needs(recipe, seed=0)}
    references = sum(need.kind == "reference" for need in needed_once.values())
    kimg = math.fsum(need.kimg for need in needed_once.values())
    total = math.fsum(reference_equivalent(need.kind, need.kimg) for need in needed_once.values())
    return Needed(references, len(needed_once) - references, kimg, total)


@dataclass(frozen=True)
class Work:
    """What a sweep trains and scores if no trial fails, and the race eliminates none."""

    trials: int
    race_repeats: int
    needed: Needed
    """The references and proxies."""
    search_kimg: float
    search_scores: float
    """A score of fewer samples than the last rung's counts as their share."""
    race_kimg: float
    race_scores: float
    repeat_scores: float
    """Of a repeat that is trained to the end."""


def work(space: Space, speed: Speed, devices: float) -> Work:
    """Return the work of a sweep, of as many trials as the budget states, or else as its hours allow."""
    budget = space.budget
    trials = budget.trials
    if trials is None:
        many = 1000
        seconds_each = _seconds(*halving.search_work(many, space), speed) / many
        seconds_each += needed(space, DRAWS).work * _needed_speed(speed) / DRAWS
        trials = max(1, int((1 - budget.race_share) * _limit(space, devices) / seconds_each))
    kimg, scores = halving.search_work(trials, space)
    race = min(budget.leaders, trials) * (budget.repeats - 1)
    rungs = budget.rungs_kimg
    repeat_scores = sum(space.samples_at(rung) for rung in rungs) / space.scoring.samples
    race_kimg = race * rungs[-1]
    return Work(trials, race, needed(space, trials), kimg, scores, race_kimg, race * repeat_scores, repeat_scores)


def estimate_sweep(plan: Plan, placement: Placement, speed: Speed) -> Estimate:
    """Assume that no trial fails, and that the race eliminates none, unless `max_gpu_hours` ends it before."""
    whole = work(plan.space, speed, placement.devices)
    kimg = whole.search_kimg + whole.race_kimg
    scores = whole.search_scores + whole.race_scores
    before = whole.needed.work * _needed_speed(speed)
    seconds = min(_limit(plan.space, placement.devices), before + _seconds(kimg, scores, speed))
    repeats = whole.trials + whole.race_repeats
    return Estimate(whole.trials, whole.race_repeats, kimg, seconds / placement.places / 3600, repeats * speed.bytes)


def _limit(space: Space, devices: float) -> float:
    """Return the seconds of repeats that a budget allows, one after the other."""
    hours = space.budget.max_gpu_hours
    return math.inf if hours is None else hours / devices * 3600


def _needed_speed(speed: Speed) -> float:
    return speed.seconds_per_needed_kimg or speed.seconds_per_kimg


def _seconds(kimg: float, scores: float, speed: Speed) -> float:
    return kimg * speed.seconds_per_kimg + scores * speed.seconds_per_score


def measure_repeats(
    folder: SweepFolder, repeats: Sequence[Repeat], preparations: Sequence[Preparation] = ()
) -> Speed | None:
    """Return what the finished repeats, and the references and proxies, cost; none if no repeat has finished."""
    finished = [(repeat, repeat.last) for repeat in repeats if repeat.status == "finished" and repeat.last]
    if not finished:
        return None

    training = []
    scoring = []
    sizes = []
    for repeat, row in finished:
        seconds_per_kimg = 1000 / row.images_per_second
        training.append(seconds_per_kimg)
        scoring.append(max(0.0, row.seconds - seconds_per_kimg * row.kimg) / _scores_of(repeat, row))
        sizes.append(_bytes_in(folder.repeat(repeat.trial, repeat.repeat).path))
    # What was found in the dataset's cache has cost nothing, and says nothing.
    trained = [own for own in preparations if own.status == "finished" and own.cost]
    seconds = math.fsum(own.cost * 3600 / own.devices for own in trained)
    total = math.fsum(reference_equivalent(own.kind, own.kimg) for own in trained)
    needed_speed = seconds / total if trained else None
    return Speed(statistics.fmean(training), statistics.fmean(scoring), max(sizes), needed_speed)


def _scores_of(repeat: Repeat, last: MetricsRow) -> float:
    """Return how many scores a finished repeat has, of as many samples as the last one; of fewer, their share."""
    samples = [row.value("samples") for row in repeat.rungs.values()]
    if not all(map(math.isfinite, samples)):
        return len(samples)
    return sum(samples) / last.value("samples")


def seconds_left(
    trials: Sequence[Trial], space: Space, running: Mapping[str, float], preparations: Sequence[Preparation] = ()
) -> float | None:
    """Return the time to the end of a sweep that trains one repeat at a time; None before anything was measured.

    The assumptions are those of `estimate_sweep`, at the mean speed so far. `running` holds the kimg of each running
    repeat by label.
    """
    budget = space.budget
    marks = budget.rungs_kimg
    repeats = [repeat for trial in trials for repeat in trial.repeats]
    scored = [repeat.last for repeat in repeats if repeat.last]
    if not scored:
        return None

    # Of the search: what has still to reach each rung, and what is on its way to one.
    to_come = max(0, (budget.trials or 0) - len(trials))
    kimg = to_come * marks[0]
    for rung, following in zip(halving.rungs(trials, space, to_come, None), marks[1:], strict=True):
        kimg += max(0, rung.places - rung.promoted) * (following - rung.kimg)
    for repeat in repeats:
        if repeat.open:
            trained = running.get(f"{repeat.trial}.{repeat.repeat}", repeat.last.kimg if repeat.last else 0.0)
            kimg += max(0.0, next_goal(repeat, marks) - trained)

    # Of the race.
    kimg += max_race_repeats_left(trials, space) * marks[-1]
    left = kimg * statistics.fmean(row.seconds / row.kimg for row in scored)
    if budget.max_gpu_hours is None:
        return left
    spent = sum(each.device_hours for each in [*repeats, *preparations])
    limit = max(0.0, budget.max_gpu_hours - spent) / repeats[0].devices * 3600
    return limit if budget.trials is None else min(left, limit)


def next_goal(repeat: Repeat, marks: Sequence[float]) -> float:
    """Return the rung to which a repeat trains before it may be paused; in the race that is the last one."""
    if repeat.phase == "race":
        return marks[-1]
    return next(rung for rung in marks if rung > repeat.passed or rung == marks[-1])


def max_race_repeats_left(trials: Sequence[Trial], space: Space) -> int:
    """Return how many more repeats the race can start."""
    budget = space.budget
    stopped = sum(trial.status in ("pruned", "failed") for trial in trials)
    leaders = budget.leaders
    if budget.trials is not None:
        leaders = min(leaders, budget.trials - stopped)
    started = sum(repeat.phase == "race" for trial in trials for repeat in trial.repeats)
    return max(0, leaders * (budget.repeats - 1) - started)
