"""Derive splits and classes of images from their folders. Ambiguous layouts are rejected.

Not a reader of its own (it has no `recognises`); `images` uses it.
"""

import os.path
import re
from pathlib import PurePosixPath

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Layout
from scrimp_trainers.data.tree import Tree

TRAIN = frozenset({"train", "training"})
HELD_OUT = frozenset({"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"})
"""Names of folders that are always splits, in upper or lower case."""
NUMBERING = re.compile(r"\d{5,}")
"""Folders that only number images, like those of FFHQ (00000, 01000) and of EDM's dataset tool."""
COPIES = re.compile(
    r"[_@].*|thumb(nail)?s?(\d.*)?|cache|\$recycle\.bin|system volume information|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
"""Folders of thumbnails and of files that programs create for themselves."""
HOLDS_IMAGES = re.compile(r"(images?|imgs?|data)(\d+(x\d+)?)?", re.IGNORECASE)
"""Folders that contain all images of a split or class, and are not a class themselves."""

SIZES = re.compile(r"([a-z]+[-_ ]?)??\d+(x\d+|[-_ ]?px)(@\d+x?)?", re.IGNORECASE)
"""Folders that hold the same images in another size, as those of icons do: 32x32, png250px."""


def _resembles(words: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern for names that begin like a split: train2017, test_images, trainA."""
    return re.compile(rf"({'|'.join(sorted(words))})([-_. \d].*|images|imgs|data|set|[ab])", re.IGNORECASE)


LIKE_TRAIN = _resembles(TRAIN)
LIKE_HELD_OUT = _resembles(HELD_OUT)


def is_train(folder: str) -> bool:
    """Whether a folder's name is that of a training split."""
    return folder.lower() in TRAIN


def is_held_out(folder: str) -> bool:
    """Whether a folder's name is that of a split that is not trained on."""
    return folder.lower() in HELD_OUT


def path_below(name: str, above: str) -> tuple[str, ...]:
    """Return the folders of an image below the folder `above`, and its file name."""
    return PurePosixPath(name[len(above) :].lstrip("/")).parts


def copies_folder(name: str) -> str | None:
    """Return the first folder of an image that contains copies or a program's own files; None if there is none."""
    folders = PurePosixPath(name).parts[:-1]
    return next((folder for folder in folders if COPIES.fullmatch(folder)), None)


def images_by_split(names: list[str], above: str, layout: Layout) -> dict[str, list[str]] | None:
    """Return the images by the folder of their split, training first; None if there are no folders of splits.

    Raises
    ------
    UserError
        If there are other images beside the folders of splits, if such folders lie deeper, or if names resemble splits.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        parts = path_below(name, above)
        folder = parts[0] if len(parts) > 1 else ""
        by_folder.setdefault(folder, []).append(name)
    splits = {folder for folder in by_folder if is_train(folder) or is_held_out(folder)}
    others = sorted(set(by_folder) - splits)

    if layout.labels != "folder":
        _refuse_deeper_splits(names, above, splits)
        _refuse_names_like_splits(others)
    if not splits:
        return None
    if others:
        other = f"{others[0]}/" if others[0] else PurePosixPath(by_folder[""][0]).name
        raise UserError(
            f"{other}: is beside {sorted(splits)[0]}/, which is a split; move or rename it, "
            "or take all images with --flat"
        )
    if not any(is_train(folder) for folder in splits):
        raise UserError(
            f"{', '.join(sorted(splits))}: there is no folder of training images; take all images with --flat"
        )
    return dict(sorted(by_folder.items(), key=lambda entry: not is_train(entry[0])))


def _refuse_deeper_splits(names: list[str], above: str, splits: set[str]) -> None:
    """Refuse folders of splits inside other folders, as it is ambiguous which images are held out."""
    for name in names:
        folders = path_below(name, above)[:-1]
        top = 1 if folders and folders[0] in splits else 0
        deeper = folders[top:]
        split = next((folder for folder in deeper if is_train(folder) or is_held_out(folder)), None)
        if split is not None:
            outer = "/".join(folders[: folders.index(split, top)])
            raise UserError(
                f"{outer}/{split}/: a split inside another folder; move it to the top, or prepare "
                f"{outer}/ by itself, or take all images with --flat, or with --labels folder"
            )


def _refuse_names_like_splits(folders: list[str]) -> None:
    """Refuse folders such as train2017/ beside val2017/, which would become classes."""
    train = [folder for folder in folders if LIKE_TRAIN.fullmatch(folder)]
    held_out = [folder for folder in folders if LIKE_HELD_OUT.fullmatch(folder)]
    if train and held_out:
        raise UserError(
            f"{train[0]}/, {held_out[0]}/: classes or splits? Rename splits to train/ and test/; "
            "--labels folder makes classes of them, --flat takes all images"
        )


def classes_by_folder(
    tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = ""
) -> list[str] | None:
    """Return the class of each image: its first folder that is not common to all; None without such folders.

    Parameters
    ----------
    top
        The folder of the images' split; empty without splits.
    where
        Prefix of notes and error messages.

    Raises
    ------
    UserError
        If it is ambiguous which folders are classes.
    """
    above = os.path.commonpath([PurePosixPath(name).parent for name in names])
    if top:  # a single folder within a split is a class, unless it is one like images/
        first = path_below(above, top)[:1]
        above = top
        if first and HOLDS_IMAGES.fullmatch(first[0]):
            above = f"{top}/{first[0]}"

    paths = [path_below(name, above) for name in names]
    without_folder = [len(parts) == 1 for parts in paths]
    if all(without_folder):
        if layout.labels == "folder":
            raise UserError(f"{where}--labels folder: all images are in one folder")
        return None
    if any(without_folder):
        example = tree.where(names[without_folder.index(True)])
        raise UserError(
            f"{example}: is beside folders of images; put every image into the folder of its class, or all into one, "
            "or take all of them without classes: --flat"
        )

    classes = [parts[0] for parts in paths]
    if layout.labels is None:
        _refuse_image_folders(sorted(set(classes)), where)
        _refuse_sizes(sorted(set(classes)), where)
        if all(NUMBERING.fullmatch(folder) for folder in classes):
            notes.append(
                f"{where}folders such as {classes[0]}/ only number images; --labels folder makes classes of them"
            )
            return None

    deeper = {parts[:-1] for parts in paths if len(parts) > 2 and not HOLDS_IMAGES.fullmatch(parts[1])}
    if deeper:
        example = "/".join(min(deeper))
        notes.append(f"{where}folders inside class folders are ignored, such as {example}/")
    return classes


def _refuse_image_folders(folders: list[str], where: str) -> None:
    """Refuse folders such as images/ beside masks/, as neither is a class."""
    image_folder = next((folder for folder in folders if HOLDS_IMAGES.fullmatch(folder)), None)
    if image_folder is not None and len(folders) > 1:
        other = next(folder for folder in folders if folder != image_folder)
        raise UserError(
            f"{where}{image_folder}/: does not hold the images of one class, and is beside {other}/; "
            "prepare one of them, or make classes of them with --labels folder"
        )


def _refuse_sizes(folders: list[str], where: str) -> None:
    """Refuse folders that are all named after sizes, such as 16x16/ beside 32x32/: they hold the same images."""
    if len(folders) > 1 and all(SIZES.fullmatch(folder) for folder in folders):
        raise UserError(
            f"{where}{folders[0]}/, {folders[1]}/: sizes of the same images are no classes; prepare one of these "
            "folders (of an archive, unpack it first), or make classes of them with --labels folder"
        )
