"""MNIST-style idx files, plain or gzipped: `*images*idx3-ubyte` and, beside it, `*labels*idx1-ubyte`."""

import gzip
import math
import os
import re
from pathlib import PurePosixPath

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import DAMAGED, Tree, open_tree, refuse_bomb

IMAGES = re.compile(r"images[.-]idx[34]-ubyte(\.gz)?$")
TEST = re.compile(r"(^|[^a-z])(t10k|test)")
DIMENSIONS = range(1, 5)
"""Of labels, of grey images, and of those in colour."""


def recognises(tree: Tree) -> bool:
    """Whether there are files named like MNIST's."""
    return any(IMAGES.search(name) for name in tree.names)


def read(tree: Tree) -> Source:
    """Read the images and labels into memory. Files named `t10k` or `test` hold the source's own test images.

    Raises
    ------
    UserError
        If a file is damaged, or images and labels do not match.
    """
    files = [name for name in tree.names if IMAGES.search(name)]
    train = [name for name in files if not TEST.search(PurePosixPath(name).name)] or files
    test = [name for name in files if name not in train]
    if len(train) > 1 or len(test) > 1:
        raise UserError(f"{tree.path}: holds several sets of images ({', '.join(files)}); name the file to take")

    parts: list[tuple[str, np.ndarray]] = []
    labels_of_parts: list[np.ndarray] = []
    for name in train + test:
        images, labels = _images_and_labels(tree, name)
        parts.append((tree.where(name), images))
        if labels is not None:
            labels_of_parts.append(labels)
    shapes = {images.shape[1:] for _, images in parts}
    if len(shapes) > 1 or len(labels_of_parts) not in (0, len(parts)):
        raise UserError(f"{tree.where(test[0])}: differs from {train[0]} in the size of its images or in having labels")

    if not labels_of_parts:
        return source_from_arrays("idx", parts, last_is_test=bool(test))
    values, labels = np.unique(np.concatenate(labels_of_parts), return_inverse=True)
    classes = [str(value) for value in values]
    return source_from_arrays("idx", parts, labels.astype(np.int64), classes, last_is_test=bool(test))


def _images_and_labels(tree: Tree, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a file of images, and the labels if there is a file of labels beside it."""
    images = _read_array(tree, name)
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(f"{tree.where(name)}: holds {list(images.shape)} numbers; [N, H, W] or [N, H, W, C] is needed")

    folder = PurePosixPath(name).parent
    image_file = PurePosixPath(name).name
    label_file = re.sub(r"idx[34]", "idx1", image_file.replace("images", "labels")).removesuffix(".gz")
    for label_name in (str(folder / label_file), str(folder / f"{label_file}.gz")):
        if label_name in tree.names:
            labels = _read_array(tree, label_name)
        elif not tree.is_archive and tree.file(name).with_name(label_name).is_file():  # the source is a single file
            label_tree = open_tree(tree.file(name).with_name(label_name), tree.scratch)
            labels = _read_array(label_tree, label_name)
        else:
            continue
        if labels.shape != (len(images),):
            raise UserError(
                f"{tree.where(name)}: {len(images)} images, but {label_name} holds {list(labels.shape)} labels"
            )
        return images, labels
    return images, None


def _read_array(tree: Tree, name: str) -> np.ndarray:
    """Read one idx file: two zero bytes, 8 for uint8, the number of dimensions, each size in four bytes, the data."""
    where = tree.where(name)
    try:
        with tree.open(name) as packed:
            size = packed.seek(0, os.SEEK_END)

        # Opened again: after a seek, Python 3.12 and later skip the checksum of an uncompressed member of a zip.
        with tree.open(name) as packed:
            file = gzip.GzipFile(fileobj=packed) if name.endswith(".gz") else packed
            header = file.read(4)
            if len(header) < 4 or header[:3] != b"\0\0\x08" or header[3] not in DIMENSIONS:
                raise UserError(f"{where}: not an idx file of unsigned bytes")
            dimensions = header[3]
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(dimensions))
            expected_bytes = math.prod(shape)
            refuse_bomb(expected_bytes, size, where)
            data = file.read(expected_bytes + 1)
    except DAMAGED as error:
        raise UserError(f"{where}: cut short or damaged ({error})") from None

    if len(data) != expected_bytes:
        difference = "more" if len(data) > expected_bytes else "fewer"
        raise UserError(f"{where}: {difference} bytes than {list(shape)} takes")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
