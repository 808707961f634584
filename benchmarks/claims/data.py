"""The images of an experiment, prepared once in the claims' storage folder."""

import itertools
import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.claims.claim import Data
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_folder
from scrimp_trainers.data import manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import CLASSIFIER_FILE, prepare

FOLDER = "SCRIMP_DATA_DIR"


def dataset(data: Data, folder: Path) -> Path:
    """Return the folder of a dataset, made if need be; a part of a source is scored by the whole's classifier.

    A classifier trained on a hundred images would tell little. The whole's has seen none of the held-out images
    either, since these are the same for every part.
    """
    out = folder / data.name
    if (out / manifest.MANIFEST_FILE).is_file():
        return out
    source = _source(data, folder)
    if data == data.whole:
        prepare(source, out, Options(size=data.size, name=data.name))
        return out
    whole = dataset(data.whole, folder)
    options = Options(
        size=data.size,
        limit=data.limit,
        per_class=data.per_class,
        reference=source if data.full_reference else None,
        name=data.name,
        classifier=False,
    )
    with atomic_folder(out) as part:
        prepare(source, part / "made", options)
        for file in (part / "made").iterdir():
            file.rename(part / file.name)
        (part / "made").rmdir()
        _lend_classifier(whole, part)
    return out


def _lend_classifier(whole: Path, part: Path) -> None:
    classifier, facts = manifest.load_manifest(whole).classifier, manifest.load_manifest(part)
    (part / CLASSIFIER_FILE).write_bytes((whole / CLASSIFIER_FILE).read_bytes())
    (part / manifest.MANIFEST_FILE).write_text(facts.model_copy(update={"classifier": classifier}).to_json())


def _source(data: Data, folder: Path) -> str:
    """Return what `prepare` reads: CIFAR-10 as its authors ship it, or the JPEG files of a mirror, decoded."""
    if data.source == "digits":
        return "digits"
    given = Path(os.environ.get(FOLDER) or "nowhere", "cifar10")
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


def decode(packed: Path, out: Path) -> None:
    """Write the images of a file of joined JPEG images as an array that `prepare` reads."""
    with np.load(packed, allow_pickle=False) as file:
        data, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]
    images = np.stack(
        [np.asarray(Image.open(BytesIO(data[start:end])).convert("RGB")) for start, end in itertools.pairwise(offsets)]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.stem}.part.npz")
    np.savez(part, images=images, labels=labels.astype(np.int64))
    part.replace(out)
