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


def recognises(tree: Tree) -> bool:
    """Whether there are files named like MNIST's."""
    return any(IMAGES.search(name) for name in tree.names)


def read(tree: Tree) -> Source:
    """Read the images and labels into memory. Those called `t10k` or `test` are the source's own test images.

    Raises
    ------
    UserError
        If a file is damaged, or images and labels do not match.
    """
    found = [name for name in tree.names if IMAGES.search(name)]
    train = [name for name in found if not TEST.search(PurePosixPath(name).name)] or found
    test = [name for name in found if name not in train]
    if len(train) > 1 or len(test) > 1:
        raise UserError(f"{tree.path}: holds several sets of images ({', '.join(found)}); name the file to take")
    sets = [_labelled(tree, name) for name in train + test]
    if len({part.shape[1:] for part, _ in sets}) > 1 or len({labels is None for _, labels in sets}) > 1:
        raise UserError(f"{tree.where(test[0])}: differs from {train[0]} in the size of its images or in having labels")
    parts = [(tree.where(name), images) for name, (images, _) in zip(train + test, sets, strict=True)]
    given = [labels for _, labels in sets if labels is not None]
    if not given:
        return source_from_arrays("idx", parts, last_is_test=bool(test))
    classes, labels = np.unique(np.concatenate(given), return_inverse=True)
    return source_from_arrays("idx", parts, labels.astype(np.int64), [str(label) for label in classes], bool(test))


def _labelled(tree: Tree, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    images = _array(tree, name)
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(f"{tree.where(name)}: holds {list(images.shape)} numbers; [N, H, W] or [N, H, W, C] is needed")
    folder, file = PurePosixPath(name).parent, PurePosixPath(name).name
    plain = re.sub(r"idx[34]", "idx1", file.replace("images", "labels")).removesuffix(".gz")
    for partner in (str(folder / plain), str(folder / f"{plain}.gz")):
        if partner in tree.names:
            labels = _array(tree, partner)
        elif not tree.is_archive and tree.file(name).with_name(partner).is_file():
            labels = _array(open_tree(tree.file(name).with_name(partner), tree.scratch), partner)
        else:
            continue
        if labels.shape != (len(images),):
            raise UserError(
                f"{tree.where(name)}: {len(images)} images, but {partner} holds {list(labels.shape)} labels"
            )
        return images, labels
    return images, None


def _array(tree: Tree, name: str) -> np.ndarray:
    """Read one idx file: two zero bytes, 8 for bytes, the number of dimensions, each size in four bytes, the bytes."""
    where = tree.where(name)
    try:
        with tree.open(name) as packed:
            size = packed.seek(0, os.SEEK_END)
        # Opened anew: after a seek Python, from 3.12 on, no longer compares a stored member of a zip with its checksum.
        with tree.open(name) as packed:
            file = gzip.GzipFile(fileobj=packed) if name.endswith(".gz") else packed
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise UserError(f"{where}: not an idx file of unsigned bytes")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
            refuse_bomb(math.prod(shape), size, where)
            data = file.read(math.prod(shape) + 1)
    except DAMAGED as error:
        raise UserError(f"{where}: cut short or damaged ({error})") from None
    if len(data) != math.prod(shape):
        raise UserError(
            f"{where}: {'more' if len(data) > math.prod(shape) else 'fewer'} bytes than {list(shape)} takes"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
