"""Readers of datasets in common formats.

Each format is a file in this folder, with the functions `recognises(tree) -> bool` and `read(tree) -> Source`. Readers
are tried in alphabetical order, and the first that recognises the files of a source reads it.
"""

import importlib
import importlib.util
import pkgutil
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.data.drawing import MOST_STROKES
from scrimp_trainers.data.sources.source import AS_FOUND, Layout, Source
from scrimp_trainers.data.tree import Tree, open_tree

DIGITS = "digits"
HELPERS = ("source", "labels", "folders", "captions")
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".xz", ".npz"})
MAX_SUFFIXES = 5
"""Number of file suffixes that the error message for a source without images lists."""


def formats() -> list[str]:
    """Return the names of the formats that can be read."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name not in HELPERS)


def open_source(source: str, scratch: Path, layout: Layout = AS_FOUND, own_reader: str | None = None) -> Source:
    """Detect the format of a source, a path or the name `digits`, and list its images.

    Parameters
    ----------
    scratch
        A folder for temporary files. Its owner removes it when the source is no longer needed.
    layout
        The user's options for the layout of image files.
    own_reader
        A user's own reader, `my_parts:MyReader`, which is asked instead of Scrimp's.

    Raises
    ------
    UserError
        If there is nothing to read, or it is damaged.
    """
    tree = open_tree(_digits() if source == DIGITS else Path(source), scratch)
    readers: Iterable[Any] = [parts.own(own_reader)] if own_reader else map(_reader, formats())
    for reader in readers:
        if not reader.recognises(tree):
            continue
        images = _read(reader, tree, layout)
        if images.count:
            return replace(
                images,
                classes=_displayed_classes(images.classes, source),
                notes=[printable(note) for note in images.notes],
                skipped={printable(reason): count for reason, count in images.skipped.items()},
            )
    raise UserError(f"{source}: no images found{_other_files(tree)}")


def _reader(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _displayed_classes(classes: list[str] | None, source: str) -> list[str] | None:
    """Return the class names as they are displayed. No two may look the same."""
    if classes is None:
        return None
    displayed = [unicodedata.normalize("NFC", printable(name)) for name in classes]
    ambiguous = [name for name, count in Counter(displayed).items() if count > 1]
    if ambiguous:
        raise UserError(f"{source}: two classes are both shown as {ambiguous[0]}; rename or merge them")
    return displayed


def _other_files(tree: Tree) -> str:
    """Describe the files of a source without images, and what may help; empty if there are none."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in tree.names)
    if not suffixes:
        return ""

    counts = ", ".join(f"{count:,} x {suffix}" for suffix, count in suffixes.most_common(MAX_SUFFIXES))
    advice = "`scrimp prepare --help` says what can be read"
    if suffixes.keys() & ARCHIVE_SUFFIXES:
        advice = "name one archive of images, or unpack archives inside others first"
    return f", but files of other kinds ({counts}); {advice}"


def _read(reader: Any, tree: Tree, layout: Layout) -> Source:
    name = reader.__name__.rpartition(".")[2]
    if name == "images":
        return reader.read(tree, layout)
    if layout.flat or layout.frames == "all" or layout.labels not in (None, "none", "strokes"):
        raise UserError(
            f"{tree.path}: --flat, --frames and --labels folder or FILE are for image files; use --labels none, or none"
        )
    if layout.label_column and name != "arrow":
        raise UserError(f"{tree.path}: --label-column is for tables of labels and of images, which this is not")
    images = reader.read(tree, layout) if name == "arrow" else reader.read(tree)
    if layout.labels == "none":
        images = replace(images, labels=None, classes=None)
    if layout.captions == "none":
        images = replace(images, captions=None)
    return _by_strokes(images, tree) if layout.labels == "strokes" else images


def _by_strokes(drawings: Source, tree: Tree) -> Source:
    """Return pen drawings with their numbers of strokes as classes."""
    if drawings.modality != "strokes":
        raise UserError(f"{tree.path}: --labels strokes is for pen drawings, but the source has {drawings.modality}")
    # As in the item, a stroke of one point does not count. Drawings of no stroke or too many are left out anyway.
    strokes = [sum(len(stroke) > 1 for stroke in drawings.load(number)) for number in range(drawings.count)]
    counts, labels = np.unique(np.clip(strokes, 1, MOST_STROKES), return_inverse=True)
    names = [f"{count} stroke{'' if count == 1 else 's'}" for count in counts]
    note = "classes are the numbers of strokes"
    return replace(drawings, labels=labels.astype(np.int64), classes=names, notes=[*drawings.notes, note])


def _digits() -> Path:
    # The file is part of scikit-learn. Locating it does not import the library.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("digits: scikit-learn, which holds these images, is not installed")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
