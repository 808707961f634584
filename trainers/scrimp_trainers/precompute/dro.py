"""The two trainings behind the class weights: the reference, and the proxy that is compared with it."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scrimp_trainers.common import heartbeat, metrics_log, parts, ranks
from scrimp_trainers.common.device import devices_held
from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.export import load_model
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.precompute.class_weights import excess_losses, loss_factors, relative_excess, update_class_weights
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Reweighting
from scrimp_trainers.training import checkpoint
from scrimp_trainers.training.checkpoint_writer import CheckpointWriter
from scrimp_trainers.training.inputs import NOTHING_PREPARED, Prepared, draw_batches
from scrimp_trainers.training.loop import Step, StepLosses, train
from scrimp_trainers.training.session import Session
from scrimp_trainers.training.state import State, count_steps, initial_state

REFERENCE_SEED = 0
PROXY_SEED = 1
"""All repeats share reference and proxy, whatever their own seeds."""
CHECK_INTERVAL_STEPS = 16
"""Steps between two checks of the loss, at which a checkpoint may be written."""
PATH_POINTS = 100
"""Approximate number of steps at which the class weights are recorded."""
CHECKPOINT_SECONDS = 60.0


@dataclass
class ClassWeightState:
    """What the proxy's training changes besides its network. A checkpoint stores it under these names."""

    alpha: Tensor
    """float64 [K], the class weights, which add up to 1."""
    last: Tensor
    """float64 [K], each class's excess loss when it last appeared in a batch."""
    total: Tensor
    """float64 [K], sum of the class weights over the steps so far; normalised, it is the result."""
    path: list[list[float]]
    """Recorded class weights: the number of a step, then the weights."""
    seconds: float = 0.0
    """Time spent, over all attempts."""


def train_reference(
    recipe: Recipe, dataset: Dataset, folder: Path, device: torch.device, group: dist.ProcessGroup | None = None
) -> Denoiser:
    """Train the reference like any repeat, on all ranks, or resume it; return its averaged network."""
    if ranks.agreed(not (folder / "model").exists(), group):
        prepared = _prepared(recipe, dataset, device)
        with closing(Session(recipe, dataset, folder, REFERENCE_SEED, prepared, device=device)) as session:
            session.resume()
            steps = session.steps()
            for images, _ in session.due_rows():
                session.train_to(images, steps, CHECKPOINT_SECONDS)
                session.write_row(session.metrics_row())

            last = session.progress.lines[-1]
            session.replace_last_row(replace(last, scores={"device_hours": last.seconds * devices_held() / 3600}))
            session.save("last")
            session.export(session.progress.lines[-1])
    network, _ = load_model(folder / "model", device)
    return network.requires_grad_(False)


def reference_hours(folder: Path) -> float:
    """Return the device-hours that a reference in the dataset's cache has taken.

    Raises
    ------
    UserError
        If its rows do not say so.
    """
    rows = metrics_log.read_rows(folder / "metrics.jsonl")
    hours = rows[-1].value("device_hours") if rows else math.nan
    if not math.isfinite(hours):
        raise UserError(f"{folder / 'metrics.jsonl'}: does not say what the reference cost; remove {folder}")
    return hours


def open_reference(folder: Path, recipe: Recipe, dataset: Dataset, device: torch.device) -> Denoiser:
    """Open a reference that was trained before.

    Raises
    ------
    UserError
        If its losses on the dataset's images cannot be compared with those of a proxy trained by `recipe`.
    """
    network, trained = load_model(folder, device)
    if trained.diffusion != recipe.diffusion:
        raise UserError(
            f"reweighting.reference: {folder} was trained with another process (diffusion) than reweighting.recipe; "
            "name a recipe with its own"
        )
    classes = len(dataset.manifest.classes or [])
    shape = _prepared(recipe, dataset, device).codec.shape(dataset.modality.shape)
    if trained.codec != recipe.codec or tuple(network.shape) != tuple(shape) or network.classes not in (0, classes):
        raise UserError(
            f"reweighting.reference: {folder} is not for items of dataset {dataset.manifest.name}, {shape} and of "
            f"{classes} classes; name a model trained on it with the codec of reweighting.recipe"
        )
    return network.requires_grad_(False)


def train_proxy(
    recipe: Recipe,
    settings: Reweighting,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    kept: np.ndarray | None,
    reference: Denoiser | None,
    group: dist.ProcessGroup | None = None,
) -> ClassWeightState:
    """Train the proxy and update the class weights at every step, or resume it from its checkpoint in the folder.

    All ranks train it together.

    Raises
    ------
    Diverged
        If its loss is not finite.
    """
    rank, _ = ranks.rank_and_world()
    classes = len(dataset.manifest.classes or [])
    prepared = replace(_prepared(recipe, dataset, device), kept=kept)
    shape = prepared.codec.shape(dataset.modality.shape)
    state = initial_state(
        recipe,
        image_size=shape[-1],
        channels=shape[0],
        classes=classes,
        seed=PROXY_SEED,
        device=device,
    )

    # Resume.
    weights = uniform_state(classes, device)
    identity = {"weights": folder.name}
    last = folder / "last"
    previous = folder / "previous"
    saved_state, damage = checkpoint.restore([last, previous], state, identity)
    if saved_state:
        weights = _from_json(saved_state, device)
    # Rank 0 must not write the next checkpoint before all ranks have read this one.
    if ranks.agreed(state.step, group) != state.step:
        raise RuntimeError("the ranks read different checkpoints")

    # Train.
    started = time.monotonic()
    seconds_before = weights.seconds
    proxy_batches = draw_batches(recipe, dataset, prepared, seed=PROXY_SEED, start=state.step, device=device)
    steps = count_steps(recipe.training)
    path_interval = max(1, steps // PATH_POINTS)
    heartbeat.beat()
    with closing(CheckpointWriter()) as writer:
        for step in train_steps(recipe, state, proxy_batches, weights, reference, settings, device, prepared):
            if step.step % path_interval == 0:
                weights.path.append([step.step, *weights.alpha.tolist()])

            if step.step % CHECK_INTERVAL_STEPS == 0 or step.step == steps:
                if not math.isfinite(float(weights.alpha.sum())):
                    raise Diverged(f"reweighting's proxy, step {step.step}: its loss is not finite")
                heartbeat.beat()
                weights.seconds = seconds_before + time.monotonic() - started
                if rank == 0 and writer.due(CHECKPOINT_SECONDS):
                    # A damaged last checkpoint must not replace the intact one before it.
                    keep_replaced = None if damage else previous
                    writer.begin(last, state, identity, _to_json(weights), keep_replaced)
                    damage = ""
        writer.wait()
    heartbeat.pause()
    return weights


def uniform_state(classes: int, device: torch.device) -> ClassWeightState:
    """Return the state before the first step: equal class weights."""
    zeros = torch.zeros(classes, dtype=torch.float64, device=device)
    return ClassWeightState(alpha=zeros + 1 / classes, last=zeros, total=zeros.clone(), path=[])


def train_steps(
    recipe: Recipe,
    state: State,
    proxy_batches: Iterator[Batch],
    weights: ClassWeightState,
    reference: Denoiser | None,
    settings: Reweighting,
    device: torch.device,
    prepared: Prepared = NOTHING_PREPARED,
) -> Iterator[Step]:
    """Train the proxy: each step updates the class weights by its losses, and the network by the reweighted loss.

    Proxy and reference see the same images, noise levels, noise and conditions. Without a reference this is group DRO.
    """
    rank, world = ranks.rank_and_world()
    eta = settings.eta / count_steps(recipe.training)
    updated = weights.last, weights.alpha
    gathered: tuple[int, list[Tensor]] | None = None

    def of_all_ranks(*own: Tensor) -> list[Tensor]:
        """Return the values of all ranks' images, gathered once a step: a rank may repeat a step without the others."""
        nonlocal gathered
        if world == 1:
            return list(own)
        if gathered is None or gathered[0] != state.step:
            gathered = state.step, [_gather(values, world) for values in own]
        return gathered[1]

    def weigh(step_losses: StepLosses) -> Tensor:
        # A step may call this again after it ran out of memory, so `weights` changes only once the step is done.
        nonlocal updated
        losses = step_losses.losses
        reference_losses = torch.zeros_like(losses)
        if reference is not None:
            with torch.no_grad():
                reference_losses = step_losses.of_network(reference)
        count = len(losses)
        losses, reference_losses, labels = of_all_ranks(losses, reference_losses, cast(Tensor, step_losses.labels))

        last = weights.last
        if state.step == 0:  # until a class appears in a batch, it counts as an average one
            mean_excess = (losses - reference_losses).clamp(min=0).mean()
            last = mean_excess.double().expand(len(weights.alpha))
        last = excess_losses(losses, reference_losses, labels, last)
        alpha = update_class_weights(weights.alpha, relative_excess(last), eta, settings.smoothing)
        updated = last, alpha

        factors = loss_factors(alpha, labels, grouped=reference is None)
        # The loop divides by the number of images.
        return factors[rank * count : (rank + 1) * count] * len(labels)

    for step in train(recipe, state, proxy_batches, prepared, device=device, rank=rank, world=world, weigh=weigh):
        weights.last, weights.alpha = updated
        weights.total += weights.alpha
        yield step


def _prepared(recipe: Recipe, dataset: Dataset, device: torch.device) -> Prepared:
    """Return what the training of a reference or proxy needs: the codec."""
    codec = parts.module("codecs", recipe.codec.part).build(recipe.codec, dataset.modality.shape, device)
    return Prepared(codec=codec)


def _gather(values: Tensor, world: int) -> Tensor:
    """Return the values [b] of each rank's images, those of all in the order of the ranks."""
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _to_json(weights: ClassWeightState) -> dict[str, Any]:
    return {
        "alpha": weights.alpha.tolist(),
        "last": weights.last.tolist(),
        "total": weights.total.tolist(),
        "path": weights.path,
        "seconds": weights.seconds,
    }


def _from_json(saved: dict[str, Any], device: torch.device) -> ClassWeightState:
    def to_tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    return ClassWeightState(
        alpha=to_tensor(saved["alpha"]),
        last=to_tensor(saved["last"]),
        total=to_tensor(saved["total"]),
        path=saved["path"],
        seconds=saved["seconds"],
    )
