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
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import pyarrow as pa

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


def features(**columns: object) -> dict[bytes, bytes]:
    """Return what Hugging Face's `datasets` writes into a schema."""
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


NAMED = features(label={"_type": "ClassLabel", "names": ["class0", "class1", "class2"]})


def arrow_table(
    start: int = 0, end: int = COUNT, metadata: dict[bytes, bytes] | None = None, **columns: object
) -> "pa.Table":
    """Return a table as `datasets` keeps one: images as pairs of bytes and a path, and classes by number."""
    import pyarrow as pa

    content = {"image": [{"bytes": png(image), "path": None} for image in PIXELS[start:end]], **columns}
    return pa.table(content).replace_schema_metadata(metadata)


def parquet(table: "pa.Table") -> bytes:
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def saved_to_disk(table: "pa.Table") -> bytes:
    import pyarrow as pa

    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pixel_table(labelled: bool = True) -> bytes:
    """Return a table of grey images with a column a pixel."""
    header = ["label"] * labelled + [f"pixel{number}" for number in range(SIDE**2)]
    rows = [[LABELS[i]] * labelled + list(PIXELS[i, ..., 0].ravel()) for i in range(COUNT)]
    return "\n".join(",".join(map(str, row)) for row in [header, *rows]).encode()


def packed_pixel_table(usage: list[str] | None = None) -> bytes:
    """Return a table of grey images with all pixels in one column, as FER2013 has."""
    usage = usage or ["Training"] * COUNT
    pixels = [" ".join(map(str, image.ravel())) for image in PIXELS[..., 0]]
    rows = [f"{LABELS[i]},{pixels[i]},{usage[i]}" for i in range(COUNT)]
    return "\n".join(["emotion,pixels,Usage", *rows]).encode()


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
    "arrow: parquet": lambda path: make_folder(
        path,
        {
            "data/train-00000-of-00002.parquet": parquet(arrow_table(0, 5, NAMED, label=LABELS[:5])),
            "data/train-00001-of-00002.parquet": parquet(arrow_table(5, COUNT, NAMED, label=LABELS[5:])),
        },
    ),
    "arrow: words": lambda path: make_folder(
        path, {"x.parquet": parquet(arrow_table(label=[f"class{label}" for label in LABELS]))}
    ),
    "arrow: saved to disk": lambda path: make_folder(
        path,
        {
            "train/data-00000-of-00001.arrow": saved_to_disk(arrow_table(metadata=NAMED, label=LABELS)),
            "train/cache-0123.arrow": b"",
            "dataset_dict.json": b"{}",
        },
    ),
    "arrow: saved to disk, zip": lambda path: make_zip(
        path.with_suffix(".zip"), {"data-00000-of-00001.arrow": saved_to_disk(arrow_table(label=LABELS))}
    ),
    "npy": lambda path: make_folder(path, {"images.npy": npy(PIXELS), "labels.npy": npy(LABELS)}),
    "npy: a class each": lambda path: make_folder(
        path, {f"class{label}.npy": npy(PIXELS[label == LABELS]) for label in range(3)}
    ),
    "pixel_table": lambda path: make_folder(path, {"train.csv": pixel_table()}),
    "pixel_table: one column": lambda path: make_folder(path, {"fer2013.csv": packed_pixel_table()}),
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
    "arrow": lambda path: make_folder(path, {"x.parquet": parquet(arrow_table(width=[SIDE] * COUNT))}),
    "npy": lambda path: make_folder(path, {"x.npy": npy(PIXELS)}) / "x.npy",
    "npy: rows": lambda path: make_folder(path, {"x.npy": npy(PIXELS[..., 0].reshape(COUNT, -1))}),
    "pixel_table": lambda path: make_folder(path, {"x.csv": pixel_table(labelled=False)}),
    "idx": lambda path: make_folder(path, {"train-images-idx3-ubyte": mnist()["train-images-idx3-ubyte"]}),
}
