"""The models of a sweep in MLflow's registry: a version of `scrimp-<dataset>` for each, found by its aliases.

Every step asks the server first whether it has been done, so that a step that was cut short is made up for, and none is
done twice.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_platform import winner
from scrimp_platform.tracking.mlflow_runs import Run, SweepRuns

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

ENDED_TAG = "scrimp.ended"
"""The tag of a version that says when its sweep ended, in Unix seconds: aliases point to the sweep that ended last."""
REPEAT_TAG = "scrimp.repeat"
MODEL_TYPE = "diffusion"


def register_models(
    runs: SweepRuns, run: Run, name: str, models: Mapping[str, Path], description: str, ended: float
) -> None:
    """Send a sweep's models and point aliases to them.

    Parameters
    ----------
    runs, run
        The connection, and the run of the sweep.
    name
        Name of the models in the registry.
    models
        Their folders by alias, as `winner.write_models` has written them.
    description
        What the registry says of each, in Markdown.
    ended
        When the sweep ended, in Unix seconds.
    """
    versions: dict[str, str] = {}
    for alias, folder in models.items():
        if winner.identity_of(folder):
            versions[alias] = _register(runs, run, name, folder, description, ended)
    if "recommended" not in versions:
        return

    # The recommended model is also the best one if it has no folder of its own.
    for alias in models:
        _point_alias(runs.client, name, alias, versions.get(alias, versions["recommended"]), ended)


def _register(runs: SweepRuns, run: Run, name: str, folder: Path, description: str, ended: float) -> str:
    """Send a model and register it; return its version."""
    client = runs.client
    identity = winner.identity_of(folder)
    logged = _logged_model(runs, run, name, identity)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        runs.send_model_file(run, logged.model_id, file, str(file.parent.relative_to(folder)))
    if str(logged.status) != "READY":
        client.finalize_logged_model(logged.model_id, "READY")

    _create_registered_model(client, name)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(winner.IDENTITY) == identity:
            return str(version.version)
    tags = {winner.IDENTITY: identity, ENDED_TAG: f"{ended:.3f}", REPEAT_TAG: identity.split(" ")[-2]}
    created = client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run.id,
        tags,
        description=description,
        await_creation_for=0,  # MLflow would print that it waits
        model_id=logged.model_id,
    )
    return str(created.version)


def _logged_model(runs: SweepRuns, run: Run, name: str, identity: str) -> "LoggedModel":
    """Return the server's entry of a model; create it if there is none."""
    registered = runs.client.search_logged_models([runs.experiment], f"tags.`{winner.IDENTITY}` = '{identity}'")
    if registered:
        return registered[0]
    tags = {winner.IDENTITY: identity, "mlflow.user": run.tags.get("mlflow.user", "")}
    return runs.client.create_logged_model(runs.experiment, name, run.id, tags, model_type=MODEL_TYPE)


def _create_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    # Another sweep on the same dataset may create it at the same time.
    with contextlib.suppress(MlflowException):
        client.get_registered_model(name)
        return
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name, description="Diffusion models that sweeps of Scrimp recommend.")


def _point_alias(client: "MlflowClient", name: str, alias: str, version: str, ended: float) -> None:
    """Point an alias to a version, unless it points to one of a sweep that ended later."""
    current: Any = client.get_registered_model(name).aliases.get(alias)
    if current is not None and str(current) != version:
        there = client.get_model_version(name, str(current))
        if float(there.tags.get(ENDED_TAG, 0)) > ended:
            return
    if str(current) != version:
        client.set_registered_model_alias(name, alias, version)
