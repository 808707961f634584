"""The two trainings behind reweighting's class weights: the reference, and the proxy that is compared with it."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from scrimp_trainers import checkpoint
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import Batch, batches
from scrimp_trainers.diffusion.process import process_of, seed_of
from scrimp_trainers.errors import Diverged
from scrimp_trainers.export import load_model
from scrimp_trainers.microbatch import Microbatch
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.unet import UNet
from scrimp_trainers.recipe import Recipe
from scrimp_trainers.run import run
from scrimp_trainers.sections import EDM
from scrimp_trainers.techniques.reweighting import excess, relative, shares, step
from scrimp_trainers.techniques.settings import Reweighting
from scrimp_trainers.train import State, autocast, learning_rate, parts, sanitise, scaled, start

REFERENCE_SEED, PROXY_SEED = 0, 1
"""All repeats share the two, whatever their own seeds."""
LOOK_STEPS = 16
"""The loss is looked at, and a checkpoint may be written, every so many steps."""
PATH_POINTS = 100
"""Places at which the class weights are recorded, about."""
CHECKPOINT_SECONDS = 60.0


@dataclass
class Weighing:
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


def train_reference(recipe: Recipe, dataset: Dataset, folder: Path, device: torch.device) -> UNet:
    """Train the reference as any repeat is, in this process alone, or go on with it; return its averaged network."""
    if not (folder / "model").exists():
        for _ in run(recipe, dataset, folder, REFERENCE_SEED, rungs_kimg=[], device=device, alone=True):
            pass
    return load_model(folder / "model", device)[0].requires_grad_(False)


def train_proxy(
    recipe: Recipe,
    settings: Reweighting,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    kept: np.ndarray | None,
    reference: UNet | None,
) -> Weighing:
    """Train the proxy, moving the class weights at every step, or go on with it from its checkpoint in the folder.

    Raises
    ------
    Diverged
        If its loss is no longer finite.
    """
    facts, training = dataset.manifest, recipe.training
    classes, steps = len(facts.classes or []), math.ceil(training.kimg * 1000 / training.batch_size)
    shape = {"image_size": facts.size, "channels": facts.channels, "classes": classes}
    state = start(recipe, **shape, seed=PROXY_SEED, device=device)
    weighing, identity = even(classes, device), {"weights": folder.name}
    last, previous = folder / "last", folder / "previous"
    progress, damage = checkpoint.restore([last, previous], state, identity)
    if progress:
        weighing = _loaded(progress, device)
    began = saved = time.monotonic()
    before = weighing.seconds
    state.network.train()
    order = {"batch_size": training.batch_size, "seed": PROXY_SEED, "flip": training.flip, "kept": kept}
    drawn = batches(dataset, **order, device=device, start=state.step)
    microbatch = Microbatch(training, training.batch_size)
    eta = settings.eta / steps
    while state.step < steps:
        take_step(recipe, state, weighing, reference, next(drawn), microbatch, eta, settings.smoothing)
        if state.step % max(1, steps // PATH_POINTS) == 0:
            weighing.path.append([state.step, *weighing.alpha.tolist()])
        if state.step % LOOK_STEPS == 0 or state.step == steps:
            if not math.isfinite(float(weighing.alpha.sum())):
                raise Diverged(f"reweighting's proxy, step {state.step}: its loss is not finite")
            weighing.seconds = before + time.monotonic() - began
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                # A damaged last one does not take the place of the sound one before it.
                checkpoint.save(last, state, identity, _saved(weighing), None if damage else previous)
                saved, damage = time.monotonic(), ""
    return weighing


def even(classes: int, device: torch.device) -> Weighing:
    """Start with equal weights."""
    zeros = torch.zeros(classes, dtype=torch.float64, device=device)
    return Weighing(zeros + 1 / classes, zeros, zeros.clone(), [])


def take_step(
    recipe: Recipe,
    state: State,
    weighing: Weighing,
    reference: UNet | None,
    batch: Batch,
    microbatch: Microbatch,
    eta: float,
    smoothing: float,
) -> None:
    """Move the class weights by this batch's losses, then the proxy by its loss under the new weights.

    Proxy and reference see the same images, noise levels and noise, and are told all labels. Without a reference this
    is group DRO.
    """
    settings, training = recipe.diffusion, recipe.training
    images, labels = scaled(batch.images), cast(Tensor, batch.labels)
    generator = torch.Generator(images.device).manual_seed(seed_of("step", state.seed, state.step))
    levels = process_of(settings).levels(settings, len(images), generator)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    dropped = seed_of("dropout", state.seed, state.step)
    elements = images[0].numel() if isinstance(settings, EDM) else 1  # as in the training loop

    def compute(size: int) -> tuple[Tensor, Tensor]:
        """Leave the proxy's gradients; return what becomes of the excess losses and of the class weights."""
        values = _losses(recipe, state.network, size, dropped, images, noise, levels, labels)
        theirs = torch.zeros_like(values)
        if reference is not None:
            with torch.no_grad():
                theirs = _losses(recipe, reference, size, dropped, images, noise, levels, labels)

        ours = values.detach()
        last = weighing.last
        if state.step == 0:  # a class counts as an average one until it is seen
            last = (ours - theirs).clamp(min=0).mean().double().expand(len(weighing.alpha))
        last = excess(ours, theirs, labels, last)
        alpha = step(weighing.alpha, relative(last), eta, smoothing)

        factors = shares(alpha, labels, grouped=reference is None).to(values.dtype)
        (factors @ values * (elements * training.loss_scale)).backward()
        return last, alpha

    weighing.last, weighing.alpha = microbatch.fit(compute, state.optimizer.zero_grad)
    weighing.total += weighing.alpha
    sanitise(list(state.network.parameters()), 1 / training.loss_scale)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(recipe.optimizer, state.images + len(images))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.images += len(images)


def _losses(recipe: Recipe, network: UNet, size: int, dropped: int, *seen: Tensor) -> Tensor:
    """Return a network's loss on each image [b], computed for `size` at a time; `dropped` is the seed of dropout."""
    count = len(seen[0])
    if size >= count:
        return _part_losses(recipe, network, count, 0, dropped, *seen)
    # All losses are needed before the first backward pass, which therefore computes a part's activations anew.
    losses = [
        recomputed(
            _part_losses, recipe, network, count, part.start, dropped, *(tensor[part] for tensor in seen),
            use_reentrant=False,
        )
        for part in parts(count, size)
    ]  # fmt: skip
    return torch.cat(cast(list[Tensor], losses))


def _part_losses(
    recipe: Recipe,
    network: UNet,
    count: int,
    first: int,
    dropped: int,
    images: Tensor,
    noise: Tensor,
    levels: Tensor,
    labels: Tensor,
) -> Tensor:
    settings, process = recipe.diffusion, process_of(recipe.diffusion)
    noisy = process.add_noise(settings, images, noise, levels)
    with autocast(recipe, images.device), dropout.of_step(network, count, first, dropped):
        estimate = process.denoise(settings, network, noisy, levels, labels=labels if network.classes else None)
    return process.losses(settings, estimate, images, noise, levels, labels).values


def _saved(weighing: Weighing) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(weighing).items()}


def _loaded(saved: dict[str, Any], device: torch.device) -> Weighing:
    names = ("alpha", "last", "total")
    alpha, last, total = (torch.tensor(saved[name], dtype=torch.float64, device=device) for name in names)
    return Weighing(alpha, last, total, saved["path"], saved["seconds"])
