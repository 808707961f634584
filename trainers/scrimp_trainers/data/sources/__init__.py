"""Readers of datasets as people have them.

One file a format, found by its presence here: it offers `recognises(tree) -> bool` and `read(tree) -> Source`. They are
asked in alphabetical order, and the first that recognises the files of a source reads it.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import open_tree
from scrimp_trainers.errors import UserError

DIGITS = "digits"


def formats() -> list[str]:
    """Names of the formats that can be read."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name != "source")


def open_source(source: str, scratch: Path) -> Source:
    """Find out what a path or the name `digits` refers to, and list its images.

    Parameters
    ----------
    scratch
        A folder for temporary files; its owner removes it when the source is no longer needed.

    Raises
    ------
    UserError
        If there is nothing to read there, or it is damaged.
    """
    tree = open_tree(_digits() if source == DIGITS else Path(source), scratch)
    for name in formats():
        reader = importlib.import_module(f"{__name__}.{name}")
        if reader.recognises(tree):
            found = reader.read(tree)
            if found.count:
                return found
    raise UserError(f"{source}: no images found")


def _digits() -> Path:
    # They come inside scikit-learn, which need not be imported for them.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("digits: scikit-learn, which holds these images, is not installed")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
