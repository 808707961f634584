"""One repeat on the cluster: the Tune function, the TorchTrainer in it, and the worker function in that.

The worker calls `scrimp_trainers.run.train_repeat`, as `scrimp train` does; this module only places it on a node and
reports what it yields. The worker writes every file itself, so nothing is lost if the driver is gone. Each process of a
training imports this module, so it imports nothing of the search.
"""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from scrimp_cluster import nodes
from scrimp_platform import cluster, node_metrics, storage_loss, store
from scrimp_platform.store import RepeatFolder, SweepFolder, WorkFolder
from scrimp_trainers.common import heartbeat, parts
from scrimp_trainers.common.errors import DiskFull, NonRetryable, UserError
from scrimp_trainers.common.files import is_disk_full

LOCK_TIMEOUT_S = 60.0
"""Time for the worker of a killed driver to release its repeat."""
RETRY_INTERVAL_S = 15.0
"""Between two attempts while the worker waits for disk space or GPUs."""
NOTE_INTERVAL_S = 600.0
"""Between two lines that say what it waits for."""

# Keys of what the Tune function reports.
ROW = "row"
FAILURE = "failure"
NON_RETRYABLE = "final"
NOTE = "note"
NODE = "node"
WORKING = "working"
HOST = "host"
COST = "cost"


class Task(TypedDict):
    """The configuration of a Tune function: the same for every repeat, except for the nodes and the two numbers."""

    sweep: str
    dataset: str
    gpus: float
    """GPUs of the repeat, one worker each; below 1 the share of a GPU that its worker takes."""
    fit_nodes: list[str]
    """Ids of the nodes that may train the repeat."""
    trial: int
    repeat: int
    preparation: str
    """The name of a reference or proxy that is to be trained instead of a repeat; empty otherwise."""


def tune_repeat(config: dict[str, Any]) -> None:
    """Train one repeat on this node: on its GPUs through Ray Train, or on the CPU in this process.

    A failure is reported, not raised: the ledger decides what follows, and Tune reuses the process. A full disk and
    GPUs in use are not failures: the function waits and tries again.
    """
    from ray import tune

    # How long Tune waits for a stopped repeat to return before it gives up the process, and the repeat given to it.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    task = Task(**{name: config[name] for name in Task.__annotations__})
    folder = _folder(task)
    last_note = -math.inf
    while True:
        try:
            folder.stacks.unlink(missing_ok=True)
            if task["gpus"]:
                _train(task)
            else:
                # A Train run would start three more processes, with 20 s of imports, for a single CPU worker.
                with _failures_name_this_node():
                    work(task, tune.report)
            return
        except Exception as error:
            cause = cause_of(error)
            message = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
            shortage = _shortage(cause, task)
            if not shortage:
                with contextlib.suppress(OSError):
                    storage_loss.require_storage(folder.record)
                    store.write_atomic(folder.error, "".join(traceback.format_exception(error)))
                message = heartbeat.timeout_message(folder.stacks) or message
                final = isinstance(cause, NonRetryable)
                tune.report({FAILURE: message, NON_RETRYABLE: final, NODE: vars(cause).get(NODE)})
                return

        # Waiting here costs no attempt. Meanwhile the driver may withdraw the repeat, to place it on other nodes.
        tune.report({WORKING: False})
        if time.monotonic() > last_note + NOTE_INTERVAL_S:
            tune.report({NOTE: f"waiting for {shortage}: {message}"})
            last_note = time.monotonic()
        time.sleep(RETRY_INTERVAL_S)


def _shortage(cause: BaseException, task: Task) -> str:
    """Return what the repeat has to wait for, disk space or GPUs; empty if it failed for another reason."""
    if isinstance(cause, DiskFull) or is_disk_full(cause):
        return f"disk space in {_folder(task).path}"
    if task["gpus"]:
        from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS

        if isinstance(cause, RETRYABLE_CONTROLLER_ERRORS):
            return "GPUs"
    return ""


def _train(task: Task) -> None:
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from scrimp_platform.process_group import TorchConfig

    # Saves a process: workstations are not preempted.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    folder = _folder(task)
    TorchTrainer(
        _worker,
        train_loop_config=dict(task),
        torch_config=TorchConfig(),
        scaling_config=train.ScalingConfig(
            num_workers=max(1, int(task["gpus"])),
            use_gpu=True,
            resources_per_worker={"GPU": min(1, task["gpus"])},
            placement_strategy="STRICT_PACK",
            label_selector=cluster.labels_of(task["fit_nodes"]) or None,
        ),
        run_config=train.RunConfig(
            # Unique to the attempt: Train would resume from what it finds under its name, which a kill may have cut.
            name=f"{folder.label}-{time.time_ns()}",
            storage_path=str(SweepFolder(Path(task["sweep"])).ray / "train"),
            callbacks=[TuneReportCallback()],
            # If its GPUs are not free within a minute it ends, instead of requesting them for ever. A Train run that
            # is killed while it waits leaves its request behind, which then holds GPUs (ray 2.60).
            failure_config=train.FailureConfig(controller_failure_limit=0),
        ),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    from ray import train

    with _failures_name_this_node():
        work(Task(**config), train.report)


@contextlib.contextmanager
def _failures_name_this_node() -> Iterator[None]:
    """Attach this node's id to exceptions: Train's controller, which passes them on, may run on another node."""
    try:
        yield
    except Exception as error:
        import ray

        vars(error)[NODE] = ray.get_runtime_context().get_node_id()
        raise


def work(task: Task, report: Callable[[dict[str, Any]], Any]) -> None:
    """Train one repeat in this process, resuming it if it has a checkpoint; report each rung's scores.

    Or train the reference or proxy that repeats need, and report what it has cost.
    """
    from torch import distributed

    from scrimp_trainers.common.device import select_device, take_share
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.precompute.prepare import train_needed
    from scrimp_trainers.recipe import recipe as recipes
    from scrimp_trainers.recipe.scoring import Scoring
    from scrimp_trainers.run import train_repeat

    _use_share_of_cores(task["gpus"])
    device = select_device()
    if 0 < task["gpus"] < 1:
        take_share(task["gpus"], device)
    folder = _folder(task)
    sweep = store.read_json(SweepFolder(Path(task["sweep"])).description)
    record = store.read_json(folder.record)
    if not sweep or not record:
        raise UserError(f"{folder.path}: missing on {os.uname().nodename}; is the storage folder mounted?")
    _load_own_parts(SweepFolder(Path(task["sweep"])), sweep)
    space = sweep["space"]
    objective, direction = next(iter(space["objectives"].items()))

    # A worker that outlives a killed driver must not write at the same time as its successor.
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    monitor: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        lock = store.exclusive(folder.lock, f"repeat {folder.label}", LOCK_TIMEOUT_S)
        if isinstance(folder, RepeatFolder):
            monitor = node_metrics.recorded(folder.system)

    recipe = recipes.read(folder.recipe)
    dataset = open_dataset(Path(task["dataset"]))
    with lock, monitor, heartbeat.watched(folder.stacks, space["budget"]["patience_minutes"] * 60):
        report({WORKING: True, HOST: os.uname().nodename})
        if task["preparation"]:
            trained = train_needed(record["kind"], recipe, dataset, record["seed"], device)
            report({COST: (trained.device_hours, trained.now)})
            return
        rows = train_repeat(
            recipe,
            dataset,
            folder.path,
            record["seed"],
            rungs_kimg=space["budget"]["rungs_kimg"],
            rung_samples=space["budget"].get("rung_samples"),  # a sweep from before this has none
            scoring=Scoring.model_validate(space["scoring"]),
            objective=objective,
            direction=direction,
            say=lambda note: report({NOTE: note}),
        )
        with contextlib.closing(rows):  # before the lock is released: a checkpoint may be being written
            for row in rows:
                storage_loss.require_storage(folder.record)
                if row.rung is not None:
                    report({ROW: row})


def _use_share_of_cores(gpus: float) -> None:
    """Let a worker on a GPU compute with its share of the node's cores: each GPU has one worker, or several share it.

    Ray lets it have a single thread. On the CPU one core is its share, and what it computes the same on every node.
    """
    import torch

    if not gpus or not torch.cuda.is_available():
        torch.set_num_threads(1)
        return

    import ray
    from threadpoolctl import threadpool_limits

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in nodes.alive() if node.id == here)
    threads = max(1, int(node.cpus / node.gpus * min(1, gpus)))
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # numpy has threads of its own


def _load_own_parts(folder: SweepFolder, sweep: dict[str, Any]) -> None:
    """Load the user's own parts that the sweep recorded, if they are as it recorded them."""
    recorded = sweep.get("parts", {})
    files = [folder.parts / name for name in recorded]
    for file in files:
        if not file.is_file() or parts.digests([file])[file.name] != recorded[file.name]:
            raise NonRetryable(f"{file}: is not the file with which the sweep began; run the sweep's command again")
    parts.load_files(files)


def _folder(task: Task) -> WorkFolder:
    sweep = SweepFolder(Path(task["sweep"]))
    if task["preparation"]:
        return sweep.preparation(task["preparation"])
    return sweep.repeat(task["trial"], task["repeat"])


def cause_of(error: BaseException) -> BaseException:
    """Return what a worker or Train's controller raised, without the two layers that Ray Train wraps around it.

    If several workers failed, it is what the first of them to fail raised: the others lost their connection to it.
    """
    controller_failure = getattr(error, "controller_failure", error)
    failures = getattr(error, "worker_failures", {}).values() or [controller_failure]
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    return min(causes, key=_distance_from_cause)


def _distance_from_cause(failure: BaseException) -> int:
    """Return 0 for what a worker raised of its own accord, 1 for a worker that died, 2 for a lost connection to it."""
    from torch import distributed

    is_of_nccl = isinstance(failure, distributed.DistError)
    is_of_gloo = isinstance(failure, RuntimeError) and "gloo/transport" in str(failure)
    if is_of_nccl or is_of_gloo:
        return 2
    return 0 if NODE in vars(failure) else 1
