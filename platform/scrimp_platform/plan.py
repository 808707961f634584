"""The plan of a sweep: everything checked and resolved before anything starts."""

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_cluster.facts import code, versions
from scrimp_platform import store
from scrimp_platform.search import feasibility, records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers import fit
from scrimp_trainers.common import environment
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe

DIGITS = "digits"
"""The dataset that comes with scikit-learn."""


@dataclass(frozen=True)
class Options:
    """What a user may say on the command line; none takes the space's own value."""

    space: str | Space = "quickstart"
    data: str = DIGITS
    trials: int | None = None
    repeats: int | None = None
    rungs: tuple[float, ...] | None = None
    name: str | None = None
    storage: Path = Path("runs")
    tracking_uri: str | None = None
    warm_start: tuple[Path, ...] = ()
    max_gpu_hours: float | None = None
    gpus_per_repeat: int | None = None
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

    options: Options
    space: Space
    base: Recipe
    storage: Storage
    folder: SweepFolder
    dataset: Path
    manifest: Manifest
    resumed: bool
    warm_start: tuple[dict[str, Any], ...] = ()
    """Values of searched fields to propose first."""


def make(options: Options) -> Plan:
    """Resolve what was asked for and check that it holds together.

    Raises
    ------
    UserError
        If the space, the dataset, or an earlier sweep of the same name does not allow it.
    """
    space = check(options)
    base = space.base()
    storage = Storage(options.storage.expanduser().absolute())
    dataset = resolve_dataset(options.data, storage)
    facts = manifest.load(dataset)
    names.check(space.scoring, facts)
    judged = [*space.objectives, *space.constraints]
    names.check_classes(judged, space.scoring, facts, base.conditioning.classes)
    for values in [{}, *space.corners()]:
        fit.check(base.replace(values), facts)
    space = feasibility.resolve(space, facts)
    folder = _folder(options, storage, facts)
    resumed = _check_resume(folder, space, facts, options.seed)
    warm_start = tuple(values for path in options.warm_start for values in best_values(SweepFolder(path), space))
    return Plan(options, space, base, storage, folder, dataset, facts, resumed, warm_start)


def check(options: Options) -> Space:
    """Refuse what can be refused without reading the dataset, or preparing it; return the space that was asked for."""
    space = resolve_space(options)
    if options.data != DIGITS and not Path(options.data, manifest.FILE).is_file():
        raise UserError(
            f"--data {options.data}: not a dataset; make one with `scrimp prepare {options.data} OUT` and pass OUT"
        )
    if options.name:
        _check_name(options.name)
    for name, value, least in (("gpus-per-repeat", options.gpus_per_repeat, 1), ("seed", options.seed, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    _check_storage(options.storage.expanduser().absolute())
    if options.tracking_uri is not None:
        mlflow_server.check_address(options.tracking_uri)
    else:
        mlflow_server.check_storage(options.storage.expanduser().absolute())
    for path in options.warm_start:
        _require_sound(SweepFolder(path))
    return space


def resolve_space(options: Options) -> Space:
    """Load the space and put the command line's budget into it."""
    if isinstance(options.space, Space):
        space, where = options.space, "space"
    else:
        space, where = spaces.load(options.space), f"space {options.space}"
    asked = {
        "trials": options.trials,
        "repeats": options.repeats,
        "rungs_kimg": options.rungs,
        "max_gpu_hours": options.max_gpu_hours,
    }
    budget = space.budget.model_dump() | {name: value for name, value in asked.items() if value is not None}
    override = recipes.flattened(space.override) | _absolute_files(space)
    return spaces.parse(space.model_dump() | {"budget": budget, "override": override}, where)


FILES = ("codec.encoder", "codec.decoder", "coreset.weights", "reweighting.recipe")


def _absolute_files(space: Space) -> dict[str, str]:
    """Return the recipe's fields that name files here by a relative path, absolute: workers run in other folders."""
    base = space.base()
    named = {path: spaces.value_of(base, path) for path in FILES}
    here = {path: Path(name) for path, name in named.items() if name and Path(name).exists()}
    return {path: str(file.absolute()) for path, file in here.items() if not file.is_absolute()}


def resolve_dataset(data: str, storage: Storage) -> Path:
    """Return the folder of a dataset that passed `check`; digits are prepared on first use."""
    if Path(data, manifest.FILE).is_file():
        return Path(data).absolute()
    folder = storage.dataset(data)
    if folder.exists():
        return folder
    from scrimp_platform.cli import terminal
    from scrimp_trainers import ingest
    from scrimp_trainers.data import options

    # Of two first sweeps in a storage one prepares the digits.
    lock = folder.with_name(f"{data}.lock")
    with store.exclusive(lock, f"dataset {data} to be prepared", patience=math.inf, say=terminal.say):
        if not folder.exists():
            ingest.prepare(data, folder, options.Options())
    return folder


def _require_sound(earlier: SweepFolder) -> None:
    try:
        records.space_of(earlier)
    except UserError as error:
        raise UserError(f"--warm-start {error}") from None
    if problems := records.read(earlier).problems:
        raise UserError(f"--warm-start {problems[0]}; resume that sweep first, which trains again what is damaged")


def best_values(earlier: SweepFolder, space: Space) -> Iterator[dict[str, Any]]:
    """Yield the values of an earlier sweep's leaders, as far as this space searches them too.

    Only values are taken over, not scores: on another dataset those would mean something else.
    """
    from scrimp_platform.search import race  # it imports optuna, which only a warm start needs here

    for trial in race.leaders(records.read(earlier).trials, records.space_of(earlier)):
        known = {path: value for path, value in trial.params.items() if path in space.search}
        yield {path: value for path, value in known.items() if space.search[path].allows(value)}


def record(plan: Plan) -> dict[str, Any]:
    """Return what `sweep.json` says of the sweep."""
    earlier, now = store.read_json(plan.folder.sweep) or {}, time.time()
    software = _software()
    return {
        "name": plan.folder.path.name,
        # MLflow knows the sweep by this, also when its folder has been renamed.
        "id": earlier.get("id", f"{plan.folder.path.name} {now:.3f}"),
        "space_name": plan.options.space_name,
        "space": plan.space.model_dump(mode="json"),
        "dataset": {
            "name": plan.manifest.name,
            "content_hash": plan.manifest.content_hash,
            "folder": _portable(plan),
        },
        "seed": plan.options.seed,
        "started": earlier.get("started", now),
        "driver_started": now,
        **software,
        "earlier": _earlier_software(plan.folder, earlier, software),
    }


def changes(description: dict[str, Any]) -> str:
    """Say what of the software that a sweep runs with is not as it was when it was last run; empty if all is."""
    before, now = _flat_software(description), _flat_software(_software())
    return environment.changes(before, now) if before else ""


def _software() -> dict[str, Any]:
    return {"versions": {package: version for package, version in versions().items() if version}, "code": code()}


def _flat_software(description: dict[str, Any]) -> dict[str, str]:
    return {"code": description["code"], **description["versions"]} if "code" in description else {}


def _earlier_software(folder: SweepFolder, description: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """List what the sweep ran with before, each with the repeats that ended then; attempts are in their own folders."""
    known: list[dict[str, Any]] = description.get("earlier", [])
    before = {name: description.get(name) for name in now}
    if not description or before == now:
        return known
    listed = {label for entry in known for label in entry["repeats"]}
    ended = [
        folder.repeat(repeat.trial, repeat.repeat).label
        for repeat in records.read(folder).repeats
        if repeat.status in ("finished", "stopped", "failed")
    ]
    return [*known, before | {"repeats": [label for label in ended if label not in listed]}]


def _portable(plan: Plan) -> str:
    """Return the dataset's folder; one in the storage as seen from the sweep, so that both may be moved together."""
    if plan.dataset.is_relative_to(plan.storage.path):
        return os.path.relpath(plan.dataset, plan.folder.path)
    return str(plan.dataset)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name}: use letters, digits, '.', '_' and '-'")


def _check_storage(folder: Path) -> None:
    there = next(place for place in (folder, *folder.parents) if os.access(place, os.F_OK))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--storage {folder}: {there} is not a folder that can be written; mend that, or name another")


def _folder(options: Options, storage: Storage, facts: Manifest) -> SweepFolder:
    name = options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", f"{options.space_name}-{facts.name}").lstrip("._-")
    _check_name(name)
    if options.fresh:
        stem, number = name, 2
        while storage.sweep(name).path.exists():
            name, number = f"{stem}-{number}", number + 1
    return storage.sweep(name)


# What may differ when a sweep goes on: limits, not what was compared.
LIMITS = ("trials", "repeats", "leaders", "retries", "patience_minutes", "max_gpu_hours", "max_hours")


def _check_resume(folder: SweepFolder, space: Space, facts: Manifest, seed: int) -> bool:
    """Whether the folder holds this very sweep already; one of another space or dataset is refused."""
    if folder.path.exists() and not os.access(folder.path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder.path}: belongs to another user, and cannot be written; use another --name")
    if not folder.sweep.exists() and not folder.trial_numbers():
        return False
    old = records.describe(folder)
    now = {"space": space.model_dump(mode="json"), "seed": seed}
    before, after = (_flatten({"space": tree["space"], "seed": tree["seed"]}) for tree in (old, now))
    before["dataset"], after["dataset"] = old["dataset"]["content_hash"][:12], facts.content_hash[:12]
    limits = {f"space.budget.{name}" for name in LIMITS} | {"space.about"}
    changes = [
        f"{path} was {before.get(path)}, is {after.get(path)}"
        for path in sorted((before.keys() | after.keys()) - limits)
        if before.get(path) != after.get(path)
    ]
    if changes:
        raise UserError(
            f"sweep {folder.path.name} exists with something else: {'; '.join(changes)}; "
            "use another --name, or --fresh to start beside it"
        )
    return True


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        leaf: value
        for name, branch in tree.items()
        for leaf, value in _flatten(branch, f"{path}.{name}" if path else name).items()
    }
