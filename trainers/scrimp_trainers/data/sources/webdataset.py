"""WebDataset shards: tars with `<key>.png` (or another image), optionally `<key>.cls`, and `<key>.txt`, a caption.

Of a dataset that Scrimp prepared, the training images are read.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.sources import captions as caption_files
from scrimp_trainers.data.sources.images import is_image, load_image
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import Tree, open_tree


def recognises(tree: Tree) -> bool:
    """Whether there are class files, or shards in a folder."""
    return any(name.endswith(".cls") for name in tree.names) or _is_folder_of_shards(tree)


def _is_folder_of_shards(tree: Tree) -> bool:
    return tree.path.is_dir() and any(name.endswith(".tar") for name in tree.names)


def read(tree: Tree) -> Source:
    """List the images of all shards and read their classes.

    Raises
    ------
    UserError
        If a key has two images, or a class but no image, or only some images have classes.
    """
    shards, classes = _open_shards(tree)
    images: list[tuple[Tree, str]] = []
    labels: list[int | None] = []
    captions: list[str | None] = []
    for shard in shards:
        for name, label, caption in _samples(shard):
            images.append((shard, name))
            labels.append(label)
            captions.append(caption)

    def load(i: int) -> Image.Image:
        shard, name = images[i]
        return load_image(shard, name)

    def where(i: int) -> str:
        shard, name = images[i]
        return shard.where(name)

    source = Source("webdataset", len(images), load, where)
    if any(letter.isalpha() for caption in captions for letter in caption or ""):
        note = f"captions from {caption_files.SUFFIX} files: {caption_files.describe(captions)}"
        source = replace(source, captions=captions, notes=[note])
    known_labels = [label for label in labels if label is not None]
    if not known_labels:
        return replace(source, notes=[*source.notes, "no class files (.cls) in the shards, so no classes"])
    if len(known_labels) < len(labels):
        raise UserError(f"{where(labels.index(None))}: has no class file, unlike others")
    if classes is None:
        values, class_numbers = np.unique(known_labels, return_inverse=True)
        return replace(source, labels=class_numbers.astype(np.int64), classes=[str(value) for value in values])
    return replace(source, labels=np.array(known_labels, dtype=np.int64), classes=classes)


def _open_shards(tree: Tree) -> tuple[list[Tree], list[str] | None]:
    """Open the shards, and return the names of the classes if a manifest lists them."""
    if not _is_folder_of_shards(tree):
        return [tree], None

    names = [name for name in tree.names if name.endswith(".tar")]
    classes = None
    if manifests.MANIFEST_FILE in tree.names:
        prepared = manifests.load_manifest(tree.path)
        names = [shard.file for shard in prepared.splits["train"].shards]
        classes = prepared.classes
    return [open_tree(tree.path / name, tree.scratch) for name in names], classes


def _samples(shard: Tree) -> Iterator[tuple[str, int | None, str | None]]:
    """Yield the name, the class and the caption of each image of one shard."""
    images: dict[str, str] = {}
    labels: dict[str, int] = {}
    captions: dict[str, str] = {}
    for name in shard.names:
        key = str(PurePosixPath(name).parent / PurePosixPath(name).name.partition(".")[0])
        if is_image(name):
            if key in images:
                raise UserError(f"{shard.where(name)}: is a second image of its key, besides {images[key]}")
            images[key] = name
        elif name.endswith(".cls"):
            labels[key] = _label(shard, name)
        elif name.endswith(caption_files.SUFFIX):
            captions[key] = caption_files.caption_of(shard.read(name), shard.where(name))

    for key in labels:
        if key not in images:
            raise UserError(f"{shard.path}: {key}.cls: has no image")
    for key, name in images.items():
        yield name, labels.get(key), captions.get(key) or None


def _label(shard: Tree, name: str) -> int:
    try:
        return int(shard.read(name))
    except ValueError:
        raise UserError(f"{shard.where(name)}: is not the number of a class") from None
