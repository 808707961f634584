"""CIFAR-10's Python batches: `data_batch_1` to `data_batch_5`, and optionally `test_batch` and `batches.meta`.

These files are pickles. This reader accepts only plain containers and arrays of bytes, and never calls code that a file
names.
"""

import io
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import Tree
from scrimp_trainers.data.unpickling import ArrayUnpickler, ForbiddenError

BATCH = re.compile(r"data_batch_\d+$")
SIDE = 32


def recognises(tree: Tree) -> bool:
    """Whether there are files named like CIFAR-10's."""
    return any(BATCH.fullmatch(PurePosixPath(name).name) for name in tree.names)


def read(tree: Tree) -> Source:
    """Read all batches into memory. `test_batch` holds the source's own test images.

    Raises
    ------
    UserError
        If a batch is damaged or of another form, or its labels do not match its images.
    """
    path_of = {PurePosixPath(name).name: name for name in tree.names}
    files = [file for file in path_of if BATCH.fullmatch(file)]
    files.sort(key=lambda file: int(file.rpartition("_")[2]))
    has_test = "test_batch" in path_of
    if has_test:
        files.append("test_batch")

    parts: list[tuple[str, np.ndarray]] = []
    labels_of_parts: list[np.ndarray] = []
    for file in files:
        images, batch_labels = _read_batch(tree, path_of[file])
        parts.append((tree.where(path_of[file]), images))
        labels_of_parts.append(batch_labels)
    labels = np.concatenate(labels_of_parts)
    classes = _class_names(tree, path_of, int(labels.max()) + 1)
    return source_from_arrays("cifar10", parts, labels, classes, last_is_test=has_test)


def _read_batch(tree: Tree, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, H, W, C], and labels, int64 [N], of one batch."""
    where = tree.where(name)
    content = _unpickle(tree, name)
    data = content.get("data")
    labels = content.get("labels")
    pixels = 3 * SIDE * SIDE
    if not isinstance(data, _Array) or len(data.shape) != 2 or data.shape[1] != pixels or not isinstance(labels, list):
        raise UserError(f"{where}: not a batch of CIFAR-10 (uint8 `data` [N, {pixels}] and a list of `labels`)")
    if len(data.data) != data.shape[0] * pixels:
        raise UserError(f"{where}: cut short")
    if len(labels) != data.shape[0]:
        raise UserError(f"{where}: {data.shape[0]} images, but {len(labels)} labels")
    if not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise UserError(f"{where}: `labels` must be class numbers")
    planes = np.frombuffer(data.data, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)


def _class_names(tree: Tree, path_of: dict[str, str], count: int) -> list[str]:
    """Return the names of at least `count` classes: those of `batches.meta`, or numbers if there is no such file."""
    if "batches.meta" not in path_of:
        return [str(label) for label in range(count)]

    meta = path_of["batches.meta"]
    names = _unpickle(tree, meta).get("label_names")
    if not isinstance(names, list) or len(names) < count or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{tree.where(meta)}: `label_names` does not name {count} classes")
    return [_text(name) for name in names]


def _text(name: object) -> str:
    """Return a name that Python 2 may have pickled as bytes."""
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _unpickle(tree: Tree, name: str) -> dict[str, Any]:
    where = tree.where(name)
    try:
        content = ArrayUnpickler(io.BytesIO(tree.read(name)), _Array, _Type).load()
    except UserError:
        raise
    except ForbiddenError as error:
        raise UserError(
            f"{where}: contains {error}, which no batch of CIFAR-10 needs; it is not safe to read"
        ) from None
    except Exception as error:  # a malformed pickle can fail in any way
        raise UserError(f"{where}: not a batch of CIFAR-10, or cut short ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a batch of CIFAR-10")
    return {_text(key): value for key, value in content.items()}


class _Type:
    """Stands in for `numpy.dtype`; only uint8 is accepted."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "u1":
            raise ForbiddenError(f"numbers of type {name!r}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands in for `numpy.ndarray`: stores the shape and the bytes of the pickle."""

    shape: tuple[int, ...] = ()
    data: bytes = b""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes | str]) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Type) or by_columns:
            raise ForbiddenError("an array that is not of bytes in row order")
        self.shape = shape
        self.data = data.encode("latin1") if isinstance(data, str) else data
