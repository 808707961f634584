"""CIFAR-10's Python batches: `data_batch_1` to `data_batch_5`, and perhaps `test_batch` and `batches.meta`.

They are pickles. Ours is a reader of plain containers and of arrays of bytes, and it calls nothing that a file names.
"""

import io
import pickle
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import Tree

BATCH = re.compile(r"data_batch_\d+$")
SIDE = 32


def recognises(tree: Tree) -> bool:
    """Whether there are files named like CIFAR-10's."""
    return any(BATCH.fullmatch(PurePosixPath(name).name) for name in tree.names)


def read(tree: Tree) -> Source:
    """Read all batches into memory. Those of `test_batch` are the source's own test images.

    Raises
    ------
    UserError
        If a batch is damaged, not of this form, or its labels do not match its images.
    """
    by_file = {PurePosixPath(name).name: name for name in tree.names}
    files = sorted((file for file in by_file if BATCH.fullmatch(file)), key=lambda file: int(file.rpartition("_")[2]))
    has_test = "test_batch" in by_file
    names = [by_file[file] for file in files] + ([by_file["test_batch"]] if has_test else [])
    batches = [_batch(tree, name) for name in names]
    labels = np.concatenate([labels for _, labels in batches])
    parts = [(tree.where(name), images) for name, (images, _) in zip(names, batches, strict=True)]
    return source_from_arrays("cifar10", parts, labels, _names(tree, by_file, int(labels.max()) + 1), has_test)


def _batch(tree: Tree, name: str) -> tuple[np.ndarray, np.ndarray]:
    where = tree.where(name)
    content = _load(tree, name)
    data, labels = content.get("data"), content.get("labels")
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


def _names(tree: Tree, by_file: dict[str, str], count: int) -> list[str]:
    if "batches.meta" not in by_file:
        return [str(label) for label in range(count)]
    names = _load(tree, by_file["batches.meta"]).get("label_names")
    if not isinstance(names, list) or len(names) < count or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{tree.where(by_file['batches.meta'])}: `label_names` does not name {count} classes")
    return [name.decode("latin1") if isinstance(name, bytes) else name for name in names]


def _load(tree: Tree, name: str) -> dict[str, Any]:
    where = tree.where(name)
    try:
        content = _Unpickler(io.BytesIO(tree.read(name)), encoding="latin1").load()
    except UserError:
        raise
    except _ForbiddenError as error:
        raise UserError(
            f"{where}: asks for {error}, which no batch of CIFAR-10 needs; it is not safe to read"
        ) from None
    except Exception as error:  # a malformed pickle can fail in any way
        raise UserError(f"{where}: not a batch of CIFAR-10, or cut short ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a batch of CIFAR-10")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


class _ForbiddenError(Exception):
    """A pickle names something besides arrays of bytes."""


class _Type:
    """Stands for `numpy.dtype`: nothing but uint8."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "u1":
            raise _ForbiddenError(f"numbers of type {name!r}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for `numpy.ndarray`: keeps the shape and the bytes that the pickle gives."""

    shape: tuple[int, ...] = ()
    data: bytes = b""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes | str]) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Type) or by_columns:
            raise _ForbiddenError("an array that is not of rows of bytes")
        self.shape, self.data = shape, data.encode("latin1") if isinstance(data, str) else data


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _ForbiddenError(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows four names, and gives a harmless stand-in for each."""

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in stand_ins:
            raise _ForbiddenError(f"{module}.{name}")
        return stand_ins[module, name]
