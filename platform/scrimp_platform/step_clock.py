"""`python -m scrimp_platform.step_clock FOLDER NUMBER`: time a recipe's training steps beside other such processes.

`arrangement_times` starts as many of these as would train at once on a node. Each warms up, waits until all have, and
writes the seconds of a step. It holds no connection to Ray.
"""

import math
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import torch
from torch import distributed

from scrimp_platform import store
from scrimp_trainers.common import parts, ranks
from scrimp_trainers.common.device import select_device, take_share
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.training.session import Session

WARM_UP_STEPS = 10
"""Steps in which memory is reserved and algorithms are tried."""
SAMPLE_STEPS = 5
"""Steps from whose time follows how many are timed."""
CHECK_INTERVAL_S = 0.05


def main() -> None:
    """Time the steps, as `job.json` of the folder says."""
    folder = Path(sys.argv[1])
    number = int(sys.argv[2])
    _end_with_parent()
    job = store.read_json(folder / "job.json") or {}
    torch.set_num_threads(job["threads"])
    parts.load_files(map(Path, job["parts"]))
    recipe = recipes.read(folder / "recipe.yaml")

    device = select_device()
    if job["gpus"] < 1:
        take_share(job["gpus"], device)
    ranks_together = job["ranks"]
    if ranks_together > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        meeting = f"file://{folder / 'meeting'}"
        distributed.init_process_group(backend, init_method=meeting, rank=number, world_size=ranks_together)

    dataset = open_dataset(Path(job["dataset"]))
    prepared = prepare_techniques(recipe, dataset, job["seed"], device, *ranks.rank_and_world())
    with closing(Session(recipe, dataset, folder / str(number), job["seed"], prepared, device=device)) as session:
        steps = session.steps()
        group = ranks.patient_group()

        for _ in range(WARM_UP_STEPS):
            next(steps)
        begun = _now(device)
        for _ in range(SAMPLE_STEPS):
            next(steps)
        seconds = (_now(device) - begun) / SAMPLE_STEPS
        # Ranks train together, so they take equally many steps.
        count = ranks.agreed(max(SAMPLE_STEPS, math.ceil(job["seconds"] / seconds)), group)

        (folder / f"ready-{number}").touch()
        while not (folder / "go").exists():
            time.sleep(CHECK_INTERVAL_S)
        begun = _now(device)
        for _ in range(count):
            next(steps)
        seconds = (_now(device) - begun) / count
    store.write_json(folder / f"seconds-{number}.json", {"seconds": seconds})
    if ranks_together > 1:
        distributed.destroy_process_group()


def _now(device: torch.device) -> float:
    """Return the time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _end_with_parent() -> None:
    """End this process if the one that started it is gone: Ray may have killed that."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
