"""Readers of datasets as people have them.

One file a format, found by its presence here: it offers `recognises(tree) -> bool` and `read(tree) -> Source`. They are
asked in alphabetical order, and the first that recognises the files of a source reads it.
"""

import importlib
import importlib.util
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from scrimp_trainers.data.sources.source import AS_FOUND, Layout, Source
from scrimp_trainers.data.tree import Tree, open_tree
from scrimp_trainers.errors import UserError, printable

DIGITS = "digits"


HELPERS = ("source", "labels")


def formats() -> list[str]:
    """Names of the formats that can be read."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name not in HELPERS)


def open_source(source: str, scratch: Path, layout: Layout = AS_FOUND) -> Source:
    """Find out what a path or the name `digits` refers to, and list its images.

    Parameters
    ----------
    scratch
        A folder for temporary files; its owner removes it when the source is no longer needed.
    layout
        What the user says of how image files are laid out.

    Raises
    ------
    UserError
        If there is nothing to read there, or it is damaged.
    """
    tree = open_tree(_digits() if source == DIGITS else Path(source), scratch)
    for name in formats():
        reader = importlib.import_module(f"{__name__}.{name}")
        if reader.recognises(tree):
            images = _read(reader, tree, layout)
            if images.count:
                classes = images.classes and [printable(name) for name in images.classes]
                return replace(images, classes=classes)
    raise UserError(f"{source}: no images found")


def _read(reader: ModuleType, tree: Tree, layout: Layout) -> Source:
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
