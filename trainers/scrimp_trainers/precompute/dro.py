"""The two trainings behind reweighting's class weights: the reference, and the proxy that is compared with it."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common.errors import Diverged
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.export import load_model
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.precompute.class_weights import excess_losses, loss_factors, relative_excess, update_class_weights
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Reweighting
from scrimp_trainers.training import checkpoint
from scrimp_trainers.training.loop import Step, StepLosses, train
from scrimp_trainers.training.session import Session
from scrimp_trainers.training.state import State, count_steps, initial_state

REFERENCE_SEED, PROXY_SEED = 0, 1
"""All repeats share the two, whatever their own seeds."""
CHECK_INTERVAL_STEPS = 16
"""The loss is looked at, and a checkpoint may be written, every so many steps."""
PATH_POINTS = 100
"""Places at which the class weights are recorded, about."""
CHECKPOINT_SECONDS = 60.0


@dataclass
class ClassWeightState:
    """What the proxy's training changes besides its network."""

    alpha: Tensor
    """float64 [K], the class weights; their sum is 1."""
    last: Tensor
    """float64 [K], each class's excess loss when it was last seen."""
    total: Tensor
    """float64 [K], sum of the class weights over the steps so far; its direction is the result."""
    path: list[list[float]]
    """A step and its class weights, now and then."""
    seconds: float = 0.0
    """Time spent, over all attempts."""


def train_reference(recipe: Recipe, dataset: Dataset, folder: Path, device: torch.device) -> Denoiser:
    """Train the reference as any repeat is, in this process alone, or go on with it; return its averaged network."""
    if not (folder / "model").exists():
        session = Session(recipe, dataset, folder, REFERENCE_SEED, device=device, alone=True)
        session.resume()
        steps = session.steps()
        for images, _ in session.marks():
            session.train_to(images, steps, CHECKPOINT_SECONDS)
            session.write(session.line())
        session.save("last")
        session.export(session.progress.lines[-1])
    return load_model(folder / "model", device)[0].requires_grad_(False)


def train_proxy(
    recipe: Recipe,
    settings: Reweighting,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    kept: np.ndarray | None,
    reference: Denoiser | None,
) -> ClassWeightState:
    """Train the proxy, moving the class weights at every step, or go on with it from its checkpoint in the folder.

    Raises
    ------
    Diverged
        If its loss is no longer finite.
    """
    manifest = dataset.manifest
    training = recipe.training
    classes = len(manifest.classes or [])
    state = initial_state(
        recipe,
        image_size=manifest.size,
        channels=manifest.channels,
        classes=classes,
        seed=PROXY_SEED,
        device=device,
    )

    # Resume.
    weighing = uniform_state(classes, device)
    identity = {"weights": folder.name}
    last, previous = folder / "last", folder / "previous"
    progress, damage = checkpoint.restore([last, previous], state, identity)
    if progress:
        weighing = _loaded(progress, device)

    # Train.
    began = saved = time.monotonic()
    before = weighing.seconds
    order = {"batch_size": training.batch_size, "seed": PROXY_SEED, "flip": training.flip, "kept": kept}
    drawn = batches(dataset, **order, device=device, start=state.step)
    steps = count_steps(training)
    for step in train_steps(recipe, state, drawn, weighing, reference, settings, device):
        if step.step % max(1, steps // PATH_POINTS) == 0:
            weighing.path.append([step.step, *weighing.alpha.tolist()])
        if step.step % CHECK_INTERVAL_STEPS == 0 or step.step == steps:
            if not math.isfinite(float(weighing.alpha.sum())):
                raise Diverged(f"reweighting's proxy, step {step.step}: its loss is not finite")
            weighing.seconds = before + time.monotonic() - began
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                # A damaged last one does not take the place of the sound one before it.
                checkpoint.save(last, state, identity, _saved(weighing), None if damage else previous)
                saved = time.monotonic()
                damage = ""
    return weighing


def uniform_state(classes: int, device: torch.device) -> ClassWeightState:
    """Start with equal weights."""
    zeros = torch.zeros(classes, dtype=torch.float64, device=device)
    return ClassWeightState(zeros + 1 / classes, zeros, zeros.clone(), [])


def train_steps(
    recipe: Recipe,
    state: State,
    drawn: Iterator[Batch],
    weighing: ClassWeightState,
    reference: Denoiser | None,
    settings: Reweighting,
    device: torch.device,
) -> Iterator[Step]:
    """Move the class weights by each batch's losses, then the proxy by its loss under the new weights.

    Proxy and reference see the same images, noise levels and noise, and are told the same. Without a reference this
    is group DRO.
    """
    eta = settings.eta / count_steps(recipe.training)
    moved = weighing.last, weighing.alpha

    def weigh(compared: StepLosses) -> Tensor:
        nonlocal moved
        labels = cast(Tensor, compared.labels)
        theirs = torch.zeros_like(compared.losses)
        if reference is not None:
            with torch.no_grad():
                theirs = compared.of(reference)

        last = weighing.last
        if state.step == 0:  # a class counts as an average one until it is seen
            last = (compared.losses - theirs).clamp(min=0).mean().double().expand(len(weighing.alpha))
        last = excess_losses(compared.losses, theirs, labels, last)
        alpha = update_class_weights(weighing.alpha, relative_excess(last), eta, settings.smoothing)
        moved = last, alpha
        return loss_factors(alpha, labels, grouped=reference is None) * len(labels)  # the loop takes the mean

    for step in train(recipe, state, drawn, device=device, weigh=weigh):
        weighing.last, weighing.alpha = moved
        weighing.total += weighing.alpha
        yield step


def _saved(weighing: ClassWeightState) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(weighing).items()}


def _loaded(saved: dict[str, Any], device: torch.device) -> ClassWeightState:
    names = ("alpha", "last", "total")
    alpha, last, total = (torch.tensor(saved[name], dtype=torch.float64, device=device) for name in names)
    return ClassWeightState(alpha, last, total, saved["path"], saved["seconds"])
