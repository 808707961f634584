"""What `sweep.json` records of a sweep: its plan, and the software that trained what."""

import os
import time
from typing import Any

from scrimp_cluster.facts import code, versions
from scrimp_platform import store
from scrimp_platform.arrangement import Choice
from scrimp_platform.plan import Plan, is_addition
from scrimp_platform.search import budget_changes, records
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common import environment, parts
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of

CHOICE_KEY = "auto_gpus_per_repeat"
"""Of `sweep.json`: what was measured for `--gpus-per-repeat auto`."""


def sweep_record(plan: Plan, choice: Choice | None = None) -> dict[str, Any]:
    """Return the content of `sweep.json`, with what was measured for `--gpus-per-repeat auto`, now or before."""
    earlier = store.read_json(plan.folder.description) or {}
    now = time.time()
    software = _software()
    return {
        "name": plan.folder.path.name,
        # Identifies the sweep in MLflow, also after its folder has been renamed.
        "id": earlier.get("id", f"{plan.folder.path.name} {now:.3f}"),
        "space_name": plan.options.space_name,
        "space": plan.space.model_dump(mode="json"),
        "dataset": {
            "name": plan.manifest.name,
            "content_hash": plan.manifest.content_hash,
            "folder": _portable(plan),
            **_profile(plan.manifest),
        },
        "parts": parts.digests(plan.own_parts),
        "seed": plan.options.seed,
        budget_changes.KEY: plan.limits_set,
        "added": plan.options.trials if is_addition(plan.options.trials) else None,
        CHOICE_KEY: choice.to_json() if choice else earlier.get(CHOICE_KEY),
        "started": earlier.get("started", now),
        "driver_started": now,
        **software,
        "earlier": _earlier_software(plan.folder, earlier, software),
    }


def recorded_choice(folder: SweepFolder) -> Choice | None:
    """Return what was measured for `--gpus-per-repeat auto` when the sweep began; None if nothing was."""
    saved = (store.read_json(folder.description) or {}).get(CHOICE_KEY)
    return Choice.from_json(saved) if saved else None


def _profile(manifest: Manifest) -> dict[str, Any]:
    """Return what MLflow shows of a dataset."""
    return {
        "modality": manifest.modality,
        "shape": list(modality_of(manifest).shape),
        "picture": list(getattr(modality_of(manifest), "picture_shape", ())) or None,
        "classes": len(manifest.classes or ()),
        "splits": {name: split.count for name, split in manifest.splits.items()},
    }


def software_changes(description: dict[str, Any]) -> str:
    """Say which packages or code have changed since a sweep was last run; empty if none has."""
    if "code" not in description:
        return ""
    return environment.describe_changes(_flat_software(description), _flat_software(_software()))


def _software() -> dict[str, Any]:
    installed = {package: version for package, version in versions().items() if version}
    return {"versions": installed, "code": code()}


def _flat_software(description: dict[str, Any]) -> dict[str, str]:
    return {"code": description["code"], **description["versions"]}


def _earlier_software(folder: SweepFolder, description: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """List the software with which the sweep ran before, and for each the repeats that ended then."""
    entries: list[dict[str, Any]] = description.get("earlier", [])
    before = {name: description.get(name) for name in now}
    if not description or before == now:
        return entries

    listed: set[str] = set()
    for entry in entries:
        listed.update(entry["repeats"])
    ended = []
    for repeat in records.read_records(folder).repeats:
        label = folder.repeat(repeat.trial, repeat.repeat).label
        if repeat.status in ("finished", "stopped", "failed") and label not in listed:
            ended.append(label)
    return [*entries, before | {"repeats": ended}]


def _portable(plan: Plan) -> str:
    """Return the dataset's folder, relative to the sweep's if it lies in the storage, which may then be moved."""
    if plan.dataset.is_relative_to(plan.storage.path):
        return os.path.relpath(plan.dataset, plan.folder.path)
    return str(plan.dataset)
