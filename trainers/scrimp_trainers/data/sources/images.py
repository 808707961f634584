"""Image files: all in one folder, or a folder a class, or with the `dataset.json` of EDM's dataset tool."""

import io
import json
import os.path
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scrimp_trainers.data.pixels import SUFFIXES, decode
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import Tree
from scrimp_trainers.errors import UserError

EDM_LABELS = "dataset.json"


def recognises(tree: Tree) -> bool:
    """Whether there are image files that do not come with class files, as those of WebDataset do."""
    return any(is_image(name) for name in tree.names) and not any(name.endswith(".cls") for name in tree.names)


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read(tree: Tree) -> Source:
    """List the images. Without EDM's list of labels, the first folder that tells them apart is their class.

    Raises
    ------
    UserError
        If some images lie in class folders and some beside them, or EDM's list does not match the images.
    """
    names = [name for name in tree.names if is_image(name)]
    if EDM_LABELS in tree.names:
        classes, labels = _listed(tree, names)
    else:
        classes, labels = _from_folders(tree, names)
    return Source(
        "images",
        len(names),
        lambda i: load(tree, names[i]),
        lambda i: tree.where(names[i]),
        labels,
        classes,
    )


def load(tree: Tree, name: str) -> Image.Image:
    """Decode one image file."""
    return decode(io.BytesIO(tree.read(name)), tree.where(name))


def _from_folders(tree: Tree, names: list[str]) -> tuple[list[str] | None, np.ndarray | None]:
    above = len(os.path.commonpath([PurePosixPath(name).parent for name in names]))
    inner = [PurePosixPath(name[above:].lstrip("/")).parts for name in names]
    loose = [len(parts) == 1 for parts in inner]
    if all(loose):
        return None, None
    if any(loose):
        where = tree.where(names[loose.index(True)])
        raise UserError(
            f"{where}: lies beside folders of images; put every image into the folder of its class, or all into one"
        )
    classes, labels = np.unique([parts[0] for parts in inner], return_inverse=True)
    return classes.tolist(), labels.astype(np.int64)


def _listed(tree: Tree, names: list[str]) -> tuple[list[str] | None, np.ndarray | None]:
    where = tree.where(EDM_LABELS)
    try:
        listed = json.loads(tree.read(EDM_LABELS))["labels"]
        given = None if listed is None else {str(name): int(label) for name, label in listed}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{where}: not a list of labels as EDM's dataset tool writes it; remove or mend it") from None
    if given is None:
        return None, None
    odd = sorted(set(names) ^ set(given))
    if odd:
        problem = "has no label" if odd[0] in names else "is not there"
        raise UserError(f"{where}: {odd[0]} {problem}; {len(odd)} labels do not match the images")
    classes, labels = np.unique([given[name] for name in names], return_inverse=True)
    return [str(label) for label in classes], labels.astype(np.int64)
