"""Datasets, single training runs and models."""

from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from scrimp_platform import operations
from scrimp_platform import tune as tuning
from scrimp_platform.model import Model
from scrimp_platform.operations import ReportProgress
from scrimp_platform.tune import Tuned
from scrimp_trainers.common import parts
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data import dataset as datasets
from scrimp_trainers.data import manifest
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.recipe.recipe import Recipe


def prepare(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    size: int | None = None,
    limit: int | None = None,
    per_class: int | None = None,
    first: int | None = None,
    holdout: float | None = None,
    labels: str | None = None,
    label_column: str | None = None,
    classes: str | None = None,
    flat: bool = False,
    frames: Literal["first", "all"] = "first",
    captions: Literal["none"] | None = None,
    reference: str | None = None,
    name: str | None = None,
    near: float | None = None,
    depth16: Literal["scale"] | None = None,
    background: str | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    reader: str | None = None,
    seed: int = 0,
    classifier: bool | None = None,
    codec: Literal["kl", "tiny", "vq"] | None = None,
    encoder: str | None = None,
    progress: ReportProgress | None = None,
) -> Dataset:
    """Make a dataset of images, as `scrimp prepare` does; docs/datasets.md says what the options do.

    Parameters
    ----------
    source
        Images in any form that docs/datasets.md lists, or the name `digits`.
    out
        The folder to create; it must not exist.
    size
        Height and width of the images: centre crop, then Lanczos. By default they must be squares of one size.
    limit, per_class
        Number of training images to keep, in total or per class; by default all.
    first
        Number of images of the source to read, the first ones in its own order; by default all.
    holdout
        Images to hold out from training: a number, or a fraction if below 1.
    labels
        Source of the classes: `none`, `folder`, or a file that lists them; by default whatever the source offers.
    label_column
        The column of labels in that file, or in a table of images; by default one of the usual names.
    classes
        A file that lists the classes to take, one a line; by default all.
    flat
        Take the images of all subfolders, and do not make classes of the folders.
    frames
        Which pages or frames to take from a file with several.
    captions
        "none" leaves captions out; by default those beside the images are kept.
    reference
        A source of images to compare with when scoring; by default the training images.
    name
        Name shown in reports; by default that of the new folder.
    near
        Images whose mean difference is at most this, on a scale of 255, stay on one side of the split; with 0 only
        equal images do. By default 8, and 0 for drawings.
    depth16
        Scale 16-bit images to 8 bits; by default they are refused.
    background
        Colour to put behind transparent images; by default they are refused.
    max_pixels
        Maximum number of pixels of an image before it is resized.
    skip_bad
        Skip unusable images and prepare the others.
    reader
        An own reader of the source, `my_parts:MyReader`; see `load_parts`.
    seed
        Seed of every random draw.
    classifier
        Train a small CNN, which can score models: on the labels, or without labels by contrast. By default it is
        trained, and used if it is better than chance.
    codec, encoder
        Also encode the images with this autoencoder, for training on latents.
    progress
        Called with the number of images done and the total.

    Returns
    -------
    Dataset
        The dataset, opened.

    Raises
    ------
    UserError
        If the source, one of its images, or an option cannot be used. Nothing is written then.
    """
    from scrimp_trainers import ingest

    options = Options(
        size=size,
        limit=limit,
        per_class=per_class,
        first=first,
        seed=seed,
        holdout=holdout,
        reference=reference,
        name=name,
        classifier=classifier,
        near=near,
        depth16=depth16,
        background=background,
        max_pixels=max_pixels,
        skip_bad=skip_bad,
        reader=reader,
        labels=labels,
        label_column=label_column,
        classes=classes,
        flat=flat,
        frames=frames,
        captions=captions,
    )
    folder = expand_home(out)
    codec_settings = operations.make_codec(codec, encoder)
    ingest.prepare(str(expand_home(source)), folder, options, progress)
    if codec_settings.on:
        operations.encode(folder, codec_settings, progress)
    return datasets.open_dataset(folder)


def open_dataset(folder: str | PathLike[str]) -> Dataset:
    """Open a prepared dataset.

    Parameters
    ----------
    folder
        Its folder.

    Returns
    -------
    Dataset
        `dataset.images("train")` reads a split into memory; `dataset.manifest` describes it.

    Raises
    ------
    UserError
        If the folder is not a dataset.
    """
    return datasets.open_dataset(expand_home(folder))


def train(
    recipe: Recipe | str | PathLike[str],
    dataset: Dataset | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    seed: int = 0,
    kimg: float | None = None,
    extractor: str | None = None,
    samples: int = 1000,
    rungs: Sequence[float] = (),
    device: str | None = None,
) -> Iterator[MetricsRow]:
    """Train a model without Ray; training advances while the returned rows are read.

    Wrong arguments are refused by the call itself. The same call resumes an earlier training run. A finished run is
    scored if `extractor` is given and it has no scores yet, and continued if the recipe is longer now and otherwise the
    same.

    Parameters
    ----------
    recipe
        A recipe, the name of a preset, or a YAML file.
    dataset
        A dataset or its folder.
    folder
        Folder for all files: recipe.yaml, metrics.jsonl, samples.png, checkpoint/, and at the end model/.
    seed
        Seed of the training run.
    kimg
        Training length in thousands of images; by default the recipe's.
    extractor
        Score the result with this feature extractor: `classifier`, `inception`, `clip`, `dinov2`, `vitg14`, `sscd`,
        `vgg16`, `resnet18`.
    samples
        Number of samples to score.
    rungs
        Training lengths in thousands of images at which to score, too. `training.select: best` needs some.
    device
        Such as `cpu` or `cuda:1`; by default the first GPU, or the CPU.

    Returns
    -------
    Iterator[MetricsRow]
        One row per tick with `kimg`, `loss` and more; the last one has the `scores`. If the run cannot resume exactly
        where it ended (a damaged checkpoint, other package versions), a Python warning says so.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, or the folder holds another training run.
    Diverged
        While the rows are read: if the loss is no longer finite or has exploded.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(fspath(recipe))
    if kimg is not None:
        recipe = operations.with_length(recipe, kimg)

    data = dataset_folder(dataset)
    scoring = None
    if extractor:
        scoring = operations.make_scoring(manifest.load_manifest(data), extractor=extractor, samples=samples)
    return operations.train(recipe, data, expand_home(folder), seed, scoring, device, rungs)


def load_parts(*files: str | PathLike[str]) -> None:
    """Load Python files with own parts, for models that have some. A recipe or space that lists them does so itself.

    Parameters
    ----------
    files
        Such as `my_parts.py`; its class `MyNetwork` is then the part `my_parts:MyNetwork`.

    Raises
    ------
    UserError
        If a file is missing or cannot be imported.
    """
    parts.load_files(expand_home(file) for file in files)


def load_model(folder: str | PathLike[str], *, device: str | None = None, captions: Sequence[str] = ()) -> Model:
    """Load a trained model.

    Parameters
    ----------
    folder
        The `model` folder of a training run.
    device
        Such as `cpu` or `cuda:1`; by default the first GPU, or the CPU.
    captions
        What samples of a model with captions are drawn of, in turn; by default some that it was trained on.

    Returns
    -------
    Model
        `model.sample(n)` draws images, `model.recipe` is its recipe, `model.network` a torch module.

    Raises
    ------
    UserError
        If the folder holds no model, or one of its files is damaged.
    """
    return Model.load(folder, device, captions)


def evaluate(
    model: Model | str | PathLike[str],
    dataset: Dataset | str | PathLike[str],
    *,
    extractor: str = "inception",
    samples: int = 50_000,
    weights: str | PathLike[str] | None = None,
    threshold: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> dict[str, Any]:
    """Score a model against a dataset: fidelity, memorisation, cost.

    Parameters
    ----------
    model
        A model or its folder.
    dataset
        A dataset or its folder.
    extractor
        The feature extractor: `inception` for FID, `classifier` for the dataset's own small CNN, `clip`, `dinov2`,
        `vitg14`, `sscd`, `vgg16`, `resnet18`.
    samples
        Number of samples to score.
    weights
        The extractor's weight file; by default it is taken from torch's cache, or else downloaded.
    threshold
        Cosine similarity to a training image above which a sample counts as memorised.
    batch_size
        Images per batch.
    seed
        Seed of the noise.
    progress
        Called with the number of images done and the total.

    Returns
    -------
    dict[str, Any]
        The scores by name, with the extractor, the number of samples and the reference set behind them.

    Raises
    ------
    UserError
        If the dataset does not support these settings, or its images and the model's differ in size.
    """
    data = dataset_folder(dataset)
    scoring = operations.make_scoring(
        manifest.load_manifest(data),
        extractor=extractor,
        samples=samples,
        weights=weights,
        threshold=threshold,
        batch_size=batch_size,
    )
    if not isinstance(model, Model):
        model = load_model(model)
    values, _ = operations.evaluate(model, data, scoring, seed, progress)
    return values


def tune(
    run: str | PathLike[str],
    dataset: Dataset | str | PathLike[str],
    *,
    widths: Sequence[float] | None = None,
    guidance: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
    extractor: str = "inception",
    samples: int = 5000,
    weights: str | PathLike[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    model: str | PathLike[str] | None = None,
    device: str | None = None,
    progress: ReportProgress | None = None,
) -> Tuned:
    """Choose EMA width, guidance and sampler steps of a finished training, as `scrimp tune` does; nothing is trained.

    Parameters
    ----------
    run
        The folder of a training whose recipe sets `ema.snapshots`, or of a sweep of such: then the typical repeat of
        its best trial.
    dataset
        A dataset or its folder.
    widths
        Widths of the average of the weights to try, as shares of the training; by default 0.03 to 0.2, as the
        snapshots allow. The average that the training made by itself is always tried, too.
    guidance, steps
        Guidance and sampling steps to try; by default the recipe's.
    extractor
        The feature extractor, whose Fréchet distance decides.
    samples
        Number of samples for each score.
    weights
        The extractor's weight file; by default it is taken from torch's cache, or else downloaded.
    batch_size
        Images per batch.
    seed
        Seed of the samples of the choice. The next one is that of the samples by which the chosen setting is scored.
    model
        A folder to write what was chosen to, as a new model.
    device
        Such as `cpu` or `cuda:1`; by default the first GPU, or the CPU.
    progress
        Called with the number of images done and the total.

    Returns
    -------
    Tuned
        `chosen`, the `candidates` with their scores, and `values` and `values_before`, the scores by other samples.

    Raises
    ------
    UserError
        If the training is not finished or has no snapshots, a width cannot be made of these, or a value is not allowed.
    """
    data = dataset_folder(dataset)
    scoring = operations.make_scoring(
        manifest.load_manifest(data), extractor=extractor, samples=samples, weights=weights, batch_size=batch_size
    )
    return tuning.tune(
        expand_home(run),
        data,
        scoring,
        widths=widths,
        guidance=guidance,
        steps=steps,
        seed=seed,
        model=expand_home(model) if model else None,
        device=device,
        progress=progress,
    )


def dataset_folder(dataset: Dataset | str | PathLike[str]) -> Path:
    """Return the folder of a dataset that is given as an object or by its path."""
    if isinstance(dataset, Dataset):
        return dataset.folder
    return expand_home(dataset)
