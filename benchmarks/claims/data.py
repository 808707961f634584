"""The items of an experiment, prepared once in the claims' storage folder from originals that the project has not."""

import hashlib
import itertools
import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.claims.claim import Data
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_file, atomic_folder, locked
from scrimp_trainers.data import manifest
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.manifest import ClassifierRecord
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import CLASSIFIER_FILE, prepare

FOLDER = "SCRIMP_DATA_DIR"
FEATURES = Path(__file__).with_name("features.py")
DRAWINGS = {"vmnist": "vmnist/vmnist.npz", "kanji": "sketch_rnn/kanji.rdp200.flat.npz"}
"""Archives of pen drawings in the folder of originals."""
LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (UCI), CC BY 4.0, as scikit-learn ships it",
    "cifar10": "CIFAR-10, without a formal licence, for research",
    "cifar10-16": "4,000 images of CIFAR-10 at 16x16, without a formal licence, for research",
    "vmnist": "MNIST's digits as pen strokes (de Jong), CC BY-SA 3.0",
    "kanji": "kanji as pen strokes (KanjiVG, by sketch-rnn), CC BY-SA 3.0",
}
"""What each source is. Scores of it are recorded, never its items."""


def dataset(data: Data, folder: Path) -> Path:
    """Return the folder of a dataset, made if need be; a part of a source is scored by the whole's classifier.

    A classifier trained on a hundred images would tell little. The whole's has seen none of the held-out images
    either, since these are the same for every part.

    Raises
    ------
    UserError
        If the originals are not there.
    """
    out = folder / data.name
    with locked(out):
        if not (out / manifest.MANIFEST_FILE).is_file():
            _make(data, folder, out)
    return out


def extractor_weights(extractor: str, folder: Path) -> Path | None:
    """Return the file that an extractor of `features.py` is made with, in the dataset's folder; made if need be."""
    if not parts.is_own(extractor):
        return None
    kind = extractor.partition(":")[2]
    out = folder / "cache" / f"{kind}.safetensors"
    with locked(out):
        if not out.is_file():
            from benchmarks.claims import features

            with atomic_file(out) as part:
                features.fit(kind, open_dataset(folder), part)
    return out


def _make(data: Data, folder: Path, out: Path) -> None:
    source = _source(data, folder)
    if data == data.whole:
        prepare(source, out, Options(name=data.name))
        return

    whole = dataset(data.whole, folder)
    reference = source if data.full_reference else None
    options = Options(limit=data.limit, reference=reference, name=data.name, classifier=False)
    with atomic_folder(out) as part:
        prepare(source, part / "made", options)
        for file in (part / "made").iterdir():
            file.rename(part / file.name)
        (part / "made").rmdir()

        facts = manifest.load_manifest(whole).classifier
        if data.halves:
            _train_on_a_half(whole, part)
        elif facts is not None:
            _give(part, (whole / CLASSIFIER_FILE).read_bytes(), facts.accuracy, facts.seed)


def _train_on_a_half(whole: Path, part: Path) -> None:
    import safetensors.torch

    from benchmarks.claims import features

    state, accuracy = features.fit_half(open_dataset(whole), features.CHOOSES)
    _give(part, safetensors.torch.save(state), accuracy, features.CHOOSES)


def _give(part: Path, weights: bytes, accuracy: float, seed: int) -> None:
    """Give a dataset a classifier that was trained on other images."""
    digest = hashlib.sha256(weights).hexdigest()
    classifier = ClassifierRecord(file=CLASSIFIER_FILE, sha256=digest, accuracy=accuracy, seed=seed)
    (part / CLASSIFIER_FILE).write_bytes(weights)
    facts = manifest.load_manifest(part).model_copy(update={"classifier": classifier})
    (part / manifest.MANIFEST_FILE).write_text(facts.to_json())


def _source(data: Data, folder: Path) -> str:
    """Return what `prepare` reads."""
    originals = Path(os.environ.get(FOLDER) or "nowhere")
    if data.source == "digits":
        return "digits"
    if data.source == "cifar10":
        return _cifar10(originals / "cifar10", folder)
    if data.source == "cifar10-16":
        return _small_cifar10(originals, folder)
    return str(_original(originals / DRAWINGS[data.source]))


def _original(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: no such file; set {FOLDER} to the folder of originals")
    return file


def _cifar10(given: Path, folder: Path) -> str:
    """Return CIFAR-10 as its authors ship it, or the JPEG files of a mirror, decoded."""
    for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz"):
        if (given / name).exists():
            return str(given / name)
    packed = given / "cifar10_jpeg_train.npz"
    if not packed.is_file():
        raise UserError(
            f"CIFAR-10: set {FOLDER} to a folder with cifar10/cifar-10-python.tar.gz (or the unpacked batches) in it"
        )
    decoded = folder / "sources" / "cifar10.npz"
    if not decoded.is_file():
        decode(packed, decoded)
    return str(decoded)


def _small_cifar10(originals: Path, folder: Path) -> str:
    """Return the images of the recorded learning curves."""
    from benchmarks.search import datasets

    for name in datasets.ORIGINALS["cifar10"]:
        _original(originals / name)
    made = folder / "sources" / "cifar10-16.npz"
    if not made.is_file():
        images, labels = datasets.read_images("cifar10", originals)
        with atomic_file(made) as part, part.open("wb") as file:
            np.savez(file, images=images, labels=labels)
    return str(made)


def decode(packed: Path, out: Path) -> None:
    """Write the images of a file of joined JPEG images as an array that `prepare` reads."""
    with np.load(packed, allow_pickle=False) as file:
        data, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]
    images = np.stack(
        [np.asarray(Image.open(BytesIO(data[start:end])).convert("RGB")) for start, end in itertools.pairwise(offsets)]
    )
    with atomic_file(out) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels.astype(np.int64))
