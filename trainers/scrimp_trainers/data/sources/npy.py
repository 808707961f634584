"""Arrays of images: `.npy` files, uint8 [N, H, W] or [N, H, W, C], or [N, H * W] of squares, as Quick, Draw!'s bitmaps.

Of one file with images, an array `labels` or `y` beside it holds the classes. Several files are a class each.
"""

import math
import re
from pathlib import PurePosixPath

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources import folders
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import DAMAGED_ARRAY, Tree

LABELS = re.compile(r"(.*[-_.])?(labels?|y|targets?)\.npy", re.IGNORECASE)


def recognises(tree: Tree) -> bool:
    """Whether there are only such files."""
    return bool(tree.names) and all(name.endswith(".npy") for name in tree.names)


def read(tree: Tree) -> Source:
    """Read the arrays into memory.

    Raises
    ------
    UserError
        If an array is damaged or of another form, or the numbers of labels and images differ.
    """
    image_files = [name for name in tree.names if not LABELS.fullmatch(PurePosixPath(name).name)]
    label_files = [name for name in tree.names if name not in image_files]
    if not image_files or (label_files and (len(image_files), len(label_files)) != (1, 1)):
        raise UserError(
            f"{tree.path}: {len(image_files)} arrays of images and {len(label_files)} of labels; name one of images, "
            "with one of labels beside it or none, or several that are a class each"
        )

    parts = [(tree.where(name), _images(tree, name)) for name in image_files]
    shapes = {images.shape[1:] for _, images in parts}
    if len(shapes) > 1:
        raise UserError(f"{tree.path}: arrays of different sizes of images; prepare one at a time")

    if len(parts) > 1:
        classes = [PurePosixPath(name).stem for name in image_files]
        _refuse_splits(tree, classes)
        labels = np.repeat(np.arange(len(parts)), [len(images) for _, images in parts])
        return source_from_arrays("npy", parts, labels.astype(np.int64), classes)
    if not label_files:
        return source_from_arrays("npy", parts)
    values, class_numbers = np.unique(_labels(tree, label_files[0], len(parts[0][1])), return_inverse=True)
    return source_from_arrays("npy", parts, class_numbers.astype(np.int64), [str(value) for value in values])


def _refuse_splits(tree: Tree, names: list[str]) -> None:
    """Refuse files such as x_train and x_test, which are no classes."""
    for name in names:
        words = re.split(r"[-_. ]", name)
        if any(folders.is_train(word) or folders.is_held_out(word) for word in words):
            raise UserError(f"{tree.path}: {name}.npy looks like a split, not a class; name one array of images")


def _images(tree: Tree, name: str) -> np.ndarray:
    where = tree.where(name)
    images = _array(tree, name)
    shape = list(images.shape)
    if images.ndim == 2 and math.isqrt(shape[1]) ** 2 == shape[1]:
        side = math.isqrt(shape[1])
        images = images.reshape(-1, side, side)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise UserError(f"{where}: is {images.dtype} {shape}; uint8 [N, H, W, C] is needed")
    if 0 in images.shape:
        raise UserError(f"{where}: no images in it")
    return images


def _labels(tree: Tree, name: str, count: int) -> np.ndarray:
    labels = _array(tree, name)
    if labels.dtype.kind not in "iuU" or labels.shape != (count,):
        form = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{tree.where(name)}: is {form}; {count} whole numbers or words are needed, one per image")
    return labels


def _array(tree: Tree, name: str) -> np.ndarray:
    try:
        with tree.open(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise UserError(f"{tree.where(name)}: cannot be read ({error})") from None
    except MemoryError:
        raise UserError(f"{tree.where(name)}: does not fit into memory") from None
