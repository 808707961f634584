"""What `scrimp prepare`, `train` and `evaluate` do, and the library with them. Nothing here prints.

Whatever a user can get wrong is checked before torch is imported, which takes seconds.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from scrimp_platform.model import Model
from scrimp_trainers import fit
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import Line
from scrimp_trainers.data import manifest
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Codec

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.metrics.score import Scores

Progress = Callable[[float, float], None]
"""Called with how much is done and how much there is."""


def codec_of(kind: str | None, encoder: str | None) -> Codec:
    """Return the codec that a dataset's images are to be encoded with, and that its autoencoder is there.

    Raises
    ------
    UserError
        If there is no such codec, or an encoder without a kind.
    """
    from scrimp_trainers.codecs import pretrained

    if encoder and not kind:
        raise UserError("--encoder needs --codec, which says of what kind it is")
    encoder = encoder or Codec().encoder
    try:
        codec = Codec.model_validate({"kind": kind or "none", "encoder": encoder, "decoder": encoder})
    except ValidationError as error:
        raise UserError(f"codec.{recipes.explain(error)}") from None
    if codec.on:
        pretrained.find(codec, "encoder")  # before the images are read, which can take long
    return codec


def encode(folder: Path, codec: Codec, progress: Progress | None = None) -> None:
    """Fill a dataset's cache of latents."""
    from scrimp_trainers.codecs.cache import open_latents
    from scrimp_trainers.common.device import select_device
    from scrimp_trainers.data.dataset import open_dataset

    open_latents(open_dataset(folder), codec, select_device(), progress=progress)


def lengthened(recipe: Recipe, kimg: float) -> Recipe:
    """Return the recipe at another length, in thousands of images; reweighting's reference and proxy get no more."""
    recipe = recipe.replace({"training.kimg": kimg})
    if recipe.reweighting.on:
        recipe = recipe.replace({"reweighting.kimg": min(kimg, recipe.reweighting.kimg)})
    return recipe


def train(
    recipe: Recipe, data: Path, out: Path, seed: int, scoring: Scoring | None, device: str | None = None
) -> Iterator[Line]:
    """Return the lines of one repeat, which is trained as they are read. A finished one is scored, or continued.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, or `out` holds another repeat or one that was scored in another way.
    """
    fit.check(recipe, manifest.load(data))
    total = recipe.training.kimg
    if scoring:
        _refuse_second_score(metrics_log.read(out / "metrics.jsonl"), out, data, total, scoring)
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import run

    return run(recipe, open_dataset(data), out, seed, rungs_kimg=[total], scoring=scoring, device=device)


def _refuse_second_score(earlier: list[Line], out: Path, data: Path, kimg: float, scoring: Scoring) -> None:
    """Refuse to score a finished run in another way: its last line and its model card hold one score."""
    last = earlier[-1] if earlier else {}
    if "extractor" not in last or last["images"] < kimg * 1000:
        return
    if (last["extractor"], last["samples"]) != (scoring.extractor, scoring.samples):
        raise UserError(
            f"{out}: finished, and scored by {last['samples']:g} samples with extractor {last['extractor']}; "
            f"use `scrimp evaluate {out / 'model'} {data}` for other scores"
        )


def evaluate(
    model: Model, data: Path, scoring: Scoring, seed: int, progress: Progress | None = None
) -> "tuple[dict[str, Any], Scores]":
    """Score a model against a dataset; return the values with the model's cost, and what they were made of.

    Raises
    ------
    UserError
        If the model's images are of another size than the dataset's, or the extractor is missing.
    """
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.export import check_images
    from scrimp_trainers.metrics import cost
    from scrimp_trainers.metrics.score import Scorer

    network = model.network
    check_images(model.folder, network, model.codec, manifest.load(data))
    scorer = Scorer(open_dataset(data), scoring, network.device)
    images = model.batches(scoring.samples, seed=seed, batch_size=scoring.batch_size)
    scores = scorer.score(counted(images, scoring.samples, progress), classes=network.classes)
    costs = {
        "parameters": cost.parameters(network),
        "nonzero_parameters": cost.nonzero_parameters(network),
        "nfe": model.recipe.nfe,
    }
    return scores.values | costs, scores


def scoring_of(facts: Manifest, **values: Any) -> Scoring:
    """Return how a dataset is to be scored.

    Raises
    ------
    UserError
        If a value is not allowed, or the dataset cannot be scored in this way.
    """
    try:
        scoring = Scoring(**values)
    except ValidationError as error:
        raise UserError(recipes.explain(error)) from None
    names.check(scoring, facts)
    return scoring


def counted(batches: "Iterable[Tensor]", total: int, progress: Progress | None) -> "Iterator[Tensor]":
    """Pass batches of images on, and say how many have been."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        if progress:
            progress(done, total)
