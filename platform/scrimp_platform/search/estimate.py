"""How long a sweep will take and how much disk: from the last one like it on this machine, or from a short probe."""

import dataclasses
import hashlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scrimp_platform import store
from scrimp_platform.plan import Plan
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Budget, Space


@dataclass(frozen=True)
class Speed:
    """What one repeat costs on a machine."""

    seconds_per_kimg: float
    seconds_per_score: float
    bytes: int


def _key(plan: Plan, gpus: int) -> str:
    """Name a measurement by what it depends on: the base recipe, the scoring, the data's shape, the devices."""
    facts = (plan.base.model_dump_json(exclude={"about"}), plan.space.scoring.model_dump_json())
    shape = (plan.manifest.size, plan.manifest.channels, plan.manifest.splits["train"].count, gpus)
    return hashlib.sha256(repr((facts, shape)).encode()).hexdigest()[:16]


def last(plan: Plan, gpus: int) -> Speed | None:
    """Return what the last sweep like this one measured on this machine."""
    known = (store.read_sound(plan.storage.speeds) or {}).get(_key(plan, gpus))
    return Speed(**known) if known else None


def save(plan: Plan, gpus: int, speed: Speed) -> None:
    """Keep a measurement for the next plan."""
    speeds = store.read_sound(plan.storage.speeds) or {}
    store.write_json(plan.storage.speeds, speeds | {_key(plan, gpus): dataclasses.asdict(speed)})


def probe(plan: Plan) -> Speed:
    """Measure a very short repeat of the base recipe in this process."""
    import torch

    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import run

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    kimg = max(16 * plan.base.training.batch_size, 1000) / 1000
    fewer = min(plan.space.scoring.samples, 64)
    with tempfile.TemporaryDirectory() as folder:
        lines = run(
            plan.base.replace({"training.kimg": kimg}),
            open_dataset(plan.dataset),
            Path(folder),
            plan.options.seed,
            rungs_kimg=[kimg],
            scoring=plan.space.scoring.model_copy(update={"samples": fewer}),
        )
        line = list(lines)[-1]
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    training = kimg * 1000 / line["images_per_second"]
    scoring = (line["seconds"] - training) * plan.space.scoring.samples / fewer
    return Speed(training / kimg, scoring, size)


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take."""

    first_repeats: int
    race_repeats: int
    kimg: float
    hours: float
    bytes: int


def estimate(plan: Plan, places: int, speed: Speed) -> Estimate:
    """Reckon with a share 1/reduction of the trials going on after each rung, and a race in which nobody drops out."""
    budget = plan.space.budget
    kimg = scores = 0.0
    alive, previous = float(budget.trials), 0.0
    for rung in budget.rungs_kimg:
        kimg += alive * (rung - previous)
        scores += alive
        alive, previous = max(1.0, alive / budget.reduction), rung
    race = min(budget.leaders, budget.trials) * (budget.repeats - 1)
    kimg += race * budget.rungs_kimg[-1]
    scores += race * len(budget.rungs_kimg)
    seconds = kimg * speed.seconds_per_kimg + scores * speed.seconds_per_score
    return Estimate(budget.trials, race, kimg, seconds / places / 3600, (budget.trials + race) * speed.bytes)


def measured(folder: SweepFolder, repeats: Sequence[Repeat]) -> Speed | None:
    """Take the measure of the repeats that finished; none if there are none."""
    finished = [repeat for repeat in repeats if repeat.status == "finished"]
    if not finished:
        return None
    training, scoring, sizes = [], [], []
    for repeat in finished:
        line = repeat.last
        seconds = 1000 / line["images_per_second"]
        training.append(seconds)
        scoring.append(max(0.0, line["seconds"] - seconds * line["kimg"]) / len(repeat.scores))
        files = folder.repeat(repeat.trial, repeat.repeat).path.rglob("*")
        sizes.append(sum(path.stat().st_size for path in files if path.is_file()))
    return Speed(statistics.fmean(training), statistics.fmean(scoring), max(sizes))


def seconds_left(trials: Sequence[Trial], space: Space, running: Mapping[str, float]) -> float | None:
    """Return how long a sweep's end is off, one repeat after another; none before the first score.

    It is reckoned as in `estimate`, at the mean pace so far, from the kimg of each repeat that runs (by its label).
    """
    budget = space.budget
    scored = [repeat.last for trial in trials for repeat in trial.repeats if repeat.scores]
    if not scored:
        return None
    last, kimg = budget.rungs_kimg[-1], (budget.trials - len(trials)) * _ladder(budget)
    for repeat in (repeat for trial in trials for repeat in trial.repeats):
        if repeat.open:
            begun = running.get(f"{repeat.trial}.{repeat.repeat}", repeat.last.get("kimg", 0.0))
            kimg += max(0.0, last - begun if repeat.phase == "race" else _ladder(budget, repeat.passed, begun))
    kimg += races_left(trials, space) * last
    return kimg * statistics.fmean(line["seconds"] / line["kimg"] for line in scored)


def races_left(trials: Sequence[Trial], space: Space) -> int:
    """Return how many more repeats the race will begin at most."""
    budget = space.budget
    out = sum(trial.status in ("pruned", "failed") for trial in trials)
    begun = sum(repeat.phase == "race" for trial in trials for repeat in trial.repeats)
    return max(0, min(budget.leaders, budget.trials - out) * (budget.repeats - 1) - begun)


def _ladder(budget: Budget, passed: float = 0.0, begun: float = 0.0) -> float:
    """Return the kimg that a trial of the search has before it, if each rung stops all but 1/reduction of them."""
    kimg, alive, previous = 0.0, 1.0, max(passed, begun)
    for rung in budget.rungs_kimg:
        if rung > passed:
            kimg += alive * max(0.0, rung - previous)
            alive, previous = alive / budget.reduction, max(previous, rung)
    return kimg
