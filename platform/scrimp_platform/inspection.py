"""What `scrimp inspect` shows of a dataset, or of a source that is not one yet. Start reading at `inspect`.

A source is prepared in a temporary folder, as `scrimp prepare` would, without a network of its own, and forgotten.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from scrimp_platform import cluster
from scrimp_platform.machine import Machine, parse_machine
from scrimp_platform.report import scale
from scrimp_platform.report.scale import Scale
from scrimp_platform.search import advice, records, resolution
from scrimp_platform.search.advice import Advice, Learned, MachinesAtHand
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_trainers import ingest
from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.common.gpus import CARDS
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.contact_sheet import sheet
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.metrics.names import named
from scrimp_trainers.recipe.scoring import SMALLEST, Extractor, Scoring

ReportProgress = Callable[[float, float], None]

IN_CLASS = 16
"""Images on the contact sheet of a class."""
MOST_SHEETS = 30
"""Classes that get a contact sheet: the first ones."""
SAMPLES = 1000
"""Distances of real images are measured as those of so many samples are."""
ASSUMED = parse_machine("2x24GB")
"""The machine that hours are reckoned for where there is no GPU."""


@dataclass(frozen=True)
class Channel:
    """The values of a channel of the training images, from 0 to 1; drawings are seen as pictures."""

    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class ContactSheet:
    """The first training images of a class, or of all."""

    title: str
    image: Image.Image


@dataclass(frozen=True)
class Nearness:
    """How far held-out images are from training images: no score means less than that."""

    scale: Scale | None
    """The distances of real images; None if they are not known."""
    unknown: str = ""
    """Why they are not known."""
    command: str = ""
    """What makes them known."""


@dataclass(frozen=True)
class Inspection:
    """What is known of a dataset or source, and what to do with it."""

    data: str
    """The folder, file or name that was inspected."""
    prepared: bool
    """Whether it is a dataset; else it is a source, and all is as `scrimp prepare` would make it."""
    manifest: Manifest
    """The content of `dataset.json`; of a source, what it would be."""
    channels: tuple[Channel, ...]
    sheets: tuple[ContactSheet, ...]
    cached: Mapping[str, str]
    """What the dataset's cache holds, in words."""
    nearness: Nearness
    advice: Advice


def inspect(
    data: str,
    storage: Path,
    options: Options | None = None,
    on: str | None = None,
    progress: ReportProgress | None = None,
) -> Inspection:
    """Look at a dataset or a source, and advise what to sweep on it.

    Parameters
    ----------
    data
        Folder of a dataset; or a source, as `scrimp prepare` takes.
    storage
        The folder of earlier sweeps; it need not exist.
    options
        How a source is read; None as it is.
    on
        The machines that hours are reckoned for, such as `2x24GB`; None takes the GPUs at hand.
    progress
        Called with the number of images read so far and their total.

    Raises
    ------
    UserError
        If it is neither, a source cannot be read, or a dataset is damaged.
    """
    machine = parse_machine(on) if on else None
    if _is_dataset(Path(data)):
        if options is not None and options != Options():
            raise UserError(f"{data}: is a prepared dataset; options that say how to read a source do not apply")
        dataset = open_dataset(Path(data))
        nearness = _nearness(dataset, data)
        return _look(dataset, data, advice.own_extractor(dataset.manifest), nearness, storage, machine, progress)

    options = replace(options or Options(), classifier=False, skip_bad=True)
    with tempfile.TemporaryDirectory(prefix="scrimp-inspect-") as scratch:
        stem = Path(data).absolute().name.partition(".")[0]
        name = options.name or printable(stem)[: manifests.MAX_NAME_LENGTH] or "source"
        folder = Path(scratch) / "dataset"
        manifest = ingest.prepare(data, folder, replace(options, name=name), progress)
        unknown = Nearness(
            None,
            "a source has no feature extractor yet",
            f"scrimp prepare {data} data/{name}, with the options of this command, then scrimp inspect data/{name}",
        )
        return _look(Dataset(folder, manifest), data, _future_extractor(manifest), unknown, storage, machine, None)


def _is_dataset(folder: Path) -> bool:
    """Whether a folder was made by `scrimp prepare`. EDM's dataset tool also writes a `dataset.json`, with labels."""
    file = folder / manifests.MANIFEST_FILE
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # opening it says what is wrong
    return not (isinstance(content, dict) and "labels" in content)


def _future_extractor(manifest: Manifest) -> Extractor | None:
    """Return the extractor that preparing a source would train."""
    if len(manifest.classes or []) > 1:
        return "classifier"
    return "contrastive" if manifest.splits["train"].count >= ingest.LEAST_FOR_ENCODER else None


def _look(
    dataset: Dataset,
    data: str,
    own: Extractor | None,
    nearness: Nearness,
    storage: Path,
    machine: Machine | None,
    progress: ReportProgress | None,
) -> Inspection:
    manifest = dataset.manifest
    prepared = _is_dataset(Path(data))
    histograms, examples = _look_at_images(dataset, progress)
    return Inspection(
        data=data,
        prepared=prepared,
        manifest=manifest,
        channels=tuple(_channels(histograms)),
        sheets=tuple(_sheets(dataset, examples)),
        cached=_cached(dataset) if prepared else {},
        nearness=nearness,
        advice=advice.advise(
            manifest,
            data if prepared else f"data/{manifest.name}",
            own,
            _at_hand(machine),
            _learned(Storage(expand_home(storage)), manifest),
        ),
    )


def _look_at_images(
    dataset: Dataset, progress: ReportProgress | None
) -> tuple[np.ndarray, dict[int, list[np.ndarray]]]:
    """Count the values of each channel of the training images, int64 [C, 256], and keep the first of each class."""
    total = dataset.manifest.splits["train"].count
    examples: dict[int, list[np.ndarray]] = {}
    histograms: list[np.ndarray] = []
    done = 0
    for pictures, labels in dataset.blocks("train"):
        counts = [np.bincount(channel.ravel(), minlength=256) for channel in pictures.swapaxes(0, 1)]
        histograms = counts if not histograms else [a + b for a, b in zip(histograms, counts, strict=True)]
        for picture, label in zip(pictures, labels, strict=True):
            if label is not None and label < MOST_SHEETS:
                kept = examples.setdefault(label, [])
                if len(kept) < IN_CLASS:
                    kept.append(picture)
        done += len(pictures)
        if progress:
            progress(done, total)
    return np.stack(histograms), examples


def _channels(histograms: np.ndarray) -> Iterator[Channel]:
    """Yield the mean and the standard deviation of each channel, from its exact counts."""
    values = np.arange(256) / 255
    channel_names = ("red", "green", "blue") if len(histograms) == 3 else ("grey",)
    for name, counts in zip(channel_names, histograms, strict=True):
        mean = np.average(values, weights=counts)
        variance = np.average((values - mean) ** 2, weights=counts)
        yield Channel(name, float(mean), float(np.sqrt(variance)))


def _sheets(dataset: Dataset, examples: dict[int, list[np.ndarray]]) -> Iterator[ContactSheet]:
    """Yield a contact sheet for each class; without classes the one that `scrimp prepare` has drawn."""
    classes = dataset.manifest.classes
    if classes:
        for label, pictures in sorted(examples.items()):
            yield ContactSheet(classes[label], sheet(np.stack(pictures), ()))
        return
    file = dataset.folder / ingest.CONTACT_SHEET
    try:
        image = Image.open(file)
        image.load()
    except OSError:  # it was removed, or made before there were such
        return
    yield ContactSheet("training images", image)


def _cached(dataset: Dataset) -> dict[str, str]:
    """Say what a dataset's cache holds."""
    from scrimp_trainers.metrics import references

    held: dict[str, list[str]] = {}
    for file in references.cached_files(dataset.folder, dataset.manifest):
        if file.kind == "features":
            held.setdefault(f"features of {file.extractor}", []).append(file.split)
    for extractor, samples, values in _cached_distances(dataset):
        name = named("fd", extractor)
        distances = [f"{name}_{which} {value:.4g}" for which, value in values.items()]
        held.setdefault(f"distances of real images, as of {samples:,} samples", []).extend(distances)

    kinds = {"-latents-": "latents", "coreset-": "scores for coresets", "reweighting-": "trainings for class weights"}
    kinds["-captions-"] = "embeddings of captions"
    counts: Counter[str] = Counter()
    for path in (dataset.folder / "cache").glob("*"):
        for part, kind in kinds.items():
            if part in path.name and path.suffix in ("", ".npy", ".csv"):
                counts[kind] += 1
    return {what: ", ".join(items) for what, items in held.items()} | {
        kind: f"{count}" for kind, count in counts.items()
    }


def _cached_distances(dataset: Dataset) -> Iterator[tuple[Extractor, int, dict[str, float]]]:
    """Yield the distances of real images that earlier scores have kept: extractor, samples, and values by name."""
    from scrimp_trainers.metrics import references

    for file in references.cached_files(dataset.folder, dataset.manifest):
        kind, _, samples = file.kind.partition("-")
        values = references.read(file.path) if kind == "real" else None
        if values:
            yield file.extractor, int(samples), {which: float(value) for which, value in values.items()}


def _nearness(dataset: Dataset, data: str) -> Nearness:
    """Measure the distance of held-out images over the dataset's own network, or find it in the cache."""
    manifest = dataset.manifest
    held_out = manifest.splits.get("holdout")
    if held_out is None or held_out.count < SMALLEST:
        count = held_out.count if held_out else 0
        again = f"scrimp prepare {manifest.provenance.get('source', 'SOURCE')} OUT --holdout 0.1"
        return Nearness(None, f"the dataset has {count} held-out images, and {SMALLEST} are needed", again)

    own = advice.own_extractor(manifest)
    if own:
        try:
            return Nearness(_measured(dataset, own))
        except UserError as error:
            return Nearness(None, str(error), f"scrimp prepare SOURCE {data}")
    for extractor, samples, values in _cached_distances(dataset):
        if "holdout" in values:
            return Nearness(_scale(manifest, extractor, samples, values))
    return Nearness(
        None,
        "the dataset has no feature extractor of its own that is of use, and none has scored it yet",
        f"scrimp evaluate MODEL {data} --extractor inception",
    )


def _measured(dataset: Dataset, extractor: Extractor) -> Scale:
    """Measure as scoring does, which keeps features and distances in the dataset's cache."""
    from scrimp_trainers.common.device import select_device
    from scrimp_trainers.metrics.score import Scorer

    scorer = Scorer(dataset, Scoring(extractor=extractor, samples=SAMPLES), select_device())
    prefix = f"{named('fd', extractor)}_"
    values = {name.removeprefix(prefix): value for name, value in scorer.real_distances.items()}
    return _scale(dataset.manifest, extractor, SAMPLES, values)


def _scale(manifest: Manifest, extractor: Extractor, samples: int, values: Mapping[str, float]) -> Scale:
    scoring = Scoring(extractor=extractor, samples=samples)
    name = named("fd", extractor)
    total = manifest.splits[manifest.reference].count
    marks = scale.real_marks(samples, values, total, manifest)
    return Scale(name, scale.about(name, scoring, manifest), marks, [])


def _at_hand(machine: Machine | None) -> MachinesAtHand:
    """Return the machines of the running cluster, or this one; `machine` states what a node of it has."""
    try:
        nodes = [node for node in cluster.peek() if node.gpus]
    except UserError:  # RAY_ADDRESS names a cluster that does not answer
        nodes = []
    count = max(1, len(nodes))
    if machine:
        return MachinesAtHand(machine, count, "as stated")
    if not nodes:
        return MachinesAtHand(ASSUMED, 1, "assumed, as there is no GPU here; --on 2x24GB states others")

    memory = _gpu_memory()
    if memory is None:
        gpu = ASSUMED.gpu
        about = f"their GPUs' memory is assumed to be {gpu.memory} GB; --on states another"
    else:
        gpu = CARDS[max((known for known in CARDS if known <= memory), default=min(CARDS))]
        about = f"this cluster; the speed is that of an {gpu.name}"
    return MachinesAtHand(Machine(min(node.gpus for node in nodes), gpu), count, about)


def _gpu_memory() -> int | None:
    """Return the memory of this machine's first GPU in GB; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.get_device_properties(0).total_memory / 1e9)


def _learned(storage: Storage, manifest: Manifest) -> Learned:
    """Return what the earlier sweeps in a storage say of a dataset."""
    known: list[tuple[float, SweepFolder]] = []
    for folder in storage.sweeps():
        try:
            description = records.sweep_description(folder)
        except (UserError, OSError):  # damaged, or of another user: `scrimp status` tells
            continue
        if description["dataset"]["content_hash"] == manifest.content_hash:
            known.append((description["started"], folder))
    if not known:
        return Learned()

    known.sort(key=lambda entry: entry[0])
    folders = [folder for _, folder in known]
    name, _ = advice.choose_space(manifest)
    noise = None
    if name:
        noise = resolution.seed_noise(folders, spaces.load_space(name), manifest.content_hash)
    hours = sum(repeat.device_hours for repeat in records.read_as_observer(folders[-1]).repeats)
    return Learned(tuple(folder.path for folder in folders), noise, hours)
