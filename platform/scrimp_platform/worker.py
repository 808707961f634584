"""One repeat on the cluster: the Tune function, the TorchTrainer in it, and the worker function in that.

What the worker does is `scrimp_trainers.run.run`, the same as `scrimp train`; this module only places it on a node
and passes on what it yields. The worker writes every file itself, so nothing is lost if nobody listens.
"""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from scrimp_platform import cluster, storage_loss, store
from scrimp_platform.search.tune_loop import FAILURE, FINAL, NODE, NOTE, WORKING
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_trainers.common import heartbeat
from scrimp_trainers.common.errors import Final, NoRoom, UserError
from scrimp_trainers.common.files import no_room

PATIENCE = 60.0
"""Seconds in which the worker of a killed driver has to give its repeat up."""
ROOM, AGAIN = 15.0, 600.0
"""Seconds between two attempts where something is waited for, and between two lines about it."""


class Task(TypedDict):
    """What a Tune function is told: the same for every repeat, but for the two numbers."""

    sweep: str
    dataset: str
    gpus: int
    fit_nodes: list[str]
    """Ids of the nodes that may train it."""
    trial: int
    repeat: int


def tune_repeat(config: dict[str, Any]) -> None:
    """Train one repeat on this node: on its GPUs through Ray Train, or in this very process on the CPU.

    A failure is reported, not raised: the ledger decides what follows, and Tune keeps the process for the next. Only
    a full disk and GPUs that are taken are no failures: they are waited for.
    """
    from ray import tune

    # Tune waits so long for a stopped repeat before it takes the process for lost, and what it handed to it.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    task = Task(**{name: config[name] for name in Task.__annotations__})
    folder, told = _folder(task), -math.inf
    while True:
        try:
            folder.stacks.unlink(missing_ok=True)
            if task["gpus"]:
                _train(task)
            else:
                # A Train run starts three more processes, 20 s of imports; one CPU worker can do without.
                with _signed():
                    work(task, tune.report)
            return
        except Exception as error:
            cause = cause_of(error)
            line = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
            awaited = _awaited(cause, task)
            if not awaited:
                with contextlib.suppress(OSError):
                    storage_loss.require(folder.record)
                    store.write_atomic(folder.error, "".join(traceback.format_exception(error)))
                line = heartbeat.timeout_message(folder.stacks) or line
                tune.report({FAILURE: line, FINAL: isinstance(cause, Final), NODE: vars(cause).get(NODE)})
                return
        # Wait here, where it costs no attempt. While it waits, the driver may take it back for other nodes.
        tune.report({WORKING: False})
        if time.monotonic() > told + AGAIN:
            tune.report({NOTE: f"waits for {awaited}: {line}"})
            told = time.monotonic()
        time.sleep(ROOM)


def _awaited(cause: BaseException, task: Task) -> str:
    """Say what has to be there before another try is worth while; empty if that is not all that went wrong."""
    if isinstance(cause, NoRoom) or no_room(cause):
        return f"room in {_folder(task).path}"
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

    # One process less to start: nobody announces that a workstation is to go away.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    folder = _folder(task)
    TorchTrainer(
        _worker,
        train_loop_config=dict(task),
        torch_config=TorchConfig(),
        scaling_config=train.ScalingConfig(
            num_workers=task["gpus"],
            use_gpu=True,
            placement_strategy="STRICT_PACK",
            label_selector=cluster.labels_of(task["fit_nodes"]) or None,
        ),
        run_config=train.RunConfig(
            # Each attempt has its own: what Train finds under its name, which a kill may have cut, it would go on from.
            name=f"{folder.label}-{time.time_ns()}",
            storage_path=str(SweepFolder(Path(task["sweep"])).ray / "train"),
            callbacks=[TuneReportCallback()],
            # If its GPUs are not there within a minute, it ends, instead of asking for the same again for ever. A Train
            # run that is killed while it waits leaves behind what it has asked for, and GPUs with it (ray 2.60).
            failure_config=train.FailureConfig(controller_failure_limit=0),
        ),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    from ray import train

    with _signed():
        work(Task(**config), train.report)


@contextlib.contextmanager
def _signed() -> Iterator[None]:
    """Let what is raised in here bear the id of this node: Train's controller, which passes it on, may be elsewhere."""
    try:
        yield
    except Exception as error:
        import ray

        vars(error)[NODE] = ray.get_runtime_context().get_node_id()
        raise


def work(task: Task, report: Callable[[dict[str, Any]], Any]) -> None:
    """Train one repeat in this process, resuming it if it has a checkpoint; report each rung's scores."""
    import torch

    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.recipe import recipe as recipes
    from scrimp_trainers.recipe.scoring import Scoring
    from scrimp_trainers.run import run

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    folder = _folder(task)
    sweep, record = store.read_json(SweepFolder(Path(task["sweep"])).sweep), store.read_json(folder.record)
    if not sweep or not record:
        raise UserError(f"{folder.path}: not there on {os.uname().nodename}; is the storage folder mounted?")
    space = sweep["space"]
    objective, direction = next(iter(space["objectives"].items()))
    # A worker that outlives a killed driver must not write beside its successor.
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    alone = store.exclusive(folder.lock, f"repeat {folder.label}", PATIENCE) if first else contextlib.nullcontext()
    with alone, heartbeat.watched(folder.stacks, space["budget"]["patience_minutes"] * 60):
        report({WORKING: True})
        for line in run(
            recipes.load(folder.recipe),
            open_dataset(Path(task["dataset"])),
            folder.path,
            record["seed"],
            rungs_kimg=space["budget"]["rungs_kimg"],
            scoring=Scoring.model_validate(space["scoring"]),
            objective=objective,
            direction=direction,
        ):
            storage_loss.require(folder.record)
            if "rung" in line or NOTE in line:
                report(line)


def _folder(task: Task) -> RepeatFolder:
    return SweepFolder(Path(task["sweep"])).repeat(task["trial"], task["repeat"])


def cause_of(error: BaseException) -> BaseException:
    """Return what a worker or Train's controller raised, out of the two layers that Ray Train wraps around it."""
    other = getattr(error, "controller_failure", error)
    failure = next(iter(getattr(error, "worker_failures", {}).values()), other)
    return getattr(failure, "_base_exc", failure)
