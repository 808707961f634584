"""Image files as people keep them: flat, a folder a class, with folders of splits, or with a list of labels.

START READING in `read`. What is understood is said in `Source.notes`, what is left out in `Source.skipped`.
"""

import io
import os.path
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.pixels import SUFFIXES, count_frames, decode_image, is_image_data
from scrimp_trainers.data.sources import folders
from scrimp_trainers.data.sources import labels as label_files
from scrimp_trainers.data.sources.source import Layout, Source
from scrimp_trainers.data.tree import DAMAGED, Tree

MASK = re.compile(r"(.+)[-_ ](mask|masks|seg|segmentation|label|labels|gt|matte|trimap|depth)", re.IGNORECASE)
"""Names, without endings, of images that are made of another one."""
OTHER_ENDINGS = (
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .html .htm .pdf .mat .npz .npy .pkl .pickle .bin .h5 .hdf5 "
    ".parquet .arrow .tar .gz .tgz .zip .7z .rar .py .sh .cls .mp4 .mov .avi .mkv .webm .wav .mp3 .db .ini .log .svg"
)
OTHER = frozenset(OTHER_ENDINGS.split(" "))
"""Endings of files that are no images; what has another ending, or none, is looked into."""
HEAD = 32
"""Bytes that tell an image."""


@dataclass(frozen=True)
class _Item:
    """One image: its file, and which frame of it."""

    name: str
    frame: int = 0


@dataclass(frozen=True)
class _Group:
    """Images of one split, with their classes by name where there are any."""

    items: list[_Item]
    classes: list[str] | None
    held_out: bool
    folder: str = ""


def recognises(tree: Tree) -> bool:
    """Whether there are image files that do not come with class files, as those of WebDataset do."""
    if any(name.endswith(".cls") for name in tree.names):
        return False
    return any(is_image(name) for name in tree.names) or any(_holds_image(tree, name) for name in tree.names)


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read(tree: Tree, layout: Layout) -> Source:
    """List the images with their classes and splits.

    Raises
    ------
    UserError
        If it is not plain which folders are classes, or a list of labels does not match the images.
    """
    skipped = Counter(tree.skipped)
    notes: list[str] = []
    names = _images(tree, skipped)
    above = os.path.commonpath([PurePosixPath(name).parent for name in names])

    groups = _groups(tree, names, above, layout, notes)
    by_folder = any(group.folder for group in groups)
    groups = _labelled_alike(groups, skipped)
    if by_folder:
        notes.append(_held_out(groups))
    notes.extend(_masks(names))
    groups = [_with_frames(tree, group, layout, skipped) for group in groups]

    items = [item for group in groups for item in group.items]
    classes, labels = _numbered(groups)
    held = np.concatenate([np.full(len(group.items), group.held_out) for group in groups])
    return Source(
        "images",
        len(items),
        lambda i: load_image(tree, items[i].name, items[i].frame),
        lambda i: tree.where(items[i].name) + (f", frame {items[i].frame}" if items[i].frame else ""),
        labels,
        classes,
        held if held.any() else None,
        dict(skipped),
        notes,
    )


def load_image(tree: Tree, name: str, frame: int = 0) -> Image.Image:
    """Decode one image file, or one of its frames."""
    return decode_image(io.BytesIO(tree.read(name)), tree.where(name), frame)


def _images(tree: Tree, skipped: Counter[str]) -> list[str]:
    """Return the names of the image files; count the others by kind."""
    names = []
    for name in tree.names:
        if is_image(name) or _holds_image(tree, name):
            names.append(name)
        elif PurePosixPath(name).name not in label_files.NAMES:
            skipped[f"not an image ({PurePosixPath(name).suffix.lower() or 'no ending'})"] += 1

    proper = [name for name in names if folders.copies_folder(name) is None]
    if proper and len(proper) < len(names):
        for name in sorted(set(names) - set(proper)):
            skipped[f"in {folders.copies_folder(name)}/"] += 1
        return proper
    return names


def _holds_image(tree: Tree, name: str) -> bool:
    """Whether a file whose name does not tell is an image by its content."""
    if is_image(name) or PurePosixPath(name).suffix.lower() in OTHER:
        return False
    return is_image_data(tree.head(name, HEAD))


def _groups(tree: Tree, names: list[str], above: str, layout: Layout, notes: list[str]) -> list[_Group]:
    """Sort the images into splits, each with its classes."""
    by_split = None if layout.flat else folders.images_by_split(names, above, layout)
    if by_split is None:
        return [_group(tree, names, "", layout, notes)]

    table = _table(tree, names, "", layout, notes)
    listed = {folder for folder, members in by_split.items() if table and table.has_any(members)}
    if table is not None:
        table.check([name for folder in sorted(listed) for name in by_split[folder]])
    # A list that the user names is all there is; one that lies there may be that of some of the splits.
    unlisted = replace(layout, labels="none") if layout.labels not in (None, "folder") else layout
    groups = []
    for folder, members in by_split.items():
        if table is not None and folder in listed:
            group = _Group([_Item(name) for name in members], [table.given[name] for name in members], held_out=False)
        else:
            root = f"{above}/{folder}".lstrip("/")
            group = _group(tree, members, root, unlisted, notes, f"{folder}/: ")
        groups.append(replace(group, held_out=folders.is_held_out(folder), folder=folder))
    return groups


def _group(tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = "") -> _Group:
    """Find the classes of the images below a folder: from a list of labels, or from folders."""
    items = [_Item(name) for name in names]
    if layout.labels == "none" or (layout.flat and layout.labels is None):
        return _Group(items, None, held_out=False)
    table = _table(tree, names, top, layout, notes, where)
    if table is not None:
        table.check(names)
        return _Group(items, [table.given[name] for name in names], held_out=False)
    return _Group(items, folders.classes_by_folder(tree, names, top, layout, notes, where), held_out=False)


def _table(
    tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = ""
) -> label_files.LabelTable | None:
    """Read the list of labels that the user names, or that lies there."""
    if layout.labels in ("none", "folder"):
        return None
    if layout.labels is not None:
        table = label_files.read_table(layout.labels, names)
    else:
        table = label_files.find_table(tree, top, names, notes)
    if table is not None:
        notes.append(f"{where}classes from {table.file}")
    return table


def _labelled_alike(groups: list[_Group], skipped: Counter[str]) -> list[_Group]:
    """Leave out the splits without labels where the training images have some.

    Raises
    ------
    UserError
        If held-out images have classes that no training image has.
    """
    train = [group for group in groups if not group.held_out]
    if all(group.classes is None for group in train):
        return [_Group(group.items, None, group.held_out, group.folder) for group in groups]
    known = {name for group in train for name in group.classes or ()}
    kept = []
    for group in groups:
        if group.classes is None:
            skipped[f"in {group.folder}/, which has no labels"] += len(group.items)
        elif odd := sorted(set(group.classes) - known):
            raise UserError(f"{group.folder}/: class {odd[0]} is none of the training images'; --labels none takes all")
        else:
            kept.append(group)
    return kept


def _held_out(groups: list[_Group]) -> str:
    """Say which splits are held out."""
    held = [f"{group.folder}/ ({len(group.items):,} images)" for group in groups if group.held_out]
    return f"held out: {', '.join(held)}" if held else "no split is held out"


def _masks(names: list[str]) -> Iterator[str]:
    """Say so if images are named like masks of others."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in names}
    found = {stem: match[1] for stem in sorted(stems) if (match := MASK.fullmatch(stem))}
    masks = [stem for stem, base in found.items() if base in stems]
    if masks:
        yield (
            f"{len(masks):,} images are named like masks of others, such as {PurePosixPath(masks[0]).name}; "
            "they are taken as images: move them away if that is wrong"
        )


def _with_frames(tree: Tree, group: _Group, layout: Layout, skipped: Counter[str]) -> _Group:
    """Take the further pages or frames of files too, if that is asked for; count them otherwise."""
    items, classes = [], []
    for i, item in enumerate(group.items):
        count = _frames(tree, item.name)
        if count > 1 and layout.frames == "first":
            skipped["further pages or frames of a file (--frames all takes them)"] += count - 1
            count = 1
        items += [_Item(item.name, frame) for frame in range(count)]
        if group.classes is not None:
            classes += [group.classes[i]] * count
    return _Group(items, None if group.classes is None else classes, group.held_out, group.folder)


def _frames(tree: Tree, name: str) -> int:
    """Return how many pages or frames a file has."""
    try:
        with tree.open(name) as file:
            return count_frames(file)
    except DAMAGED:  # it is named where its pixels are read
        return 1


def _numbered(groups: list[_Group]) -> tuple[list[str] | None, np.ndarray | None]:
    """Return the names of the classes, numbers in their order, and the class of each image."""
    given = [name for group in groups for name in group.classes or ()]
    if not given:
        return None, None
    names = sorted(set(given), key=_order)
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[name] for name in given], dtype=np.int64)


def _order(name: str) -> tuple[int, str]:
    """Sort whole numbers by value, before and apart from words."""
    return (int(name), "") if re.fullmatch(r"\d{1,9}", name) else (10**9, name)
