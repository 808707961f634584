"""How long a sweep will take and how much disk: from the last similar one on this machine, or a short measurement."""

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
    """Return a hash of what a measurement depends on: the base recipe, the scoring, the data's shape, the devices."""
    settings = (plan.base.model_dump_json(exclude={"about"}), plan.space.scoring.model_dump_json())
    shape = (plan.manifest.size, plan.manifest.channels, plan.manifest.splits["train"].count, gpus)
    return hashlib.sha256(repr((settings, shape)).encode()).hexdigest()[:16]


def last_speed(plan: Plan, gpus: int) -> Speed | None:
    """Return what the last sweep like this one measured on this machine."""
    speeds = store.read_sound(plan.storage.speeds) or {}
    speed = speeds.get(_key(plan, gpus))
    return Speed(**speed) if speed else None


def save_speed(plan: Plan, gpus: int, speed: Speed) -> None:
    """Keep a measurement for the next plan."""
    speeds = store.read_sound(plan.storage.speeds) or {}
    store.write_json(plan.storage.speeds, speeds | {_key(plan, gpus): dataclasses.asdict(speed)})


def measure_base_recipe(plan: Plan) -> Speed:
    """Measure a very short repeat of the base recipe in this process."""
    import torch

    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import train_repeat

    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    kimg = max(16 * plan.base.training.batch_size, 1000) / 1000
    samples = min(plan.space.scoring.samples, 64)
    with tempfile.TemporaryDirectory() as folder:
        rows = train_repeat(
            plan.base.replace({"training.kimg": kimg}),
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
    return Speed(training / kimg, scoring, size)


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


def estimate_sweep(plan: Plan, places: int, speed: Speed) -> Estimate:
    """Assume that 1/reduction of the trials continue after each rung, and that the race eliminates no trial."""
    budget = plan.space.budget
    kimg = 0.0
    scores = 0.0
    trials = float(budget.trials)
    previous = 0.0
    for rung in budget.rungs_kimg:
        kimg += trials * (rung - previous)
        scores += trials
        trials = max(1.0, trials / budget.reduction)
        previous = rung

    race = min(budget.leaders, budget.trials) * (budget.repeats - 1)
    kimg += race * budget.rungs_kimg[-1]
    scores += race * len(budget.rungs_kimg)
    seconds = kimg * speed.seconds_per_kimg + scores * speed.seconds_per_score
    return Estimate(budget.trials, race, kimg, seconds / places / 3600, (budget.trials + race) * speed.bytes)


def measure_repeats(folder: SweepFolder, repeats: Sequence[Repeat]) -> Speed | None:
    """Return what the finished repeats cost; none if there are none."""
    finished = [(repeat, repeat.last) for repeat in repeats if repeat.status == "finished" and repeat.last]
    if not finished:
        return None

    training = []
    scoring = []
    sizes = []
    for repeat, row in finished:
        seconds_per_kimg = 1000 / row.images_per_second
        training.append(seconds_per_kimg)
        scoring.append(max(0.0, row.seconds - seconds_per_kimg * row.kimg) / len(repeat.rungs))
        sizes.append(_bytes_in(folder.repeat(repeat.trial, repeat.repeat).path))
    return Speed(statistics.fmean(training), statistics.fmean(scoring), max(sizes))


def seconds_left(trials: Sequence[Trial], space: Space, running: Mapping[str, float]) -> float | None:
    """Return the time to the end of a sweep that trains one repeat at a time; none before the first score.

    The assumptions are those of `estimate_sweep`, at the mean speed so far. `running` holds the kimg of each running
    repeat by label.
    """
    budget = space.budget
    last_rung = budget.rungs_kimg[-1]
    repeats = [repeat for trial in trials for repeat in trial.repeats]
    scored = [repeat.last for repeat in repeats if repeat.last]
    if not scored:
        return None

    kimg = (budget.trials - len(trials)) * _expected_kimg(budget)
    for repeat in repeats:
        if not repeat.open:
            continue
        trained = running.get(f"{repeat.trial}.{repeat.repeat}", repeat.last.kimg if repeat.last else 0.0)
        if repeat.phase == "race":
            kimg += max(0.0, last_rung - trained)
        else:
            kimg += _expected_kimg(budget, repeat.passed, trained)
    kimg += max_race_repeats_left(trials, space) * last_rung
    return kimg * statistics.fmean(row.seconds / row.kimg for row in scored)


def max_race_repeats_left(trials: Sequence[Trial], space: Space) -> int:
    """Return how many more repeats the race can start."""
    budget = space.budget
    stopped = sum(trial.status in ("pruned", "failed") for trial in trials)
    leaders = min(budget.leaders, budget.trials - stopped)
    started = sum(repeat.phase == "race" for trial in trials for repeat in trial.repeats)
    return max(0, leaders * (budget.repeats - 1) - started)


def _expected_kimg(budget: Budget, passed: float = 0.0, trained: float = 0.0) -> float:
    """Return the kimg still expected of a trial of the search, if each rung lets 1/reduction of the trials continue."""
    kimg = 0.0
    probability = 1.0
    previous = max(passed, trained)
    for rung in budget.rungs_kimg:
        if rung > passed:
            kimg += probability * max(0.0, rung - previous)
            probability /= budget.reduction
            previous = max(previous, rung)
    return kimg
