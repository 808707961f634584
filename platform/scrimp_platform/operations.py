"""The work behind commands, such as `scrimp prepare` and `scrimp set`, for the command line and the library.

Nothing here prints. User input is checked before torch is imported, because the import takes seconds.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from scrimp_platform import store
from scrimp_platform.model import Model
from scrimp_platform.search import budget_changes, records, steering
from scrimp_platform.store import SweepFolder
from scrimp_trainers import fit
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Autoencoder, Coreset

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_cluster.doctor import ClusterReport
    from scrimp_trainers.conditioning.text import Texts
    from scrimp_trainers.metrics.score import Scorer, Scores
    from scrimp_trainers.precompute.coreset import ScoredImages

T = TypeVar("T", bound=Sized)
ReportProgress = Callable[[float, float], None]
"""Called with the amount done and the total."""


def make_codec(kind: str | None, encoder: str | None) -> Autoencoder:
    """Return the settings of the codec that encodes a dataset's images, once its autoencoder is found.

    Raises
    ------
    UserError
        If the kind is unknown, an encoder is given without a kind, or the autoencoder is missing.
    """
    from scrimp_trainers.codecs import autoencoder_files

    if encoder and not kind:
        raise UserError("--encoder needs --codec, which names its kind")
    encoder = encoder or Autoencoder().encoder
    try:
        codec = Autoencoder.model_validate({"kind": kind or "none", "encoder": encoder, "decoder": encoder})
    except ValidationError as error:
        raise UserError(f"codec.{recipes.explain(error)}") from None

    # Checked before the images are read, which can take long.
    if codec.on:
        autoencoder_files.find(codec, "encoder")
    return codec


def encode(folder: Path, codec: Autoencoder, progress: ReportProgress | None = None) -> None:
    """Encode a dataset's images into its cache of latents.

    Raises
    ------
    UserError
        If the dataset has no images.
    """
    manifest = manifests.load_manifest(folder)
    if codec.modality not in manifest.kinds:
        raise UserError(f"--codec: encodes {codec.modality}, but dataset {manifest.name} is of {manifest.modality}")
    from scrimp_trainers.codecs.cache import open_latents
    from scrimp_trainers.common.device import select_device
    from scrimp_trainers.data.dataset import open_dataset

    dataset = open_dataset(folder)
    open_latents(dataset, codec, select_device(), progress=progress)


def with_length(recipe: Recipe, kimg: float) -> Recipe:
    """Return the recipe with another training length, in thousands of images.

    The reference and the proxy of reweighting train for at most as long.
    """
    recipe = recipe.replace({"training.kimg": kimg})
    if recipe.reweighting.on:
        recipe = recipe.replace({"reweighting.kimg": min(kimg, recipe.reweighting.kimg)})
    return recipe


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    seed: int,
    scoring: Scoring | None,
    device: str | None = None,
    rungs: Sequence[float] = (),
    say: Callable[[str], object] = warnings.warn,
) -> Iterator[MetricsRow]:
    """Train one repeat and yield the rows of its metrics; training advances as they are read.

    A finished repeat is scored if it has no scores yet, and continued if the recipe is longer now.

    Parameters
    ----------
    rungs
        When to score before the end, in kimg.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, a rung lies beyond its end, it is to choose the best model among fewer
        than two scores, or `out` holds another repeat or one with other scoring settings.
    """
    fit.check_fit(recipe, manifests.load_manifest(data))
    total_kimg = recipe.training.kimg
    beyond = [rung for rung in rungs if not 0 < rung <= total_kimg]
    if beyond:
        raise UserError(f"rung {beyond[0]:g}: training goes from 0 to {total_kimg:g} kimg; choose rungs in this range")
    if recipe.training.select == "best" and not (scoring and any(rung < total_kimg for rung in rungs)):
        raise UserError(
            "training.select: best chooses among scores; name an extractor and rungs at which to score, or set it to "
            "last"
        )
    if scoring:
        _refuse_second_score(out, data, total_kimg, scoring)
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import train_repeat

    dataset = open_dataset(data)
    return train_repeat(
        recipe,
        dataset,
        out,
        seed,
        rungs_kimg=[*rungs, total_kimg],
        scoring=scoring,
        objective=_chosen_by(scoring) if recipe.training.select == "best" else None,
        device=device,
        say=say,
    )


def _chosen_by(scoring: Scoring | None) -> str | None:
    """Return the score by which the best model is chosen, lower is better: the Fréchet distance."""
    return names.fidelity_names(scoring.extractor)[0] if scoring else None


def _refuse_second_score(out: Path, data: Path, kimg: float, scoring: Scoring) -> None:
    """Refuse to score a finished repeat with other settings: its last line and its model card hold one score."""
    lines = metrics_log.read_rows(out / "metrics.jsonl")
    if not lines or not lines[-1].extractor or lines[-1].images < kimg * 1000:
        return
    last = lines[-1]
    samples = last.value("samples")
    if (last.extractor, samples) != (scoring.extractors, scoring.samples):
        raise UserError(
            f"{out}: finished, and scored by {samples:g} samples with extractor {last.extractor}; "
            f"use `scrimp evaluate {out / 'model'} {data}` for other scores"
        )


def evaluate(
    model: Model, data: Path, scoring: Scoring, seed: int, progress: ReportProgress | None = None
) -> "tuple[dict[str, Any], Scores]":
    """Score a model against a dataset; return the scores and costs by name, and the samples behind them.

    Raises
    ------
    UserError
        If the sizes of the model's and the dataset's images differ, or the extractor is missing.
    """
    return Evaluation.open(model, data, scoring).score(model, seed, progress)


@dataclass(frozen=True)
class Evaluation:
    """What it takes to score a model against a dataset, also with other weights or another sampler."""

    scorer: "Scorer"
    texts: "Texts | None"
    """The captions of the dataset, of which samples are drawn, for a model that takes captions."""
    tokens: "Tensor | None"
    """Those captions as a score reads them, if one does."""

    @classmethod
    def open(cls, model: Model, data: Path, scoring: Scoring) -> "Evaluation":
        """Compute what does not depend on the samples; raises as `evaluate` does."""
        from scrimp_trainers.data.dataset import open_dataset
        from scrimp_trainers.export import require_same_shape, text_files_of
        from scrimp_trainers.metrics.score import Scorer

        device = model.network.device
        scores_captions = names.scores_captions(scoring, bool(model.recipe.conditioning.text))
        require_same_shape(model.folder, model.network, model.recipe, model.codec, manifests.load_manifest(data))
        dataset = open_dataset(data)
        texts = None
        tokens = None
        if model.recipe.conditioning.text:
            from scrimp_trainers.conditioning.text import open_texts

            texts = open_texts(dataset, text_files_of(model.folder, model.recipe), device)
            tokens = texts.tokens(scoring.samples) if scores_captions else None
        return cls(Scorer(dataset, scoring, device), texts, tokens)

    def score(self, model: Model, seed: int, progress: ReportProgress | None = None) -> "tuple[dict[str, Any], Scores]":
        """Draw samples from a model and score them; return the same as `evaluate`."""
        from scrimp_trainers.metrics import cost
        from scrimp_trainers.sampling import rendered

        scoring = self.scorer.scoring
        if self.texts:
            model = replace(model, conditioner=self.texts)
        statistics: list[Tensor] = []
        items = model.items(scoring.samples, seed=seed, batch_size=scoring.batch_size)
        images = rendered(items, model.modality, statistics)
        images = report_progress(images, scoring.samples, progress)
        scores = self.scorer.score(images, model.network.classes, statistics, self.tokens)

        costs = {
            "parameters": cost.parameters(model.network),
            "nonzero_parameters": cost.nonzero_parameters(model.network),
            "nfe": model.recipe.nfe,
        }
        return scores.values | costs, scores


def make_coreset(data: Path, **values: Any) -> Coreset:
    """Return the settings of a coreset of a dataset, once the extractor of its features is found.

    Raises
    ------
    UserError
        If a value is not allowed, `data` is no dataset, or the extractor cannot be used with it.
    """
    try:
        coreset = Coreset(**values)
    except ValidationError as error:
        raise UserError(recipes.explain(error)) from None
    manifest = manifests.load_manifest(data)
    if coreset.score != "random":
        make_scoring(manifest, extractor=coreset.features, weights=coreset.weights)
    return coreset


def score(data: Path, coreset: Coreset, seed: int, progress: ReportProgress | None = None) -> "ScoredImages":
    """Score a dataset's training images and choose those that the coreset keeps."""
    from scrimp_trainers.common import device
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.precompute.coreset import score_dataset

    return score_dataset(open_dataset(data), coreset, device.select_device(), seed, progress)


def examine(storage: Path, data: Path | None, tracking_uri: str | None) -> "ClusterReport":
    """Examine every node that a sweep would run on.

    Raises
    ------
    UserError
        If the storage is not a folder, `data` no dataset, or the address of MLflow none.
    """
    if storage.exists() and not storage.is_dir():
        raise UserError(f"--storage {storage}: not a folder")
    if data:
        manifests.load_manifest(data)
    from scrimp_platform import cluster
    from scrimp_platform.tracking import mlflow_server

    uri = ""
    if tracking_uri is not None:
        uri = mlflow_server.check_address(tracking_uri)
    from scrimp_cluster import doctor
    from scrimp_cluster.faults import Fault

    with cluster.connect() as nodes:
        report = doctor.examine(nodes, expand_home(storage).absolute(), data and data.absolute())
        report.head.extend(doctor.missing_nodes(nodes))
    if uri and not mlflow_server.is_reachable(uri):
        remedy = "start it, or train without it; it receives everything later"
        report.head.append(Fault("MLflow", f"{uri} does not answer", remedy, stops=False))
    return report


def make_scoring(manifest: Manifest, **values: Any) -> Scoring:
    """Return scoring settings that are checked against a dataset's manifest.

    Raises
    ------
    UserError
        If a value is not allowed, or the dataset does not support these settings.
    """
    try:
        scoring = Scoring(**values)
    except ValidationError as error:
        raise UserError(recipes.explain(error)) from None
    names.check_scoring(scoring, manifest)
    return scoring


def report_progress(batches: Iterable[T], total: int, progress: ReportProgress | None) -> Iterator[T]:
    """Yield the batches of images, and report after each how many images have passed."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        if progress:
            progress(done, total)


def set_limits(sweep: Path, assignments: Sequence[str]) -> list[str]:
    """Ask the driver of a sweep to change limits of its budget, such as `budget.trials=40`; return its answers.

    Raises
    ------
    UserError
        If a limit cannot change, or the driver refuses.
    """
    space = records.space_of(SweepFolder(sweep))
    limits = [budget_changes.parse(assignment) for assignment in assignments]
    for field, value in limits:
        space = budget_changes.with_limit(space, field, value)
    return [_ask(sweep, steering.make("set", field=field, value=value)) for field, value in limits]


def stop(sweep: Path, trial: int) -> str:
    """Ask the driver of a sweep to stop a trial; return its answer. Raises `UserError` if it refuses."""
    records.space_of(SweepFolder(sweep))
    return _ask(sweep, steering.make("stop", trial=trial))


def pause(sweep: Path) -> str:
    """Ask the driver of a sweep to pause it; return its answer.

    Raises
    ------
    UserError
        If the sweep does not run.
    """
    records.space_of(SweepFolder(sweep))
    return _ask(sweep, steering.make("pause"))


def _ask(sweep: Path, request: steering.Request) -> str:
    folder = SweepFolder(sweep)
    reply = steering.ask(folder, request)
    if reply.refused:
        raise UserError(reply.answer)
    if reply.answered:
        return reply.answer
    if store.holder(folder.lock):
        return "the sweep has not answered yet; it will carry this out at its next decision"
    if request.action == "pause":
        raise UserError(f"{sweep}: is not running, so there is nothing to pause")
    return "the sweep does not run; it will carry this out when its command is run again"
