"""What a node trains in an hour with each number of GPUs for a repeat. It runs on the node, as a task of Ray."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrimp_platform import store
from scrimp_platform.arrangement import Arrangement, candidates
from scrimp_platform.machine import Machine
from scrimp_platform.search import forecast
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.gpus import CARDS
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training import load
from scrimp_trainers.training.load import Load

SECONDS = 5.0
"""Time for which the steps of an arrangement are timed, after their warm-up."""
LIMIT_S = 1500.0
"""Time for an arrangement, in which a dataset may have to be encoded first."""
ENDLESS_KIMG = 1e6
"""Length of the training that is timed, whose end is not reached."""
CHECK_INTERVAL_S = 0.05


def is_free() -> bool:
    """Do nothing: that this runs shows that the GPUs that it asks for are free."""
    return True


def measure(
    space_fields: dict[str, Any], dataset: str, seed: int, gpus: int, cpus: int, seconds: float = SECONDS
) -> list[Arrangement]:
    """Time the base recipe's steps with each number of GPUs for a repeat, on all GPUs of this node at once.

    Parameters
    ----------
    space_fields
        The space as JSON; its own parts are where this node can read them.
    dataset
        The dataset's folder.
    gpus, cpus
        What Ray counts on this node.
    seconds
        Time for which the steps of an arrangement are timed.
    """
    own_parts = space_fields.get("parts", [])
    parts.load_files(map(Path, own_parts))
    space = spaces.parse_space(space_fields, "space")
    manifest = manifests.load_manifest(Path(dataset))
    memory = gpu_memory()

    loads = []
    if memory is not None:
        loads = [(recipe, load.load_of(recipe, manifest)) for recipe in forecast.extreme_recipes(space)]
    base = space.base().replace({"training.kimg": ENDLESS_KIMG, "reweighting.method": "none"})
    job = {"dataset": dataset, "seed": seed, "parts": own_parts, "seconds": seconds}

    arrangements = []
    for each in candidates(gpus):
        problem = _obstacle(each, gpus, cpus, memory) or _too_large(each, gpus, memory, loads, manifest, space)
        if problem:
            arrangements.append(Arrangement(each, problem=problem))
        else:
            arrangements.append(time_steps(base, job, each, gpus, cpus))
    return arrangements


def gpu_memory() -> int | None:
    """Return the memory of this node's smallest GPU in MiB; None if nvidia-smi does not say."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    with contextlib.suppress(ValueError):
        return min(map(int, printed.split()))
    return None


def repeats_at_once(each: float, gpus: int) -> int:
    """Return how many repeats fit on a node if each takes so many GPUs, or this share of one."""
    return int(gpus / each)


def _obstacle(each: float, gpus: int, cpus: int, memory: int | None) -> str:
    """Return what of the node rules an arrangement out; empty if nothing does."""
    at_once = repeats_at_once(each, gpus)
    if each < 1 and memory is None:
        return "the memory of the GPUs is not known"
    if at_once > cpus:
        return f"{at_once} repeats at once need as many CPU cores"
    return ""


def _too_large(
    each: float,
    gpus: int,
    memory: int | None,
    loads: Sequence[tuple[Recipe, Load]],
    manifest: Manifest,
    space: Space,
) -> str:
    """Return that a recipe of the space does not fit; empty if all do, or nothing smaller than a node is asked for."""
    if each == gpus or memory is None:
        return ""
    room = int(memory / 1024 * min(1.0, each))
    machine = Machine(1, dataclasses.replace(next(iter(CARDS.values())), memory=room))
    for recipe, own_load in loads:
        step = forecast.step_of(recipe, own_load, manifest, space, machine)
        if not step.fits:
            return f"{room} GiB have room for {step.fit} images of a recipe that needs {step.least} at once"
    return ""


def time_steps(recipe: Recipe, job: dict[str, Any], each: float, gpus: int, cpus: int) -> Arrangement:
    """Time a recipe's steps in as many processes as train at once on this node."""
    at_once = repeats_at_once(each, gpus)
    together = max(1, int(each))
    count = at_once * together
    threads = max(1, cpus // count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store.write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        store.write_json(folder / "job.json", job | {"gpus": each, "ranks": together, "threads": threads})
        try:
            _run(folder, [_environment(number, together, gpus) for number in range(count)])
        except UserError as error:
            return Arrangement(each, problem=str(error))
        seconds = [float((store.read_json(folder / f"seconds-{n}.json") or {})["seconds"]) for n in range(count)]

    # Ranks that train together see one batch in a step, and the others one each.
    batches_an_hour = 3600 / max(seconds) if together > 1 else sum(3600 / own for own in seconds)
    return Arrangement(each, batches_an_hour * recipe.training.batch_size / 1000)


def _environment(number: int, together: int, gpus: int) -> dict[str, str]:
    """Return the variables of a process: the GPUs that it sees, and which of them it takes."""
    visible = [str(gpu) for gpu in range(gpus)]
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    rank = number
    if together == 1:
        visible = [visible[number % gpus]]
        rank = 0
    own = {"CUDA_VISIBLE_DEVICES": ",".join(visible), "LOCAL_RANK": str(rank)}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(folder: Path, environments: Sequence[dict[str, str]]) -> None:
    """Run a process with each environment; all begin to time their steps when the last one has warmed up.

    Raises
    ------
    UserError
        If one of them fails, or they take too long.
    """
    logs = [folder / f"{number}.log" for number in range(len(environments))]
    processes = []
    try:
        for number, (log, environment) in enumerate(zip(logs, environments, strict=True)):
            command = [sys.executable, "-m", "scrimp_platform.step_clock", str(folder), str(number)]
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))

        deadline = time.monotonic() + LIMIT_S
        while True:
            states = [process.poll() for process in processes]
            failed = [number for number, state in enumerate(states) if state]
            if failed:
                lines = logs[failed[0]].read_text().strip().splitlines() or [f"exit status {states[failed[0]]}"]
                raise UserError(lines[-1][:200])
            if all(state == 0 for state in states):
                return
            if time.monotonic() > deadline:
                raise UserError(f"not measured within {LIMIT_S / 60:.0f} minutes")
            if len(list(folder.glob("ready-*"))) == len(processes):
                (folder / "go").touch()
            time.sleep(CHECK_INTERVAL_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
