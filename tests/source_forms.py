"""The same images and classes in every form that `scrimp prepare` reads."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIDE = 12, 32
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) // 4  # sorted, so that every form lists the images in this order


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files(labelled: bool = True) -> dict[str, bytes]:
    folders = [f"class{label}/" if labelled else "" for label in LABELS]
    return {f"{folder}{i:02d}.png": png(PIXELS[i]) for i, folder in enumerate(folders)}


def make_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in content.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def make_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    data = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))
    content = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": data, b"filenames": [b"x"] * len(data)}
    return pickle.dumps(content, protocol=2)


def cifar(test: bool = False) -> dict[str, bytes]:
    content = {
        "cifar-10-batches-py/data_batch_1": batch(PIXELS[:5], LABELS[:5]),
        "cifar-10-batches-py/data_batch_2": batch(PIXELS[5:], LABELS[5:]),
        "cifar-10-batches-py/batches.meta": pickle.dumps({"label_names": ["class0", "class1", "class2"]}, protocol=2),
    }
    return content | ({"cifar-10-batches-py/test_batch": batch(PIXELS[:4], LABELS[:4])} if test else {})


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(end: str = "", test: bool = False) -> dict[str, bytes]:
    pack: Callable[[bytes], bytes] = gzip.compress if end else bytes
    grey = PIXELS[..., 0]
    content = {
        f"train-images-idx3-ubyte{end}": pack(idx(grey)),
        f"train-labels-idx1-ubyte{end}": pack(idx(LABELS)),
    }
    more = {f"t10k-images-idx3-ubyte{end}": pack(idx(grey[:4])), f"t10k-labels-idx1-ubyte{end}": pack(idx(LABELS[:4]))}
    return content | (more if test else {})


def samples(start: int = 0, end: int = COUNT) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for i in range(start, end):
        content[f"{i:04d}.cls"] = str(LABELS[i]).encode()
        content[f"{i:04d}.png"] = png(PIXELS[i])
    return content


def shards(path: Path) -> Path:
    path.mkdir()
    make_tar(path / "a-000.tar", samples(end=5))
    make_tar(path / "a-001.tar", samples(start=5))
    return path


def edm(labels: bool = True) -> dict[str, bytes]:
    content = {f"00000/img{i:08d}.png": png(PIXELS[i]) for i in range(COUNT)}
    listed = [[name, int(label)] for name, label in zip(content, LABELS, strict=True)] if labels else None
    return content | {"dataset.json": json.dumps({"labels": listed}).encode()}


def lsun(path: Path, images: list[bytes]) -> Path:
    """Write a database as LSUN's: keys in the order of the images."""
    import lmdb

    with lmdb.open(str(path), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        for i, data in enumerate(images):
            transaction.put(f"{i:040x}".encode(), data)
    return path


LABELLED: dict[str, Callable[[Path], Path]] = {
    "images: folders": lambda path: make_folder(path, files()),
    "images: zip": lambda path: make_zip(path.with_suffix(".zip"), files()),
    "images: zip of one folder": lambda path: make_zip(
        path.with_suffix(".zip"), {f"all/{name}": data for name, data in files().items()}
    ),
    "images: tar": lambda path: make_tar(path.with_suffix(".tar"), files()),
    "images: tar.gz": lambda path: make_tar(path.with_suffix(".tar.gz"), files()),
    "images: EDM's zip": lambda path: make_zip(path.with_suffix(".zip"), edm()),
    "npz": lambda path: make_npz(path.with_suffix(".npz"), images=PIXELS, labels=LABELS),
    "npz: words": lambda path: make_npz(
        path.with_suffix(".npz"), images=PIXELS, labels=np.array(["a", "b", "c"])[LABELS]
    ),
    "cifar10: folder": lambda path: make_folder(path, cifar()),
    "cifar10: tar.gz": lambda path: make_tar(path.with_suffix(".tar.gz"), cifar()),
    "idx": lambda path: make_folder(path, mnist()),
    "idx: gz": lambda path: make_folder(path, mnist(".gz")),
    "idx: one file, labels beside it": lambda path: make_folder(path, mnist(".gz")) / "train-images-idx3-ubyte.gz",
    "webdataset: one": lambda path: make_tar(path.with_suffix(".tar"), samples()),
    "webdataset: folder": shards,
}
UNLABELLED: dict[str, Callable[[Path], Path]] = {
    "images: flat": lambda path: make_folder(path, files(labelled=False)),
    "images: one class": lambda path: make_folder(path, {f"all/{n}": data for n, data in files(False).items()}),
    "images: with notes": lambda path: make_folder(path, {"README.md": b"hello", ".hidden.png": b"", **files(False)}),
    "images: Mac's zip": lambda path: make_zip(
        path.with_suffix(".zip"), files(False) | {"__MACOSX/._01.png": b"\0\5\x16\7"}
    ),
    "images: EDM's zip": lambda path: make_zip(path.with_suffix(".zip"), edm(labels=False)),
    "lsun": lambda path: lsun(path, list(files(False).values())),
    "npz": lambda path: make_npz(path.with_suffix(".npz"), images=PIXELS),
    "npz: grey": lambda path: make_npz(path.with_suffix(".npz"), images=PIXELS[..., :1]),
    "idx": lambda path: make_folder(path, {"train-images-idx3-ubyte": mnist()["train-images-idx3-ubyte"]}),
}
