"""What a sweep of a space would take on a machine that is not here. Nothing in it is measured.

The costliest recipes of the space stand for all: what is said of memory and of hours is what they take at most.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scrimp_platform.machine import Machine
from scrimp_platform.search import estimate
from scrimp_platform.search.estimate import Speed, Work
from scrimp_spaces.budget import Budget
from scrimp_spaces.constraints import Bound
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import CAPTIONED, Manifest, Split, SplitName
from scrimp_trainers.recipe.recipe import Recipe, reference_recipe
from scrimp_trainers.training import load
from scrimp_trainers.training.load import Load
from scrimp_trainers.training.memory import Memory

LOAD_SECTIONS = ("network", "conditioning", "codec", "masking", "diffusion")
"""Sections of a recipe on which memory and FLOPs depend, besides precision and whether there are masks. What MAFP and
coordinates add to a network is less than a thousandth."""
VARIED = (*LOAD_SECTIONS, "training", "sparsity", "patches", "sampler")
"""Sections whose searched values change what a recipe takes."""


@dataclass(frozen=True)
class StepForecast:
    """A training step of a recipe on one GPU of a machine."""

    memory: Memory
    images: int
    """Its share of the step's images, or the microbatch that the recipe states."""
    least: int
    """Images that it must take at once: one, or as many as the recipe states."""
    fit: int
    """Images that fit at once; 0 if not one does."""

    @property
    def fits(self) -> bool:
        """Whether the recipe can be trained."""
        return self.fit >= self.least

    @property
    def microbatch(self) -> int:
        """Images that it takes at once."""
        return min(self.images, self.fit)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        memory = self.memory
        return memory.others + memory.constant + memory.image * max(1, self.microbatch)


@dataclass(frozen=True)
class Hours:
    """GPU-hours."""

    training: float
    scoring: float

    @property
    def total(self) -> float:
        """Both."""
        return self.training + self.scoring


@dataclass(frozen=True)
class Forecast:
    """What the costliest recipe of a space takes on a machine, and what a whole sweep does."""

    machine: Machine
    manifest: Manifest
    precision: str
    step: StepForecast
    """Of the recipe that takes most memory."""
    speed: Speed
    """Of the recipe that takes most time."""
    base_speed: Speed
    """Of the base recipe."""
    work: Work
    budget: Budget
    most_device_hours: float = math.inf
    """Device-hours of a repeat that the space allows."""

    @property
    def repeat(self) -> Hours:
        """Of a repeat that is trained to the end."""
        return self._repeat(self.speed)

    @property
    def search(self) -> Hours:
        """Of the search."""
        return self._hours(self.speed, self.work.search_kimg, self.work.search_scores)

    @property
    def race(self) -> Hours:
        """Of the race, if it eliminates no trial."""
        return self._hours(self.speed, self.work.race_kimg, self.work.race_scores)

    @property
    def references(self) -> float:
        """GPU-hours of references and proxies."""
        needed_speed = self.speed.seconds_per_needed_kimg or 0.0
        return self.work.needed.work * needed_speed * self.machine.gpus / 3600

    @property
    def bytes(self) -> int:
        """Bytes on disk, if no repeat is stopped."""
        return (self.work.trials + self.work.race_repeats) * self.speed.bytes

    @property
    def search_limit(self) -> float:
        """GPU-hours that the budget leaves to the search, its references included."""
        hours = self.budget.max_gpu_hours
        return math.inf if hours is None else (1 - self.budget.race_share) * hours

    @property
    def race_limit(self) -> float:
        """GPU-hours that search and references leave of the budget."""
        hours = self.budget.max_gpu_hours
        return math.inf if hours is None else max(0.0, hours - self.search.total - self.references)

    @property
    def faults(self) -> list[str]:
        """What exceeds the machine or the budget, in words."""
        faults = []
        step = self.step
        if not step.fits:
            faults.append(f"a GPU has room for {step.fit} images, and the recipe needs {step.least} at once")
        searching = self.search.total + self.references
        if searching > self.search_limit:
            faults.append(f"the search takes {searching:,.0f} GPU-hours; the budget has {self.search_limit:,.0f}")
        racing = self.race.total
        if racing > self.race_limit:
            faults.append(f"the race may take {racing:,.0f} GPU-hours; the search leaves {self.race_limit:,.0f}")
        base_hours = self._repeat(self.base_speed).total
        if base_hours > self.most_device_hours:
            faults.append(
                f"the base recipe takes {base_hours:,.1f} device-hours; constraints allow {self.most_device_hours:g}"
            )
        return faults

    def _repeat(self, speed: Speed) -> Hours:
        return self._hours(speed, self.budget.rungs_kimg[-1], self.work.repeat_scores)

    def _hours(self, speed: Speed, kimg: float, scores: float) -> Hours:
        gpus = self.machine.gpus
        training = kimg * speed.seconds_per_kimg * gpus / 3600
        scoring = scores * speed.seconds_per_score * gpus / 3600
        return Hours(training, scoring)


def forecast(space: Space, manifest: Manifest, machine: Machine) -> Forecast:
    """Count memory and FLOPs of a space's recipes, and reckon what a sweep of it takes.

    Raises
    ------
    UserError
        If a recipe does not fit the dataset.
    """
    modality = space.base().codec.modality
    if modality not in manifest.kinds:
        raise UserError(f"dataset {manifest.name} is of {manifest.modality}, but the space is for {modality}")

    loads: dict[str, Load] = {}
    steps = []
    speeds = []
    for recipe in extreme_recipes(space):
        own_load = _cached_load(recipe, manifest, loads)
        step = step_of(recipe, own_load, manifest, space, machine)
        steps.append(step)
        speeds.append(_speed_of(recipe, own_load, step, space, machine))

    needed_speed = None
    weighed = estimate.weighed_recipe(space)
    if weighed is not None:
        reference = reference_recipe(weighed.reweighting)
        own_load = _cached_load(reference, manifest, loads)
        step = step_of(reference, own_load, manifest, space, machine)
        needed_speed = _speed_of(reference, own_load, step, space, machine).seconds_per_kimg

    speed = Speed(
        max(each.seconds_per_kimg for each in speeds),
        max(each.seconds_per_score for each in speeds),
        max(each.bytes for each in speeds),
        needed_speed,
    )
    return Forecast(
        machine=machine,
        manifest=manifest,
        precision=space.base().training.precision,
        step=max(steps, key=lambda each: each.bytes),
        speed=speed,
        base_speed=speeds[0],
        work=estimate.work(space, speed, machine.gpus),
        budget=space.budget,
        most_device_hours=_most(space.constraints.get("device_hours")),
    )


def made_up_manifest(space: Space) -> Manifest:
    """Return a manifest of the dataset that a space is made for.

    Raises
    ------
    UserError
        If the space does not say which.
    """
    made_for = space.made_for
    if made_for is None:
        raise UserError("the space has no made_for, which says for what data it is; name a dataset with --data")
    base = space.base()
    splits: dict[SplitName, Split] = {"train": Split(count=made_for.items, per_class=None, shards=[])}
    if made_for.reference:
        splits["reference"] = Split(count=made_for.reference, per_class=None, shards=[])
    return Manifest(
        modality=CAPTIONED if base.conditioning.text else base.codec.modality,
        name="what the space is made for",
        content_hash="",
        size=made_for.size,
        channels=made_for.channels,
        classes=[str(number) for number in range(made_for.classes)] or None,
        splits=splits,
        reference="reference" if made_for.reference else "train",
        provenance={},
    )


def extreme_recipes(space: Space) -> Iterator[Recipe]:
    """Yield the base recipe, and those at the ends of all ranges that change what a recipe takes."""
    base = space.base()
    seen: list[dict[str, Any]] = []
    for values in [{}, *(space.arms.values() or space.corners())]:
        relevant = {path: value for path, value in values.items() if path.partition(".")[0] in VARIED}
        if relevant not in seen:
            seen.append(relevant)
            with contextlib.suppress(UserError):  # a contradiction, which is not trained
                yield base.replace(relevant)


def step_of(recipe: Recipe, own_load: Load, manifest: Manifest, space: Space, machine: Machine) -> StepForecast:
    """Return how a recipe's step fits on a machine."""
    memory = load.gpu_memory(own_load, recipe, manifest, space.scoring, machine.gpu)
    images = math.ceil(recipe.training.batch_size / machine.gpus)
    least = 1
    if recipe.training.microbatch != "auto":
        images = min(images, recipe.training.microbatch)
        least = images
    fit = memory.images_in(memory.total - memory.others)
    return StepForecast(memory, images, least, fit)


def _most(bound: Bound | None) -> float:
    return math.inf if bound is None or bound.max is None else bound.max


def _cached_load(recipe: Recipe, manifest: Manifest, loads: dict[str, Load]) -> Load:
    sections = recipe.model_dump(mode="json", include=set(LOAD_SECTIONS))
    depends_on = [sections, recipe.training.precision, recipe.sparsity.on, recipe.sparsity.accumulate]
    depends_on.append(recipe.ema.snapshots)
    key = json.dumps(depends_on, sort_keys=True)
    if key not in loads:
        loads[key] = load.load_of(recipe, manifest)
    return loads[key]


def _speed_of(recipe: Recipe, own_load: Load, step: StepForecast, space: Space, machine: Machine) -> Speed:
    microbatch = max(1, step.microbatch)
    return Speed(
        load.seconds_per_kimg(own_load, recipe, machine.gpu, machine.gpus, microbatch),
        load.seconds_per_score(own_load, recipe, space.scoring, machine.gpu, machine.gpus),
        own_load.bytes,
    )
