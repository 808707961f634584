"""The plan of a sweep: everything checked and resolved before anything starts."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_platform import store
from scrimp_platform.cluster import AUTO
from scrimp_platform.search import budget_changes, feasibility, records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers import fit
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe

if TYPE_CHECKING:
    from scrimp_platform.search.warm_start import WarmStart

DIGITS = "digits"
"""The dataset that comes with scikit-learn."""
ALL = Path("all")
"""As a warm start: every other sweep of the storage."""


FILE_FIELDS = ("codec.encoder", "codec.decoder", "coreset.weights", "reweighting.recipe")
"""Fields of a recipe that may name a file."""

LIMITS = ("trials", "repeats", "leaders", "retries", "patience_minutes", "max_gpu_hours", "until_gain", "max_hours")
"""Fields of the budget that may change when a sweep is resumed: they limit it, and leave what it compares unchanged."""


@dataclass(frozen=True)
class SweepOptions:
    """The options of `scrimp sweep`; None means the space's own value."""

    space: str | Space = "quickstart"
    data: str = DIGITS
    trials: int | str | None = None
    """Recipes to try; `+4` adds to the trials that an earlier sweep of this name has."""
    repeats: int | None = None
    rungs: tuple[float, ...] | None = None
    name: str | None = None
    storage: Path = Path("runs")
    tracking_uri: str | None = None
    warm_start: tuple[Path, ...] = ()
    max_gpu_hours: float | None = None
    until_gain: float | str | None = None
    gpus_per_repeat: int | str | None = None
    """GPUs of a repeat, or `auto`; None means all of a node."""
    dry_run: bool = False
    fresh: bool = False
    seed: int = 0

    @property
    def space_name(self) -> str:
        """The space's name, as sweeps and MLflow show it; `space` if it was made in Python."""
        return "space" if isinstance(self.space, Space) else Path(self.space).stem


@dataclass(frozen=True)
class Plan:
    """A sweep that may start: all its parts exist and fit together."""

    options: SweepOptions
    space: Space
    base: Recipe
    storage: Storage
    folder: SweepFolder
    dataset: Path
    manifest: Manifest
    resumed: bool
    warm_start: "WarmStart"
    """What the sweep is given of earlier ones."""
    own_parts: tuple[Path, ...] = ()
    """The user's own parts, where the user has them; space and base recipe name their copies in the sweep's folder."""
    limits_set: budget_changes.Changes = field(default_factory=dict)
    """Limits that `scrimp set` has changed, and that the options leave so."""


def make_plan(options: SweepOptions) -> Plan:
    """Resolve the options and check that the parts of the sweep fit together.

    Raises
    ------
    UserError
        If the space, the dataset, or an earlier sweep of the same name does not allow it.
    """
    space = check_options(options)
    base = space.base()
    storage = Storage(expand_home(options.storage).absolute())
    dataset = resolve_dataset(options.data, storage)
    manifest = manifests.load_manifest(dataset)

    names.check_scoring(space.scoring, manifest)
    goals = [*space.objectives, *space.constraints]
    names.check_classes(goals, space.scoring, manifest, base.conditioning.classes)
    _check_rung_samples(space, goals, manifest)
    names.scores_captions(space.scoring, bool(base.conditioning.text))
    for values in [{}, *space.corners()]:
        fit.check_fit(base.replace(values), manifest)
    space = feasibility.resolve(space, manifest)

    folder = _folder(options, storage, manifest)
    space = _with_added_trials(space, options, folder)
    limits_set = budget_changes.in_force(folder, space)
    space = budget_changes.applied(space, limits_set)
    own_parts = base.parts
    resumed = _check_resume(folder, space, manifest, options.seed, own_parts)
    if own_parts:
        copies = tuple(folder.parts / file.name for file in own_parts)
        space = space.model_copy(update={"parts": copies})
        base = base.model_copy(update={"parts": copies})
    warm_start = _warm_start(options, space, storage, folder, resumed)
    return Plan(options, space, base, storage, folder, dataset, manifest, resumed, warm_start, own_parts, limits_set)


def _check_rung_samples(space: Space, goals: Sequence[str], manifest: Manifest) -> None:
    """Refuse rungs with too few samples for the scores by which the search decides there."""
    fewer = space.scoring.model_copy(update={"samples": space.samples_at(0)})
    try:
        names.check_classes(goals, fewer, manifest, conditional=True)
    except UserError as error:
        raise UserError(f"budget.rung_samples {fewer.samples}: {error}") from None


def check_options(options: SweepOptions) -> Space:
    """Refuse what can be refused before the dataset is prepared or read; return the space."""
    space = resolve_space(options)
    if options.data != DIGITS and not Path(options.data, manifests.MANIFEST_FILE).is_file():
        raise UserError(
            f"--data {options.data}: not a dataset; make one with `scrimp prepare {options.data} OUT` and pass OUT"
        )
    if options.name:
        _check_name(options.name)
    for name, value, least in (("gpus-per-repeat", options.gpus_per_repeat, 1), ("seed", options.seed, 0)):
        if isinstance(value, str) and value != AUTO:
            raise UserError(f"--{name} {value}: must be a number, or {AUTO}")
        if isinstance(value, int) and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    _check_storage(expand_home(options.storage).absolute())
    if options.tracking_uri is not None:
        mlflow_server.check_address(options.tracking_uri)
    else:
        mlflow_server.check_storage_name(expand_home(options.storage).absolute())
    for path in options.warm_start:
        earlier = SweepFolder(path)
        # One that is gone may have been there when a resumed sweep began.
        if path != ALL and path.exists() and not earlier.description.exists() and not earlier.trial_numbers():
            raise UserError(f"--warm-start {path}: not the folder of a sweep (no {earlier.description.name})")
    return space


def resolve_space(options: SweepOptions) -> Space:
    """Load the space and replace its budget by what the command line sets of it."""
    if isinstance(options.space, Space):
        space = options.space
        where = "space"
    else:
        space = spaces.load_space(options.space)
        where = f"space {options.space}"

    budget = space.budget.model_dump()
    chosen = {
        "trials": None if is_addition(options.trials) else options.trials,
        "repeats": options.repeats,
        "rungs_kimg": options.rungs,
        "max_gpu_hours": options.max_gpu_hours,
        "until_gain": options.until_gain,
    }
    for name, value in chosen.items():
        if value is not None:
            budget[name] = value
    override = recipes.flattened(space.override) | _absolute_files(space)
    return spaces.parse_space(space.model_dump() | {"budget": budget, "override": override}, where)


def is_addition(trials: int | str | None) -> bool:
    """Whether a number of trials is one to add, such as `+4`."""
    if trials is None or isinstance(trials, int):
        return False
    if not re.fullmatch(r"\+[1-9][0-9]*", trials):
        raise UserError(f"--trials {trials}: give a number such as 20, or +4 to add to a sweep's trials")
    return True


def _with_added_trials(space: Space, options: SweepOptions, folder: SweepFolder) -> Space:
    """Return the space with the trials that are added to those of the earlier sweep.

    They are added once: until they are done, the same command resumes the sweep.
    """
    if not is_addition(options.trials):
        return space
    if not folder.description.exists():
        raise UserError(f"--trials {options.trials}: adds to a sweep, but there is no {folder.path} yet; give a number")

    earlier = records.sweep_description(folder)
    trials = records.space_of(folder).budget.trials
    if space.arms or trials is None:
        limit = "its space lists its trials" if space.arms else "hours alone limit it; raise --max-gpu-hours"
        raise UserError(f"--trials {options.trials}: sweep {folder.path.name} has no number to add to: {limit}")
    if earlier.get("added") != options.trials or records.ending(folder, earlier) == "complete":
        trials += int(str(options.trials))
    return space.model_copy(update={"budget": space.budget.model_copy(update={"trials": trials})})


def _absolute_files(space: Space) -> dict[str, str]:
    """Return the recipe's fields that name an existing file by a relative path, made absolute for the workers."""
    fields = recipes.flattened(space.base().model_dump(mode="json"))
    absolute = {}
    for path in FILE_FIELDS:
        name = fields.get(path)
        if name and Path(name).exists() and not Path(name).is_absolute():
            absolute[path] = str(Path(name).absolute())
    return absolute


def resolve_dataset(data: str, storage: Storage) -> Path:
    """Return the folder of a dataset that passed `check`; digits are prepared on first use."""
    if Path(data, manifests.MANIFEST_FILE).is_file():
        return Path(data).absolute()
    folder = storage.dataset(data)
    if folder.exists():
        return folder
    from scrimp_platform.cli import terminal
    from scrimp_trainers import ingest
    from scrimp_trainers.data import options

    # If two sweeps are started in a new storage folder, only one of them prepares the digits.
    lock = folder.with_name(f"{data}.lock")
    with store.exclusive(lock, f"dataset {data} to be prepared", patience=math.inf, say=terminal.say):
        if not folder.exists():
            ingest.prepare(data, folder, options.Options())
    return folder


def _warm_start(
    options: SweepOptions, space: Space, storage: Storage, folder: SweepFolder, resumed: bool
) -> "WarmStart":
    """Return what the sweep is given of earlier ones: what it was given at its start, if it is resumed."""
    from scrimp_platform.search import warm_start  # it imports optuna, which takes a second

    asked = [path.absolute().name for path in options.warm_start]
    if resumed:
        return warm_start.resume(asked, folder)

    named = [SweepFolder(path) for path in options.warm_start if path != ALL]
    others: list[SweepFolder] = []
    if ALL in options.warm_start:
        taken = {folder.path, *(earlier.path.absolute() for earlier in named)}
        others = [other for other in storage.sweeps() if other.path not in taken]
    return warm_start.collect(asked, named, others, space)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name}: use letters, digits, '.', '_' and '-'")


def _check_storage(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--storage {folder}: {existing} is not a writable folder; make it one, or name another")


def _folder(options: SweepOptions, storage: Storage, manifest: Manifest) -> SweepFolder:
    name = options.name
    if not name:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{options.space_name}-{manifest.name}").lstrip("._-")
    _check_name(name)

    if options.fresh:
        stem = name
        number = 2
        while storage.sweep(name).path.exists():
            name = f"{stem}-{number}"
            number += 1
    return storage.sweep(name)


def _check_resume(
    folder: SweepFolder, space: Space, manifest: Manifest, seed: int, own_parts: Sequence[Path] = ()
) -> bool:
    """Whether the folder holds this sweep already; one of another space, seed or dataset is refused."""
    if folder.path.exists() and not os.access(folder.path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder.path}: belongs to another user and cannot be written; use another --name")
    if not folder.description.exists() and not folder.trial_numbers():
        return False

    earlier = records.sweep_description(folder)
    # Parsed, so that a field which was added since has its default.
    earlier_space = records.space_of(folder)
    before = _flatten({"space": earlier_space.model_dump(mode="json"), "seed": earlier["seed"]})
    before["dataset"] = earlier["dataset"]["content_hash"][:12]
    before |= _flatten({"parts": earlier.get("parts", {})})
    after = _flatten({"space": space.model_dump(mode="json"), "seed": seed})
    after["dataset"] = manifest.content_hash[:12]
    after |= _flatten({"parts": parts.digests(own_parts)})

    # Of own parts the content counts, not the place.
    may_change = {f"space.budget.{name}" for name in LIMITS} | {"space.about", "space.parts"}
    may_change |= {path for path in before.keys() | after.keys() if path.startswith("space.made_for")}
    fixed = sorted((before.keys() | after.keys()) - may_change)
    changed = [path for path in fixed if before.get(path) != after.get(path)]
    changes = [f"{path} was {before.get(path)}, is {after.get(path)}" for path in changed]
    if changes:
        raise UserError(
            f"sweep {folder.path.name} exists and differs: {'; '.join(changes)}; "
            "use another --name, or --fresh to start beside it"
        )
    return True


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    leaves = {}
    for name, branch in tree.items():
        leaves |= _flatten(branch, f"{path}.{name}" if path else name)
    return leaves
