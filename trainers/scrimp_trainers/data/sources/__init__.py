"""Readers of datasets as people have them.

One file a format, found by its presence here: it offers `recognises(tree) -> bool` and `read(tree) -> Source`. They are
asked in alphabetical order, and the first that recognises the files of a source reads it.
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

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.data.sources.source import AS_FOUND, Layout, Source
from scrimp_trainers.data.tree import Tree, open_tree

DIGITS = "digits"
HELPERS = ("source", "labels", "folders")
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".npz"})
MOST_KINDS = 5
"""Kinds of files that are named where there are no images."""


def formats() -> list[str]:
    """Names of the formats that can be read."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name not in HELPERS)


def open_source(source: str, scratch: Path, layout: Layout = AS_FOUND, own_reader: str | None = None) -> Source:
    """Find out what a path or the name `digits` refers to, and list its images.

    Parameters
    ----------
    scratch
        A folder for temporary files; its owner removes it when the source is no longer needed.
    layout
        What the user says of how image files are laid out.
    own_reader
        A user's own reader, `my_parts:MyReader`, to be asked instead of Scrimp's.

    Raises
    ------
    UserError
        If there is nothing to read there, or it is damaged.
    """
    tree = open_tree(_digits() if source == DIGITS else Path(source), scratch)
    readers: Iterable[Any] = [parts.own(own_reader)] if own_reader else map(_reader, formats())
    for reader in readers:
        if reader.recognises(tree):
            images = _read(reader, tree, layout)
            if images.count:
                notes = [printable(note) for note in images.notes]
                skipped = {printable(reason): count for reason, count in images.skipped.items()}
                return replace(images, classes=_shown(images.classes, source), notes=notes, skipped=skipped)
    raise UserError(f"{source}: no images found{_instead(tree)}")


def _reader(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _shown(classes: list[str] | None, source: str) -> list[str] | None:
    """Return the names of the classes as they are shown: no two may look the same."""
    if classes is None:
        return None
    shown = [unicodedata.normalize("NFC", printable(name)) for name in classes]
    twice = [name for name, count in Counter(shown).items() if count > 1]
    if twice:
        raise UserError(f"{source}: two classes are both shown as {twice[0]}; rename one, or make them one")
    return shown


def _instead(tree: Tree) -> str:
    """Say which other files lie there, and what may help."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in tree.names)
    if not kinds:
        return ""
    found = ", ".join(f"{count:,} x {kind}" for kind, count in kinds.most_common(MOST_KINDS))
    if kinds.keys() & ARCHIVES:
        return (
            f", but files of other kinds ({found}); name one archive of images, or unpack archives inside others first"
        )
    return f", but files of other kinds ({found}); `scrimp prepare --help` says what can be read"


def _read(reader: Any, tree: Tree, layout: Layout) -> Source:
    if reader.__name__.endswith(".images"):
        return reader.read(tree, layout)
    if layout.flat or layout.frames == "all" or layout.labels not in (None, "none"):
        raise UserError(f"{tree.path}: --flat, --frames and --labels are for image files; use --labels none, or none")
    images = reader.read(tree)
    return replace(images, labels=None, classes=None) if layout.labels == "none" else images


def _digits() -> Path:
    # They come inside scikit-learn, which need not be imported for them.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("digits: scikit-learn, which holds these images, is not installed")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
