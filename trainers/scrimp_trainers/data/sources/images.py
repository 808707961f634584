"""Image files: in one folder, in a folder per class, in folders of splits, or with a list of labels.

Start reading at `read`. `Source.notes` says how the files were interpreted, and `Source.skipped` what was left out.
"""

import io
import os.path
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import MANIFEST_FILE
from scrimp_trainers.data.pixels import SUFFIXES, count_frames, decode_image, is_image_data
from scrimp_trainers.data.sources import captions as caption_files
from scrimp_trainers.data.sources import folders
from scrimp_trainers.data.sources import labels as label_files
from scrimp_trainers.data.sources.source import Layout, Source
from scrimp_trainers.data.tree import DAMAGED, Tree

MASK = re.compile(r"(.+)[-_ ](mask|masks|seg|segmentation|label|labels|gt|matte|trimap|depth)", re.IGNORECASE)
"""Names, without suffixes, of images that are derived from another one."""
OTHER_ENDINGS = (
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .html .htm .pdf .mat .npz .npy .pkl .pickle .bin .h5 .hdf5 "
    ".parquet .arrow .tar .gz .tgz .zip .7z .rar .py .sh .cls .mp4 .mov .avi .mkv .webm .wav .mp3 .db .ini .log .svg"
)
OTHER = frozenset(OTHER_ENDINGS.split(" "))
"""Suffixes of files that are not images. Of files with unknown suffixes, or none, the first bytes are read."""
PREPARED = frozenset({MANIFEST_FILE, "train-000000.tar"})
"""Files of a dataset that Scrimp has prepared, in which there may also be a contact sheet."""
HEAD = 32
"""Bytes that are enough to recognise an image."""


@dataclass(frozen=True)
class _Item:
    """One image: a file, and a frame in it."""

    name: str
    frame: int = 0


@dataclass(frozen=True)
class _Group:
    """Images of one split, with the names of their classes if they have any."""

    items: list[_Item]
    classes: list[str] | None
    held_out: bool
    folder: str = ""


def recognises(tree: Tree) -> bool:
    """Whether there are image files, but no class files as in WebDataset, nor the shards of a prepared dataset."""
    if any(name.endswith(".cls") for name in tree.names) or set(tree.names) >= PREPARED:
        return False
    return any(is_image(name) for name in tree.names) or any(_is_image_by_content(tree, name) for name in tree.names)


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read(tree: Tree, layout: Layout) -> Source:
    """List the images with their classes and splits.

    Raises
    ------
    UserError
        If it is ambiguous which folders are classes, or a list of labels does not match the images.
    """
    if layout.label_column and layout.labels in (None, "none", "folder"):
        raise UserError("--label-column: name the table of labels, too: --labels FILE")
    skipped = Counter(tree.skipped)
    notes: list[str] = []
    names = _image_files(tree, skipped)
    above = os.path.commonpath([PurePosixPath(name).parent for name in names])

    # Sort the images into splits, with their classes.
    groups = _groups(tree, names, above, layout, notes)
    has_split_folders = any(group.folder for group in groups)
    groups = _drop_unlabelled_splits(groups, skipped)
    if layout.classes is not None:
        groups = _of_classes(groups, layout.classes, skipped)
    if has_split_folders:
        notes.append(_describe_held_out(groups))
    notes.extend(_mask_notes(names))
    groups = [_with_frames(tree, group, layout, skipped) for group in groups]

    # Join the splits.
    items = [item for group in groups for item in group.items]
    captions = _captions(tree, [item.name for item in items], layout, skipped, notes)
    classes, labels = _number_classes(groups)
    held_out = np.concatenate([np.full(len(group.items), group.held_out) for group in groups])

    def where(i: int) -> str:
        item = items[i]
        frame = f", frame {item.frame}" if item.frame else ""
        return tree.where(item.name) + frame

    return Source(
        "images",
        count=len(items),
        load=lambda i: load_image(tree, items[i].name, items[i].frame),
        where=where,
        labels=labels,
        classes=classes,
        captions=captions,
        test=held_out if held_out.any() else None,
        skipped=dict(skipped),
        notes=notes,
    )


def _captions(
    tree: Tree, names: list[str], layout: Layout, skipped: Counter[str], notes: list[str]
) -> list[str | None] | None:
    """Return the caption of each image, None for one without; None if there are no captions, or none are wanted."""
    table = None if layout.captions == "none" else caption_files.find(tree, names)
    if table is None:
        return None

    # Its files are neither left out nor of no use.
    for file in table.files - {name for name in tree.names if PurePosixPath(name).name in label_files.NAMES}:
        skipped[f"not an image ({PurePosixPath(file).suffix.lower()})"] -= 1
    for reason in [reason for reason, count in skipped.items() if not count]:
        del skipped[reason]
    notes[:] = [note for note in notes if not any(note.startswith(f"{file} is not used: ") for file in table.files)]

    captions = [table.of.get(name) or None for name in names]
    notes.append(f"{table.note}: {caption_files.describe(captions)}")
    return captions


def load_image(tree: Tree, name: str, frame: int = 0) -> Image.Image:
    """Decode one image file, or one of its frames."""
    return decode_image(io.BytesIO(tree.read(name)), tree.where(name), frame)


def _image_files(tree: Tree, skipped: Counter[str]) -> list[str]:
    """Return the names of the image files. Count the other files by kind in `skipped`."""
    names: list[str] = []
    for name in tree.names:
        if is_image(name) or _is_image_by_content(tree, name):
            names.append(name)
        elif PurePosixPath(name).name not in label_files.NAMES:
            suffix = PurePosixPath(name).suffix.lower() or "no ending"
            skipped[f"not an image ({suffix})"] += 1

    # Leave out copies, unless there is nothing else.
    originals = [name for name in names if folders.copies_folder(name) is None]
    if originals and len(originals) < len(names):
        for name in sorted(set(names) - set(originals)):
            skipped[f"in {folders.copies_folder(name)}/"] += 1
        return originals
    return names


def _is_image_by_content(tree: Tree, name: str) -> bool:
    """Whether a file with an unknown suffix is an image by its first bytes."""
    if is_image(name) or PurePosixPath(name).suffix.lower() in OTHER:
        return False
    return is_image_data(tree.head(name, HEAD))


def _groups(tree: Tree, names: list[str], above: str, layout: Layout, notes: list[str]) -> list[_Group]:
    """Sort the images into splits, with their classes."""
    by_split = None if layout.flat else folders.images_by_split(names, above, layout)
    if by_split is None:
        return [_group(tree, names, "", layout, notes)]

    table = _label_table(tree, names, "", layout, notes)
    listed_splits: set[str] = set()
    if table is not None:
        listed_splits = {folder for folder, members in by_split.items() if table.has_any(members)}
        table.require_exactly([name for folder in sorted(listed_splits) for name in by_split[folder]])

    # A list that the user names has all the labels. One that was found may be of some of the splits only.
    layout_of_others = layout
    if layout.labels not in (None, "folder"):
        layout_of_others = replace(layout, labels="none")

    groups: list[_Group] = []
    for folder, members in by_split.items():
        if table is not None and folder in listed_splits:
            group = _listed_group(members, table)
        else:
            root = f"{above}/{folder}".lstrip("/")
            group = _group(tree, members, root, layout_of_others, notes, f"{folder}/: ")
        groups.append(replace(group, held_out=folders.is_held_out(folder), folder=folder))
    return groups


def _group(tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = "") -> _Group:
    """Find the classes of the images below a folder: from a list of labels, or from folders."""
    items = [_Item(name) for name in names]
    if layout.labels == "none" or (layout.flat and layout.labels is None):
        return _Group(items, None, held_out=False)

    table = _label_table(tree, names, top, layout, notes, where)
    if table is not None:
        table.require_exactly(names)
        return _listed_group(names, table)
    return _Group(items, folders.classes_by_folder(tree, names, top, layout, notes, where), held_out=False)


def _listed_group(names: list[str], table: label_files.LabelTable) -> _Group:
    """Return these images with the classes that a list gives them."""
    return _Group([_Item(name) for name in names], [table.class_of[name] for name in names], held_out=False)


def _label_table(
    tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = ""
) -> label_files.LabelTable | None:
    """Read the list of labels that the user names or that is found beside the images; None if there is none."""
    if layout.labels in ("none", "folder"):
        return None
    if layout.labels is not None:
        table = label_files.read_table(layout.labels, names, layout.label_column)
    else:
        table = label_files.find_table(tree, top, names, notes)
    if table is not None:
        notes.append(f"{where}classes from {table.file}")
    return table


def _drop_unlabelled_splits(groups: list[_Group], skipped: Counter[str]) -> list[_Group]:
    """Drop the splits without labels if the training images have labels, and all labels if they have none.

    Raises
    ------
    UserError
        If held-out images have classes that no training image has.
    """
    train = [group for group in groups if not group.held_out]
    if all(group.classes is None for group in train):
        return [_Group(group.items, None, group.held_out, group.folder) for group in groups]

    train_classes = {name for group in train for name in group.classes or ()}
    kept: list[_Group] = []
    for group in groups:
        if group.classes is None:
            skipped[f"in {group.folder}/, which has no labels"] += len(group.items)
            continue
        unknown = sorted(set(group.classes) - train_classes)
        if unknown:
            raise UserError(
                f"{group.folder}/: class {unknown[0]} is none of the training images'; --labels none takes all images"
            )
        kept.append(group)
    return kept


def _of_classes(groups: list[_Group], file: str, skipped: Counter[str]) -> list[_Group]:
    """Take the images of the classes that a file lists.

    Raises
    ------
    UserError
        If the images have no classes, or the training images none of a listed name.
    """
    wanted = label_files.read_classes(file)
    there = {name for group in groups if not group.held_out for name in group.classes or ()}
    missing = sorted(wanted - there)
    if missing:
        raise UserError(f"--classes {file}: {missing[0]} is none of the {len(there):,} classes of the training images")

    taken: list[_Group] = []
    for group in groups:
        pairs = [pair for pair in zip(group.items, group.classes or (), strict=True) if pair[1] in wanted]
        if len(pairs) < len(group.items):
            skipped["of a class that --classes does not list"] += len(group.items) - len(pairs)
        if pairs:
            taken.append(replace(group, items=[item for item, _ in pairs], classes=[name for _, name in pairs]))
    return taken


def _describe_held_out(groups: list[_Group]) -> str:
    """Return a note that says which splits are held out."""
    held = [f"{group.folder}/ ({len(group.items):,} images)" for group in groups if group.held_out]
    return f"held out: {', '.join(held)}" if held else "no split is held out"


def _mask_notes(names: list[str]) -> list[str]:
    """Return a note if images are named like masks of others."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in names}
    masks: list[str] = []
    for stem in sorted(stems):
        match = MASK.fullmatch(stem)
        if match and match[1] in stems:
            masks.append(stem)

    if not masks:
        return []
    return [
        f"{len(masks):,} images are named like masks of others, such as {PurePosixPath(masks[0]).name}; "
        "they are taken as images: move them away if that is wrong"
    ]


def _with_frames(tree: Tree, group: _Group, layout: Layout, skipped: Counter[str]) -> _Group:
    """Add the other pages or frames of files if the layout says so; otherwise count them in `skipped`."""
    items: list[_Item] = []
    classes: list[str] = []
    for i, item in enumerate(group.items):
        count = _count_frames(tree, item.name)
        if count > 1 and layout.frames == "first":
            skipped["other pages or frames of a file (--frames all takes them)"] += count - 1
            count = 1
        items += [_Item(item.name, frame) for frame in range(count)]
        if group.classes is not None:
            classes += [group.classes[i]] * count
    return _Group(items, None if group.classes is None else classes, group.held_out, group.folder)


def _count_frames(tree: Tree, name: str) -> int:
    """Return how many pages or frames a file has; 1 if it cannot be read."""
    try:
        with tree.open(name) as file:
            return count_frames(file)
    except DAMAGED:  # reported when its pixels are read
        return 1


def _number_classes(groups: list[_Group]) -> tuple[list[str] | None, np.ndarray | None]:
    """Return the sorted names of the classes, and the number of each image's class, int64 [N]."""
    class_of_images = [name for group in groups for name in group.classes or ()]
    if not class_of_images:
        return None, None
    classes = sorted(set(class_of_images), key=_sort_key)
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.array([number_of[name] for name in class_of_images], dtype=np.int64)
    return classes, labels


def _sort_key(name: str) -> tuple[int, str]:
    """Sort whole numbers by value, and before all other names."""
    if re.fullmatch(r"\d{1,9}", name):
        return int(name), ""
    return 10**9, name
