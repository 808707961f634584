"""Image files as people keep them: flat, a folder a class, with folders of splits, or with a list of labels.

START READING in `read`. What is understood is said in `Source.notes`, what is left out in `Source.skipped`.
"""

import io
import os.path
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scrimp_trainers.data.pixels import SUFFIXES, decode, frames, is_image_data
from scrimp_trainers.data.sources import labels as label_files
from scrimp_trainers.data.sources.source import Layout, Source
from scrimp_trainers.data.tree import Tree
from scrimp_trainers.errors import UserError

TRAIN = frozenset({"train", "training"})
HELD_OUT = frozenset({"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"})
"""Names of folders that are splits and never classes, in any case."""
NUMBERING = re.compile(r"\d{5,}")
"""Folders that only number images, as those of FFHQ (00000, 01000) and of EDM's dataset tool."""
ASIDE = re.compile(r"[_@].*|thumb(nail)?s?(\d.*)?|cache", re.IGNORECASE)
"""Folders of small copies and of programs' own files."""
HOLDS_IMAGES = frozenset({"images", "image", "imgs", "img", "data"})
"""Names of folders in a split that hold all of its images."""
SEVERAL = frozenset({".tif", ".tiff", ".gif", ".webp"})
"""Files that may hold several pages or frames."""
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
    groups = _labelled_alike(groups, skipped)
    groups = [_with_frames(tree, group, layout, skipped) for group in groups]

    items = [item for group in groups for item in group.items]
    classes, labels = _numbered(groups)
    held = np.concatenate([np.full(len(group.items), group.held_out) for group in groups])
    return Source(
        "images",
        len(items),
        lambda i: load(tree, items[i].name, items[i].frame),
        lambda i: tree.where(items[i].name) + (f", frame {items[i].frame}" if items[i].frame else ""),
        labels,
        classes,
        held if held.any() else None,
        dict(skipped),
        notes,
    )


def load(tree: Tree, name: str, frame: int = 0) -> Image.Image:
    """Decode one image file, or one of its frames."""
    return decode(io.BytesIO(tree.read(name)), tree.where(name), frame)


def _images(tree: Tree, skipped: Counter[str]) -> list[str]:
    """Return the names of the image files; count the others by kind."""
    names = []
    for name in tree.names:
        if is_image(name) or _holds_image(tree, name):
            names.append(name)
        elif PurePosixPath(name).name not in label_files.NAMES:
            skipped[f"not an image ({PurePosixPath(name).suffix.lower() or 'no ending'})"] += 1

    proper = [name for name in names if not any(ASIDE.fullmatch(part) for part in PurePosixPath(name).parts[:-1])]
    if proper and len(proper) < len(names):
        for name in sorted(set(names) - set(proper)):
            folder = next(part for part in PurePosixPath(name).parts if ASIDE.fullmatch(part))
            skipped[f"in {folder}/"] += 1
        return proper
    return names


def _holds_image(tree: Tree, name: str) -> bool:
    """Whether a file whose name does not tell is an image by its content."""
    if is_image(name) or PurePosixPath(name).suffix.lower() in OTHER:
        return False
    return is_image_data(tree.head(name, HEAD))


def _groups(tree: Tree, names: list[str], above: str, layout: Layout, notes: list[str]) -> list[_Group]:
    """Sort the images into splits, each with its classes."""
    if layout.flat or layout.labels not in (None, "folder", "none"):
        return [_group(tree, names, "", layout, notes)]
    edm = label_files.edm(tree, above, names) if layout.labels is None else None
    if edm is not None:
        notes.append(f"classes from {label_files.EDM}")
        return [_Group([_Item(name) for name in names], [edm[name] for name in names], held_out=False)]

    splits = _splits(names, above)
    if splits is None:
        return [_group(tree, names, "", layout, notes)]
    groups = []
    for folder, members in splits.items():
        root = f"{above}/{folder}".lstrip("/")
        group = _group(tree, members, root, layout, notes, f"{folder}/: ")
        held_out = folder.lower() in HELD_OUT
        groups.append(_Group(group.items, group.classes, held_out, folder))
    held = [f"{group.folder}/ ({len(group.items):,} images)" for group in groups if group.held_out]
    notes.append(f"held out: {', '.join(held)}" if held else "no split is held out")
    return groups


def _splits(names: list[str], above: str) -> dict[str, list[str]] | None:
    """Return the images by their folder of a split; none if there are no such folders.

    Raises
    ------
    UserError
        If other folders of images lie beside those of splits.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        parts = _inner(name, above)
        folders.setdefault(parts[0] if len(parts) > 1 else "", []).append(name)
    splits = {folder for folder in folders if folder.lower() in TRAIN | HELD_OUT}
    if not splits:
        return None
    if others := sorted(set(folders) - splits):
        other = f"{others[0]}/" if others[0] else PurePosixPath(folders[""][0]).name
        raise UserError(
            f"{other}: lies beside {sorted(splits)[0]}/, which is a split; move it, or take all images with --flat"
        )
    if not any(folder.lower() in TRAIN for folder in splits):
        raise UserError(f"{', '.join(sorted(splits))}: there is no folder of training images; take all with --flat")
    return dict(sorted(folders.items(), key=lambda entry: entry[0].lower() not in TRAIN))


def _group(tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = "") -> _Group:
    """Find the classes of the images below a folder: from a list of labels, or from folders."""
    items = [_Item(name) for name in names]
    if layout.labels == "none" or (layout.flat and layout.labels is None):
        return _Group(items, None, held_out=False)
    if layout.labels not in (None, "folder"):
        found = label_files.from_file(layout.labels, names, top)
        notes.append(f"{where}classes from {layout.labels}")
        return _Group(items, [found[name] for name in names], held_out=False)
    if layout.labels is None and (listed := label_files.beside(tree, top, names, notes)):
        file, found = listed
        notes.append(f"{where}classes from {PurePosixPath(file).name}")
        return _Group(items, [found[name] for name in names], held_out=False)
    return _Group(items, _from_folders(tree, names, top, layout, notes, where), held_out=False)


def _from_folders(
    tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str
) -> list[str] | None:
    """Return the first folder that tells images apart, as the class of each."""
    above = os.path.commonpath([PurePosixPath(name).parent for name in names])
    if top:  # a single folder within a split is a class, unless it only holds the images
        first = _inner(above, top)[:1]
        above = "/".join((top, *(part for part in first if part.lower() in HOLDS_IMAGES)))
    inner = [_inner(name, above) for name in names]
    loose = [len(parts) == 1 for parts in inner]
    if all(loose):
        if layout.labels == "folder":
            raise UserError(f"{where}--labels folder: all images lie in one folder")
        return None
    if any(loose):
        odd = tree.where(names[loose.index(True)])
        raise UserError(
            f"{odd}: lies beside folders of images; put every image into the folder of its class, or all into one, "
            "or take all of them without classes: --flat"
        )
    folders = [parts[0] for parts in inner]
    if layout.labels is None and all(NUMBERING.fullmatch(folder) for folder in folders):
        notes.append(f"{where}folders such as {folders[0]}/ only number images; --labels folder makes classes of them")
        return None
    return folders


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
    return frames(io.BytesIO(tree.read(name))) if PurePosixPath(name).suffix.lower() in SEVERAL else 1


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


def _inner(name: str, above: str) -> tuple[str, ...]:
    return PurePosixPath(name[len(above) :].lstrip("/")).parts
