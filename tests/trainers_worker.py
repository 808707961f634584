"""What tests run in a process of its own: `python trainers_worker.py killed DATASET FOLDER`, and so on."""

import ctypes
import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from trainers_small import small

from scrimp_trainers import run
from scrimp_trainers.common import heartbeat, ranks
from scrimp_trainers.common.errors import DeviceOutOfMemory
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.diffusion import edm
from scrimp_trainers.precompute.reweighting import compute_class_weights
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Reweighting
from scrimp_trainers.training import checkpoint, checkpoint_writer, session


def interrupted() -> Recipe:
    """A recipe whose steps draw all there is to draw: 47 steps, a line after 16, 32 and 47."""
    return small(
        training__batch_size=64, training__kimg=3, training__flip=True, network__dropout=0.2,
        conditioning__classes=True, conditioning__label_drop=0.3,
    )  # fmt: skip


def killed(dataset: str, folder: str) -> None:
    """Write a checkpoint every four steps, and die by SIGKILL when it is time for the ninth.

    By then the line of step 32 is on disk, and the last checkpoint, of step 32 too, is older than it.
    """
    write, calls = checkpoint.write, []

    def write_eight(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)  # type: ignore[arg-type]

    checkpoint.write = write_eight
    checkpoint_writer.COST_FACTOR = 0
    session.CHECK_INTERVAL_STEPS = session.CHECK_INTERVAL_IMAGES = 4
    data, out = open_dataset(Path(dataset)), Path(folder)
    for _ in run.train_repeat(interrupted(), data, out, 7, rungs_kimg=[3], checkpoint_seconds=0):
        pass


def shared() -> Recipe:
    """Six steps, each of three microbatches a rank. With a large eps an update is nearly the gradient itself."""
    return small(
        training__batch_size=16, training__kimg=0.096, training__microbatch=3, training__flip=True,
        conditioning__classes=True, conditioning__label_drop=0.3, optimizer__eps=1.0, optimizer__warmup_kimg=0,
    )  # fmt: skip


def rank(number: str, world: str, meeting: str, dataset: str, folder: str) -> None:
    """Run one of several ranks, of which the first writes checkpoints all the time; then run what is finished."""
    session.CHECK_INTERVAL_STEPS = session.CHECK_INTERVAL_IMAGES = 1
    checkpoint_writer.COST_FACTOR = 0
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(number), world_size=int(world))
    heard = [
        [
            line.loss
            for line in run.train_repeat(
                shared(), open_dataset(Path(dataset)), Path(folder), 7, rungs_kimg=[0.05], checkpoint_seconds=0
            )
        ]
        for _ in range(2)
    ]
    Path(folder, f"rank-{number}.txt").write_text(repr(heard))
    dist.destroy_process_group()


def weights(number: str, world: str, meeting: str, dataset: str, settings: str) -> None:
    """Find class weights as one of several ranks."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(number), world_size=int(world))
    reweighting = Reweighting.model_validate_json(settings)
    found = compute_class_weights(
        open_dataset(Path(dataset)), reweighting, 0, torch.device("cpu"), group=ranks.patient_group()
    )
    told = [found.weights.tolist(), found.device_hours]
    Path(dataset, f"rank-{number}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def hangs(dataset: str, folder: str, patience: str) -> None:
    """Stop in the midst of the twentieth step, and hold the interpreter."""
    denoise, calls = edm.EDMProcess.denoise, []

    def stuck(*arguments: Any, **inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            ctypes.PyDLL(None).sleep(1000)
        return denoise(*arguments, **inputs)

    edm.EDMProcess.denoise = stuck
    session.CHECK_INTERVAL_STEPS = session.CHECK_INTERVAL_IMAGES = 4
    data, out = open_dataset(Path(dataset)), Path(folder)
    with heartbeat.watched(out / "stacks.txt", float(patience)):
        for _ in run.train_repeat(interrupted(), data, out, 7, rungs_kimg=[3], checkpoint_seconds=0):
            pass


def starved(number: str, meeting: str, dataset: str, folder: str) -> None:
    """Train as one of two ranks, the second of which has no memory for its third pass; keep what each raises."""
    denoise, calls = edm.EDMProcess.denoise, []

    def lacking(*arguments: Any, **inputs: Any) -> Any:
        calls.append(1)
        if number == "1" and len(calls) == 3:
            raise DeviceOutOfMemory("not even one image fits into the memory of a device")
        return denoise(*arguments, **inputs)

    edm.EDMProcess.denoise = lacking
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(number), world_size=2)
    try:
        list(run.train_repeat(shared(), open_dataset(Path(dataset)), Path(folder, "run"), 7, rungs_kimg=[]))
    except Exception as error:
        Path(folder, f"rank-{number}.pickle").write_bytes(pickle.dumps(error))


def narrow(number: str, meeting: str, dataset: str, folder: str) -> None:
    """Train as one of two ranks, the second of which holds two images at once; keep the microbatches of the rows."""
    denoise = edm.EDMProcess.denoise

    def limited(self: Any, network: Any, noisy: torch.Tensor, *arguments: Any, **inputs: Any) -> Any:
        if number == "1" and len(noisy) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return denoise(self, network, noisy, *arguments, **inputs)

    edm.EDMProcess.denoise = limited
    session.CHECK_INTERVAL_STEPS = session.CHECK_INTERVAL_IMAGES = 1
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(number), world_size=2)
    recipe = shared().replace({"training.microbatch": "auto"})
    rows = list(run.train_repeat(recipe, open_dataset(Path(dataset)), Path(folder), 7, rungs_kimg=[0.05]))
    Path(folder, f"rank-{number}.json").write_text(json.dumps([row.microbatch for row in rows]))
    dist.destroy_process_group()


COMMANDS = {
    "killed": killed,
    "rank": rank,
    "weights": weights,
    "hangs": hangs,
    "starved": starved,
    "narrow": narrow,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
