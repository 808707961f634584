"""Datasets, single trainings and models."""

from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from scrimp_platform import operations
from scrimp_platform.model import Model
from scrimp_platform.operations import Progress
from scrimp_trainers.common import parts
from scrimp_trainers.common.metrics_log import Line
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
    holdout: float | None = None,
    labels: str | None = None,
    flat: bool = False,
    frames: Literal["first", "all"] = "first",
    reference: str | None = None,
    name: str | None = None,
    near: float = 8.0,
    depth16: Literal["scale"] | None = None,
    background: str | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    reader: str | None = None,
    seed: int = 0,
    classifier: bool | None = None,
    codec: Literal["kl", "tiny"] | None = None,
    encoder: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Make a dataset of images, as `scrimp prepare` does; docs/datasets.md says what the options do.

    Parameters
    ----------
    source
        A folder, zip, tar or npz of images, CIFAR-10, idx or WebDataset shards, or the name `digits`.
    out
        The folder to make; it must not exist.
    size
        Height and width of the images: centre crop, then Lanczos. By default they must be squares of one size.
    limit, per_class
        Training images to keep, of all or of each class; by default all.
    holdout
        Images that are never trained on: a number, or a share if below 1.
    labels
        Where classes come from: `none`, `folder`, or a file that lists them; by default whatever is found.
    flat
        Take all images, at whatever depth, without classes of folders.
    frames
        Pages or frames to take of a file that has several.
    reference
        A source of images that scores compare with; by default the training images.
    name
        Name in reports; by default that of the folder made.
    near
        Largest mean difference, of 255, of images that are kept on one side of the split; 0: equal images alone.
    depth16
        Scale 16-bit images to 8 bits; by default they are refused.
    background
        Colour on which transparent images are put; by default they are refused.
    max_pixels
        Pixels that an image may have before it is resized.
    skip_bad
        Prepare the rest where some images cannot be used.
    reader
        An own reader of the source, `my_parts:MyReader`; see `load_parts`.
    seed
        Seed of every draw.
    classifier
        Train a small CNN on the labels, which can score models. By default it is trained, and used if it is better
        than chance.
    codec, encoder
        Also encode the images with this autoencoder, for training on latents.
    progress
        Called with how many images are done and how many there are.

    Returns
    -------
    Dataset
        The dataset, opened.

    Raises
    ------
    UserError
        If the source, an image in it, or an option is unfit. Nothing is left behind then.
    """
    from scrimp_trainers import ingest

    options = Options(
        size=size,
        limit=limit,
        per_class=per_class,
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
        flat=flat,
        frames=frames,
    )
    folder = Path(out).expanduser()
    the_codec = operations.codec_of(codec, encoder)
    ingest.prepare(str(Path(source).expanduser()), folder, options, progress)
    if the_codec.on:
        operations.encode(folder, the_codec, progress)
    return datasets.open_dataset(folder)


def open_dataset(folder: str | PathLike[str]) -> Dataset:
    """Open a dataset that `prepare` made.

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
    return datasets.open_dataset(Path(folder).expanduser())


def train(
    recipe: Recipe | str | PathLike[str],
    dataset: Dataset | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    seed: int = 0,
    kimg: float | None = None,
    extractor: str | None = None,
    samples: int = 1000,
    device: str | None = None,
) -> Iterator[Line]:
    """Train a model, without Ray, while what this returns is read; the same call again resumes.

    Mistakes are found at once, when it is called. A finished training is scored if `extractor` asks for it and nobody
    has, and continued if the recipe is longer now and otherwise the same.

    Parameters
    ----------
    recipe
        A recipe, the name of a preset, or a YAML file.
    dataset
        A dataset or its folder.
    folder
        Gets everything: recipe.yaml, metrics.jsonl, samples.png, checkpoint/, and at the end model/.
    seed
        Seed of the training.
    kimg
        Length, in thousands of images; by default the recipe's.
    extractor
        Score the result with this feature extractor: `classifier`, `inception`, `clip`, `dinov2`, `vgg16`, `resnet18`.
    samples
        Images to sample for the scores.
    device
        Such as `cpu` or `cuda:1`; by default the first GPU, or the CPU.

    Returns
    -------
    Iterator[dict[str, Any]]
        A line at every tick, with `kimg`, `loss` and more, and the last one with the scores. If the training does not
        resume as it ended (a damaged checkpoint, other versions), the first one has only a `note`, which says so.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, or the folder holds another training.
    Diverged
        While it is read: if the loss is no longer finite or has exploded.
    """
    the_recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(fspath(recipe))
    if kimg is not None:
        the_recipe = operations.lengthened(the_recipe, kimg)
    data = folder_of(dataset)
    scoring = operations.scoring_of(manifest.load(data), extractor=extractor, samples=samples) if extractor else None
    return operations.train(the_recipe, data, Path(folder).expanduser(), seed, scoring, device)


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
    parts.load_files(Path(file).expanduser() for file in files)


def load_model(folder: str | PathLike[str], *, device: str | None = None) -> Model:
    """Load a trained model.

    Parameters
    ----------
    folder
        The folder `model` of a training.
    device
        Such as `cpu` or `cuda:1`; by default the first GPU, or the CPU.

    Returns
    -------
    Model
        `model.sample(n)` draws images; `model.recipe` made it; `model.network` is a torch module.

    Raises
    ------
    UserError
        If the folder holds no model, or a file of it is damaged.
    """
    return Model.load(Path(folder).expanduser(), device)


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
    progress: Progress | None = None,
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
        `vgg16`, `resnet18`.
    samples
        Images to sample.
    weights
        The extractor's weight file; by default it is looked for in torch's cache, and then downloaded.
    threshold
        Cosine similarity to a training image above which a sample counts as memorised.
    batch_size
        Images at once.
    seed
        Seed of the noise.
    progress
        Called with how many images are done and how many there are.

    Returns
    -------
    dict[str, Any]
        The scores by name, with the extractor, the sample count and the reference set that they hold for.

    Raises
    ------
    UserError
        If the dataset cannot be scored in this way, or has images of another size than the model.
    """
    data = folder_of(dataset)
    scoring = operations.scoring_of(
        manifest.load(data),
        extractor=extractor,
        samples=samples,
        weights=weights,
        threshold=threshold,
        batch_size=batch_size,
    )
    the_model = model if isinstance(model, Model) else load_model(model)
    values, _ = operations.evaluate(the_model, data, scoring, seed, progress)
    return values


def folder_of(dataset: Dataset | str | PathLike[str]) -> Path:
    """Return the folder of a dataset."""
    return dataset.folder if isinstance(dataset, Dataset) else Path(dataset).expanduser()
