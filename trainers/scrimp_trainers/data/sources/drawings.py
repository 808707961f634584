"""NumPy archives of pen drawings, as sketch-rnn's: steps [n, 3 or more] of dx, dy and whether the pen goes up after it.

`train`, `valid` and `test` each hold drawings: as an object array of arrays, which is sketch-rnn's own form, or as one
array of all steps with `train_offsets` [N + 1]. Labels `train_labels` [N] are optional; of several archives each is a
class. `valid` and `test` are the source's own held-out drawings.

Object arrays are pickles. This reader accepts only arrays of numbers in them, and never calls code that a file names.
"""

import io
import itertools
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.drawing import Drawing, strokes_of
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import DAMAGED, Tree, refuse_bomb
from scrimp_trainers.data.unpickling import ArrayUnpickler, ForbiddenError

SPLITS = ("train", "valid", "test")
NUMBERS = ("i1", "u1", "i2", "i4", "i8", "f2", "f4", "f8")
"""The types of numbers that are read."""


@dataclass(frozen=True)
class _Part:
    """The drawings of one split of an archive."""

    where: str
    split: str
    steps: list[np.ndarray]
    labels: np.ndarray | None


def recognises(tree: Tree) -> bool:
    """Whether all archives hold an array `train`."""
    names = _archives(tree)
    return bool(names) and all("train.npy" in _members(tree, name) for name in names)


def read(tree: Tree) -> Source:
    """Read all drawings into memory.

    Raises
    ------
    UserError
        If an array is damaged or of another form, or labels and drawings do not match.
    """
    names = _archives(tree)
    parts = [part for name in names for part in _read_archive(tree, name)]
    steps = [drawing for part in parts for drawing in part.steps]
    places = [f"{part.where}, {part.split} {number}" for part in parts for number in range(len(part.steps))]
    held_out = np.array([part.split != "train" for part in parts for _ in part.steps], dtype=bool)

    def load(number: int) -> Drawing:
        return strokes_of(steps[number])

    labels, classes = _classes(tree, names, parts)
    return Source(
        "drawings",
        count=len(steps),
        load=load,
        where=lambda number: places[number],
        labels=labels,
        classes=classes,
        test=held_out if held_out.any() else None,
        modality="strokes",
    )


def _archives(tree: Tree) -> list[str]:
    return [name for name in tree.names if name.endswith(".npz")]


def _members(tree: Tree, name: str) -> list[str]:
    try:
        with tree.open(name) as file, zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except DAMAGED:
        return []


def _classes(tree: Tree, names: list[str], parts: list[_Part]) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the labels of all drawings, and the names of the classes: those of the files, or of the labels in them."""
    if len(names) > 1:
        stems = [PurePosixPath(name).name.removesuffix(".npz") for name in names]
        of_part = [stems[names.index(name)] for name in names for part in parts if part.where == tree.where(name)]
        words = [word for word, part in zip(of_part, parts, strict=True) for _ in part.steps]
    else:
        labelled = [part.labels for part in parts if part.labels is not None]
        if not labelled:
            return None, None
        if len(labelled) < len(parts):
            raise UserError(f"{tree.path}: some splits have labels and others none")
        words = [str(label) for labels in labelled for label in labels.tolist()]
    values, numbers = np.unique(np.array(words), return_inverse=True)
    return numbers.astype(np.int64), [str(value) for value in values]


def _read_archive(tree: Tree, name: str) -> list[_Part]:
    where = tree.where(name)
    try:
        with tree.open(name) as file, zipfile.ZipFile(file) as archive:
            arrays = {}
            for info in archive.infolist():
                refuse_bomb(info.file_size, info.compress_size, f"{where}: {info.filename}")
                arrays[info.filename.removesuffix(".npy")] = archive.read(info)
    except (*DAMAGED, MemoryError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from None

    parts = []
    for split in SPLITS:
        if split in arrays:
            steps = _drawings(arrays, split, f"{where}: `{split}`")
            labels = _labels(arrays, split, len(steps), f"{where}: `{split}_labels`")
            parts.append(_Part(where, split, steps, labels))
    return parts


def _drawings(arrays: dict[str, bytes], split: str, where: str) -> list[np.ndarray]:
    """Return the steps [n, 3 or more] of each drawing of a split."""
    offsets = arrays.get(f"{split}_offsets")
    if offsets is None:
        drawings = _unpickle(arrays[split], where)
    else:
        steps, bounds = _array(arrays[split], where), _array(offsets, f"{where} offsets")
        in_order = bounds.ndim == 1 and bounds.dtype.kind in "iu" and len(bounds) > 1 and (np.diff(bounds) >= 0).all()
        if not in_order or bounds[0] < 0 or bounds[-1] > len(steps):
            raise UserError(f"{where}: its offsets are not positions in ascending order")
        drawings = [steps[start:end] for start, end in itertools.pairwise(bounds)]
    for number, drawing in enumerate(drawings):
        if drawing.ndim != 2 or drawing.shape[1] < 3 or drawing.dtype.kind not in "iuf":
            raise UserError(f"{where}: drawing {number} is {drawing.dtype} {list(drawing.shape)}; [n, 3] is needed")
    return drawings


def _labels(arrays: dict[str, bytes], split: str, count: int, where: str) -> np.ndarray | None:
    if f"{split}_labels" not in arrays:
        return None
    labels = _array(arrays[f"{split}_labels"], where)
    if labels.dtype.kind not in "iuU" or labels.shape != (count,):
        raise UserError(f"{where}: is {labels.dtype} {list(labels.shape)}; {count} whole numbers or words are needed")
    return labels


def _array(data: bytes, where: str) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from None


def _unpickle(data: bytes, where: str) -> list[np.ndarray]:
    """Return the arrays of an object array, without running what a pickle may name."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, kind = header(file)
        if not kind.hasobject:
            raise UserError(f"{where}: is {kind} without `offsets`, which say where each drawing begins")
        outer = ArrayUnpickler(file, _Array, _Type).load()
    except UserError:
        raise
    except ForbiddenError as error:
        raise UserError(f"{where}: contains {error}, which no drawing needs; it is not safe to read") from None
    except Exception as error:  # a malformed pickle can fail in any way
        raise UserError(f"{where}: damaged ({type(error).__name__})") from None
    if not (isinstance(outer, _Array) and isinstance(outer.data, list)):
        raise UserError(f"{where}: not an array of drawings")
    return [_as_array(item, where) for item in outer.data]


def _as_array(item: Any, where: str) -> np.ndarray:
    if not (isinstance(item, _Array) and isinstance(item.data, bytes) and item.kind in NUMBERS):
        raise UserError(f"{where}: holds something other than arrays of numbers")
    try:
        numbers = np.frombuffer(item.data, f"{item.order}{item.kind}")
        return numbers.reshape(item.shape[::-1]).T if item.by_columns else numbers.reshape(item.shape)
    except ValueError:
        raise UserError(f"{where}: holds an array that is cut short") from None


class _Type:
    """Stands in for `numpy.dtype`."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = "<" if state[1] == "|" else str(state[1])


class _Array:
    """Stands in for `numpy.ndarray`: stores what the pickle says of it."""

    shape: tuple[int, ...] = ()
    data: bytes | list[Any] = b""
    kind = ""
    order = "<"
    by_columns = False

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, Any]) -> None:
        _, self.shape, kind, self.by_columns, data = state
        if not isinstance(kind, _Type) or kind.order not in ("<", ">", "="):
            raise ForbiddenError("an array of an unknown type")
        self.kind, self.order = kind.name, kind.order
        self.data = data.encode("latin1") if isinstance(data, str) else data
