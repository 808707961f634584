"""`scrimp check`: whether a user's own parts keep the promises that Scrimp's parts keep, at the smallest size."""

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scrimp_platform.search import proposals
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces.space import Space
from scrimp_trainers import ingest, sampling
from scrimp_trainers.common import parts, ranks
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.diffusion.process import over_images
from scrimp_trainers.export import export_model, load_model
from scrimp_trainers.metrics import fidelity
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.diffusion import Diffusion
from scrimp_trainers.recipe.networks import Network
from scrimp_trainers.recipe.own_technique import Technique
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.samplers import Sampler
from scrimp_trainers.recipe.techniques import CodecSection
from scrimp_trainers.training.loop import read_losses
from scrimp_trainers.training.session import Session

CPU = torch.device("cpu")
BATCH = 32
STEPS = 60
SAMPLER_STEPS = 256
STD = 0.25
"""Standard deviation of the Gaussian that samplers have to reproduce."""
TOLERANCE = 0.03
"""Relative error of that standard deviation, of 16,384 numbers whose own error is 0.6%."""

BASE = {
    "network.channels": 8,
    "network.attention": [],
    "optimizer.warmup_kimg": 0,
    "sampler.steps": 2,
    "training.batch_size": BATCH,
    "training.kimg": STEPS * BATCH / 1000,
}


class BrokenPromise(Exception):
    """A promise that a part does not keep."""


@dataclass(frozen=True)
class Outcome:
    """The result of checking one part."""

    kind: str
    """The part, as a recipe or a space names it."""
    what: str
    """What it is: a network, a sampler, ..."""
    fault: str
    """What is wrong with it; empty if it kept every promise."""


def check(file: Path) -> Iterator[Outcome]:
    """Check every part that a file defines.

    Raises
    ------
    UserError
        If the file cannot be loaded, or defines no part.
    """
    parts.load_files([file])
    defined = list(_parts_of(file))
    if not defined:
        raise UserError(f"{file}: defines no part; docs/extending.md shows what one looks like")

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ingest.prepare("digits", scratch / "digits", Options(limit=96, classifier=False))
        digits = open_dataset(scratch / "digits")
        for kind, what, keeps_promises in defined:
            fault = ""
            try:
                with tempfile.TemporaryDirectory(dir=scratch) as own:
                    keeps_promises(kind, digits, Path(own))
            except Exception as error:  # the user's code may raise anything
                fault = str(error)
                if not isinstance(error, BrokenPromise | UserError):
                    fault = f"{type(error).__name__}: {error}"
            yield Outcome(kind, what, fault)


Promises = Callable[[str, Dataset, Path], None]


def _parts_of(file: Path) -> Iterator[tuple[str, str, Promises]]:
    """Yield the kind of each part in a file, what it is, and the function that checks it."""
    for name, value in parts.contents(file).items():
        kind = f"{file.stem}:{name}"
        for base, what, promises in SECTIONS:
            if isinstance(value, type) and issubclass(value, base) and not _is_of_other_items(value):
                yield kind, what, promises
        if isinstance(value, type) and {"names", "scores"} <= vars(value).keys():
            yield kind, "score", check_score
        if inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["space", "seed", "number"]:
            yield kind, "proposer", check_proposer


def _is_of_other_items(section: type) -> bool:
    """Whether it is a codec of other items than images, of which there is no dataset here."""
    return issubclass(section, CodecSection) and section.modality != CodecSection.modality


def check_network(kind: str, dataset: Dataset, folder: Path) -> None:
    """Check that a network learns, resumes bit for bit, samples, and is exported and read back."""
    recipe = _recipe({"network.kind": kind})
    session = _trained(recipe, dataset, folder / "run")
    network = session.state.ema
    drawn = torch.cat(list(sampling.generate(network, recipe, 2, seed=1)))
    _require(drawn.shape == (2, 1, 8, 8), f"samples have the shape {list(drawn.shape)}, not [2, 1, 8, 8]")

    export_model(folder / "model", network, recipe, dataset.manifest, {})
    loaded, _ = load_model(folder / "model", "cpu")
    images = torch.randn(2, 1, 8, 8)
    levels = torch.tensor([0.1, -0.5])
    with torch.no_grad():
        same = torch.equal(loaded(images, levels), network.eval()(images, levels))
    _require(same, "read back from an exported model it computes something else")


def check_process(kind: str, dataset: Dataset, folder: Path) -> None:
    """Check that a process adds noise as its scales say, and that a network learns under it."""
    recipe = _recipe({"diffusion.kind": kind, "sampler.kind": "dpmpp"})
    process = parts.build("diffusion", recipe.diffusion)
    images, noise = torch.randn(2, 16, 1, 8, 8)
    levels = process.levels(16, torch.Generator().manual_seed(0))
    alpha, sigma = (over_images(scale, images) for scale in process.scales(levels))
    noisy = process.add_noise(images, noise, levels)
    _require(torch.allclose(noisy, alpha * images + sigma * noise, atol=1e-5), "add_noise is not what scales say")
    session = _trained(recipe, dataset, folder / "run")
    drawn = torch.cat(list(sampling.generate(session.state.ema, recipe, 8, seed=1)))
    _require(bool(drawn.float().std() > 0), "all samples are one flat colour")


def check_sampler(kind: str, dataset: Dataset, folder: Path) -> None:  # noqa: ARG001
    """Check that a sampler draws the standard deviation of Gaussian data, under each process that it takes."""
    refusals = []
    for preset in ("tiny-edm", "tiny-ddpm"):
        try:
            recipe = recipes.load(preset).replace({"sampler.kind": kind, "sampler.steps": SAMPLER_STEPS})
        except UserError as error:
            refusals.append(str(error))
            continue
        std = float(_gaussian_samples(recipe).std())
        wrong = abs(std / STD - 1) > TOLERANCE or not math.isfinite(std)
        _require(not wrong, f"data of standard deviation {STD} come out with {std:.4g} under {recipe.diffusion.kind}")
    _require(len(refusals) < 2, "; ".join(refusals))


def check_codec(kind: str, dataset: Dataset, folder: Path) -> None:
    """Check that a codec of images gives back something like them, in shapes that it says, and that training works."""
    recipe = _recipe({"codec.kind": kind})
    shape = dataset.modality.shape
    codec = parts.own(kind).build(recipe.codec, shape, CPU)
    _require(codec.item_shape(codec.shape(shape)) == shape, "item_shape is not the reverse of shape")
    values = dataset.items("train")[0].values
    x = codec.encode(values, torch.randn)
    _require(x.shape[1:] == codec.shape(shape), f"x has the shape {list(x.shape[1:])}, not {list(codec.shape(shape))}")

    decoded = codec.decode(x).values
    same_kind = decoded.dtype == torch.uint8 and decoded.shape == values.shape
    _require(same_kind, f"decodes to {decoded.dtype} {list(decoded.shape)}, not to uint8 {list(values.shape)}")
    error = (decoded.float() - values.float()).square().mean()
    error_of_mean = (values.float().mean(0) - values.float()).square().mean()
    _require(bool(error < error_of_mean), "what it decodes is no more like the images than their mean is")
    _trained(recipe, dataset, folder)


def check_technique(kind: str, dataset: Dataset, folder: Path) -> None:
    """Check that a technique changes the training, which resumes bit for bit, under each process that it takes."""
    refusals = []
    for preset in ("tiny-edm", "tiny-ddpm"):
        try:
            recipe = _recipe({"technique.kind": kind}, preset)
        except UserError as error:
            refusals.append(str(error))
            continue
        session = _trained(recipe, dataset, folder / preset)
        plain = _session(_recipe({}, preset), dataset, folder / f"{preset}-without")
        list(plain.steps())
        acts = bool(_different_weights(session, plain))
        _require(acts, "training ends with the same weights without it; its fields' defaults have to do something")
    _require(len(refusals) < 2, "; ".join(refusals))


def check_score(kind: str, dataset: Dataset, folder: Path) -> None:  # noqa: ARG001
    """Check that scores are finite, bear the names that are listed, and are the same for the same samples."""
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(2, 200, 8, generator=generator)
    compared = fidelity.Compared("classifier", samples, None, reference, fidelity.statistics(reference))
    part = parts.own(kind)
    values = part.scores(compared)
    names = part.names("classifier")
    _require(list(values) == list(names), f"gives {list(values)}, but lists {list(names)}")
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    _require(not broken, f"{', '.join(broken)}: not a finite number")
    _require(part.scores(compared) == values, "the same samples have two different scores")


def check_proposer(kind: str, dataset: Dataset, folder: Path) -> None:  # noqa: ARG001
    """Check that a proposer stays within the ranges, and proposes the same again to the same trials."""
    space = Space.of(
        recipe="tiny-edm",
        search={"optimizer.lr": {"loguniform": [1e-4, 1e-2]}, "network.channels": {"choice": [8, 16]}},
        objectives={"fd_classifier": "minimize"},
        scoring={"extractor": "classifier"},
    ).model_copy(update={"proposals": kind})
    trials: list[Trial] = []
    for number in range(12):
        proposed = proposals.propose(trials, space, 0)
        again = proposals.propose(trials, space, 0)
        _require(proposed == again, f"a resumed sweep proposes {again}, not {proposed}")
        outside = [path for path, value in proposed.items() if not space.search[path].allows(value)]
        _require(not outside, f"proposes {', '.join(outside)} outside of the range")
        trials.append(_scored_trial(number, proposed, space))


SECTIONS: list[tuple[type, str, Promises]] = [
    (Network, "network", check_network),
    (Diffusion, "process", check_process),
    (Sampler, "sampler", check_sampler),
    (CodecSection, "codec", check_codec),
    (Technique, "technique", check_technique),
]


def _require(kept: bool, fault: str) -> None:
    if not kept:
        raise BrokenPromise(fault)


def _recipe(values: dict[str, Any], preset: str = "tiny-edm") -> Recipe:
    return recipes.load(preset).replace(BASE).replace(values)


def _trained(recipe: Recipe, dataset: Dataset, folder: Path) -> Session:
    """Train twice, once with an interruption; the loss has to fall, and the weights have to be the same."""
    whole = _session(recipe, dataset, folder)
    losses = read_losses(list(whole.steps()))
    first = sum(losses[:10]) / 10
    last = sum(losses[-10:]) / 10
    _require(last < first, f"the loss does not fall: {first:.4g} in the first ten steps, {last:.4g} in the last")

    interrupted = _session(recipe, dataset, folder)
    half = STEPS // 2 * BATCH
    interrupted.train_to(half, interrupted.steps(), checkpoint_seconds=1e9)
    interrupted.save("last")
    resumed = _session(recipe, dataset, folder)
    resumed.resume()
    resumed.train_to(STEPS * BATCH, resumed.steps(), checkpoint_seconds=1e9)

    different = _different_weights(whole, resumed)
    _require(not different, f"a resumed training has other weights: {', '.join(different[:3])}")
    return whole


def _different_weights(one: Session, other: Session) -> list[str]:
    """Return the names of the tensors in which the networks of two sessions differ."""
    weights = other.state.network.state_dict()
    return [name for name, tensor in one.state.network.state_dict().items() if not torch.equal(tensor, weights[name])]


def _session(recipe: Recipe, dataset: Dataset, folder: Path) -> Session:
    prepared = prepare_techniques(recipe, dataset, 0, CPU, *ranks.rank_and_world())
    return Session(recipe, dataset, folder, 0, prepared, device=CPU)


def _gaussian_samples(recipe: Recipe) -> Tensor:
    """Sample with the prediction that is exact for data N(0, STD^2)."""
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)

    def predict(x: Tensor, levels: Tensor) -> Tensor:
        alpha, sigma = (over_images(scale, x) for scale in process.scales(levels))
        clean = STD**2 * alpha / (STD**2 * alpha**2 + sigma**2) * x
        if "an estimate of the clean image" in recipe.diffusion.offers:
            return clean
        noise = (x - alpha * clean) / sigma
        return noise if process.settings.prediction == "epsilon" else alpha * noise - sigma * clean

    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(1024, 1, 4, 4, generator=generator)

    with torch.no_grad():
        return sampler.sample(process, recipe.sampler, predict, noise, clip=False)


def _scored_trial(number: int, values: dict[str, Any], space: Space) -> Trial:
    """Return a proposal that was trained to the end, with a score."""
    row = MetricsRow(
        kimg=1.0,
        images=1000,
        step=1,
        loss=1.0,
        lr=values["optimizer.lr"],
        seconds=1.0,
        nonzero_fraction=1.0,
        train_flops=1.0,
        images_per_second=1000.0,
        scores={"fd_classifier": abs(math.log10(values["optimizer.lr"]) + 3)},
    )
    repeat = Repeat(number, 0, 0, "search", "finished", rungs={space.budget.rungs_kimg[-1]: row})
    return Trial(number, values, "complete", [repeat])
