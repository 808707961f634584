"""What to search on a dataset, and for how long: plain rules, each with its reason.

The rules see what `dataset.json` states, earlier sweeps of the same dataset, and a machine. Nothing is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_platform.machine import Machine
from scrimp_platform.report import formatting
from scrimp_platform.search import resolution
from scrimp_platform.search.resolution import SeedNoise
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import CAPTIONED, Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.metrics.extractors.extractor import facts
from scrimp_trainers.recipe.scoring import Extractor

TINY = 16
"""Images of at most this side are for the smallest networks."""
LATENT_SIDE = 128
"""Side from which images are trained on as latents: an autoencoder makes it 8 times smaller."""
FEW = 1000
"""Training images below which sets are called low-shot, as LD-Diffusion's of 100 are."""
SOME = 5000
"""Training images below which a model still copies many of them."""
UNEVEN = 10
"""The largest class has this many times the images of the smallest."""
PASSES = 10
"""Times that the longest training should see each image, at least: a rule of thumb. Scrimp's spaces do so 8 times or
more on the datasets that they are made for."""
DETECTABLE = 0.05
"""Difference of two scores that the race should tell."""
FEWEST_SEEDS = 3
MOST_SEEDS = 10
"""Fresh seeds of a raced trial."""
OWN: tuple[Extractor, ...] = ("classifier", "contrastive")
"""The extractors that are trained on a dataset when it is prepared."""


@dataclass(frozen=True)
class Advised:
    """One piece of advice."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """Which space to sweep, with which budget, and why."""

    space: Space | None
    """The space as advised; None if no space of Scrimp's is for such data."""
    lines: tuple[Advised, ...]
    commands: tuple[str, ...]
    """What to type next."""


@dataclass(frozen=True)
class MachinesAtHand:
    """The machines that hours are reckoned for."""

    machine: Machine
    nodes: int
    about: str
    """Where they are known from."""


@dataclass(frozen=True)
class Learned:
    """What earlier sweeps in the storage say of a dataset."""

    sweeps: tuple[Path, ...] = ()
    """The folders of those on it, the last one at the end."""
    noise: SeedNoise | None = None
    hours: float = 0.0
    """Device-hours of the last one."""


def choose_space(manifest: Manifest) -> tuple[str | None, str]:
    """Return the name of the space for a dataset, and why; no name if none is made for such data."""
    count = manifest.splits["train"].count
    labelled = len(manifest.classes or []) > 1
    if manifest.modality == "strokes":
        return _for_drawings(count, labelled)
    if manifest.modality == CAPTIONED:
        return "sd-ambient", "the images have captions, and this space fine-tunes Stable Diffusion, which reads them"
    if "images" not in manifest.kinds:
        return None, f"no space of Scrimp's is for {manifest.modality}; docs/extending.md says how to write one"

    size = manifest.size
    shape = f"{size}x{size} pixels"
    if size <= TINY:
        if labelled:
            return "scrimp-small", f"{shape} need a small network only, and there are classes to reweight and score by"
        return "quickstart", f"{shape} need a small network only; without classes there is nothing to reweight"
    if size >= LATENT_SIDE:
        return _for_latents(count, shape)
    if count < SOME:
        return "ambient", (
            f"{count:,} images are few: below {SOME:,} a model copies many of them, and this space searches the noise "
            f"that prevents it; {shape} are too small for latents"
        )
    unevenness = _unevenness(manifest)
    if labelled and unevenness >= UNEVEN:
        return "prune-reweight", (
            f"the largest class has {unevenness:.0f} times the images of the smallest, from {UNEVEN} on too many to "
            "ignore, and this space searches class weights and coresets"
        )
    if labelled:
        return "scrimp", f"{count:,} labelled images of {shape} allow for the techniques of all four papers"
    return "sparse-to-sparse", (
        f"{count:,} images of {shape} without classes: nothing can be reweighted, and at this number of images what "
        "is left to save is compute"
    )


def _for_drawings(count: int, labelled: bool) -> tuple[str, str]:
    if labelled and count < SOME:
        return "chirodiff-small", f"{count:,} labelled pen drawings: a small GRU learns them, scored by their classes"
    return "chirodiff", "pen drawings are trained on as points, by a GRU"


def _for_latents(count: int, shape: str) -> tuple[str, str]:
    if count < FEW:
        return "ld-diffusion", (
            f"{count:,} images are few: below {FEW:,} a model learns them by heart, and this space searches "
            f"LD-Diffusion's augmentation, patches and OOD term against it; from {LATENT_SIDE} pixels on latents are "
            "cheaper"
        )
    if count < SOME:
        return "ld-diffusion-ffhq", (
            f"{count:,} images, below {SOME:,}, are about as many as LD-Diffusion's subsets of FFHQ, whose "
            f"augmentation and patches this space searches; from {LATENT_SIDE} pixels on latents are cheaper"
        )
    return "ldm", f"{count:,} images of {shape}: latents are cheaper, and sparse networks cheaper still"


def _unevenness(manifest: Manifest) -> float:
    """Return how many times the images of the smallest class the largest has; classes without any do not count."""
    counts = [count for count in manifest.splits["train"].per_class or [] if count]
    return max(counts) / min(counts) if counts else 1.0


def own_extractor(manifest: Manifest) -> Extractor | None:
    """Return the extractor that was trained on a prepared dataset itself, if there is one and it is of use."""
    for extractor in OWN:
        own = facts(extractor).own
        if own and not names.fault_of_own(own, manifest):
            return extractor
    return None


def advise(
    manifest: Manifest,
    data: str,
    own: Extractor | None,
    at_hand: MachinesAtHand | None = None,
    learned: Learned | None = None,
) -> Advice:
    """Return which space to sweep on a dataset, and why.

    Parameters
    ----------
    data
        The dataset's folder, for the commands.
    own
        The extractor of its own that it has, or will have once it is prepared.
    at_hand
        The machines; None leaves the hours out.
    """
    learned = learned or Learned()
    name, reason = choose_space(manifest)
    if name is None:
        return Advice(None, (Advised("space", "none", reason),), ())
    lines = [Advised("space", name, reason)]
    stated = spaces.load_space(name)

    space, extractor_line = _with_extractor(stated, own)
    lines += extractor_line
    space, batch_line = _with_batch(space, manifest)
    edited = space != stated
    lines.append(batch_line)
    space, rungs_line = _with_rungs(space, manifest)
    lines.append(rungs_line)
    space, repeats_line = _with_repeats(space, learned.noise)
    lines.append(repeats_line)

    if learned.sweeps:
        lines.append(_warm_start(learned))
    if at_hand:
        lines += _hours(space, manifest, at_hand)
    return Advice(space, tuple(lines), _commands(name, data, space, stated, edited, learned.sweeps))


def _with_extractor(space: Space, own: Extractor | None) -> tuple[Space, list[Advised]]:
    """Return the space, scored by another extractor if it asks for one that the dataset has not."""
    wanted = space.scoring.extractor
    if wanted not in OWN or wanted == own:
        return space, []

    other = own or "inception"
    kind = "which it has" if own else "whose weights are downloaded once"
    reason = f"the space's {wanted} is not among what this dataset has, or is of no use; this is one {kind}"
    renamed = {names.named("fd", wanted): names.named("fd", other)}
    objectives = {renamed.get(score, score): direction for score, direction in space.objectives.items()}
    scoring = space.scoring.model_copy(update={"extractor": other})
    changed = space.model_copy(update={"objectives": objectives, "scoring": scoring})
    return changed, [Advised("extractor", other, reason)]


def _with_batch(space: Space, manifest: Manifest) -> tuple[Space, Advised]:
    """Return the space with a batch that is no larger than the dataset."""
    count = manifest.splits["train"].count
    batch = space.base().training.batch_size
    largest = 2 ** int(math.log2(count))
    if batch <= largest:
        return space, Advised(
            "batch", f"{batch:,}", "that of the space's recipe; the dataset has more images than that"
        )
    override = _overridden(space.override, largest)
    reason = f"the recipe's {batch:,} are more than the dataset's {count:,} images: the next smaller power of two"
    return space.model_copy(update={"override": override}), Advised("batch", f"{largest:,}", reason)


def _overridden(override: dict[str, Any], batch: int) -> dict[str, Any]:
    if isinstance(override.get("training"), dict):
        return override | {"training": override["training"] | {"batch_size": batch}}
    return override | {"training.batch_size": batch}


def _with_rungs(space: Space, manifest: Manifest) -> tuple[Space, Advised]:
    """Return the space with rungs that are long enough for the number of images."""
    count = manifest.splits["train"].count
    rungs = space.budget.rungs_kimg
    passes = rungs[-1] * 1000 / count
    if passes >= PASSES:
        reason = f"the space's: the last one sees each of the {count:,} images {passes:,.0f} times"
        return space, Advised("rungs", _kimg(rungs), reason)

    factor = PASSES / passes
    longer = tuple(float(f"{rung * factor:.3g}") for rung in rungs)
    budget = space.budget.model_copy(update={"rungs_kimg": longer})
    reason = (
        f"the space's, times {factor:.3g}: its {_kimg(rungs)} would see each of the {count:,} images "
        f"{passes:,.1f} times, and below {PASSES} it is the length that limits a model, not the recipe"
    )
    return space.model_copy(update={"budget": budget}), Advised("rungs", _kimg(longer), reason)


def _kimg(rungs: Sequence[float]) -> str:
    return f"{', '.join(formatting.number(rung) for rung in rungs)} kimg"


def _with_repeats(space: Space, noise: SeedNoise | None) -> tuple[Space, Advised]:
    """Return the space with as many seeds as tell two trials apart by `DETECTABLE`."""
    stated = space.budget.repeats
    if noise is None:
        gap = resolution.smallest_gap(space)
        reason = (
            f"the space's, which tell differences of {gap:.1f} seed deviations in 4 of 5 cases; how large that is, the "
            "first sweep on this dataset tells"
        )
        return space, Advised("repeats", f"{stated}", reason)

    # The difference of two means over n seeds has a deviation of sqrt(2 / n), as in `resolution.smallest_gap`.
    quantiles = resolution.QUANTILE_SURE + resolution.QUANTILE_POWER
    needed = 2 * (quantiles * noise.share / DETECTABLE) ** 2
    seeds = min(MOST_SEEDS, max(FEWEST_SEEDS, math.ceil(needed)))
    repeats = seeds + stated - resolution.fresh_seeds(space)
    gap = quantiles * noise.share * math.sqrt(2 / seeds)
    reason = (
        f"seeds differ by {noise.share:.1%} in sweep {noise.sweep}, so {seeds} fresh ones tell differences of "
        f"{gap:.1%} in 4 of 5 cases; the aim is {DETECTABLE:.0%}, with {FEWEST_SEEDS} to {MOST_SEEDS} fresh seeds"
    )
    budget = space.budget.model_copy(update={"repeats": repeats})
    return space.model_copy(update={"budget": budget}), Advised("repeats", f"{repeats}", reason)


def _warm_start(learned: Learned) -> Advised:
    last = learned.sweeps[-1].name
    sweeps = ", ".join(folder.name for folder in learned.sweeps)
    reason = f"earlier sweeps of this dataset: {sweeps}; where fields are shared, a new one begins with what they found"
    if learned.hours:
        reason += f". {last} took {formatting.duration(learned.hours)} of devices"
    return Advised("warm start", last, reason)


def _hours(space: Space, manifest: Manifest, at_hand: MachinesAtHand) -> list[Advised]:
    """Return what the sweep takes on the machines at hand, by the forecast of `scrimp spaces --on`."""
    from scrimp_platform.search import forecast

    try:
        expected = forecast.forecast(space, manifest, at_hand.machine)
    except UserError as error:
        return [Advised("hours", "not known", f"the space does not fit: {error}")]

    search = expected.search.total + expected.references
    race = expected.race.total
    gpus = at_hand.machine.gpus * at_hand.nodes
    nodes = formatting.plural(at_hand.nodes, "node")
    kind = f"{nodes} of {at_hand.machine.gpus} x {at_hand.machine.gpu.memory} GB"
    lines = [
        Advised(
            "hours",
            f"about {formatting.duration((search + race) / gpus)}",
            f"on {kind} ({at_hand.about}): {formatting.number(search)} GPU-hours for the search and at most "
            f"{formatting.number(race)} for the race. This assumes a share of the GPUs' peak and the costliest recipe "
            "in every trial; nothing is measured, which `--dry-run` does",
        )
    ]
    step = expected.step
    if step.fits and step.microbatch < step.images:
        lines.append(
            Advised("microbatch", f"{step.microbatch}", f"of a GPU's {step.images} images, as memory is counted")
        )
    lines += [Advised("exceeds", "the machine or budget", fault) for fault in expected.faults]
    return lines


def _commands(
    name: str, data: str, space: Space, stated: Space, edited: bool, sweeps: Sequence[Path]
) -> tuple[str, ...]:
    """Return what to type: the sweep's dry run, with what differs from the space."""
    commands = []
    chosen = name
    if edited:
        chosen = f"{name}.yaml"
        commands.append(f"scrimp spaces {name} --yaml > {chosen}    # and write into it: {_edits(space, stated)}")
    sweep = f"scrimp sweep --space {chosen} --data {data}"
    if space.budget.rungs_kimg != stated.budget.rungs_kimg:
        sweep += f" --rungs {','.join(f'{rung:g}' for rung in space.budget.rungs_kimg)}"
    if space.budget.repeats != stated.budget.repeats:
        sweep += f" --repeats {space.budget.repeats}"
    if sweeps:
        sweep += f" --warm-start {sweeps[-1]}"
    return (*commands, f"{sweep} --dry-run")


def _edits(space: Space, stated: Space) -> str:
    edits = []
    if space.override != stated.override:
        edits.append(f"override.training.batch_size: {space.base().training.batch_size}")
    if space.scoring != stated.scoring:
        objectives = ", ".join(f"{score}: {direction}" for score, direction in space.objectives.items())
        edits.append(f"objectives: {{{objectives}}}, scoring.extractor: {space.scoring.extractor}")
    return "; ".join(edits)
