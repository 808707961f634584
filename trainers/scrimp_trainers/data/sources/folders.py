"""What folders say of the images in them: their split and their class. What is not plain is refused.

Not a reader of its own (it offers no `recognises`): `images` asks it.
"""

import os.path
import re
from pathlib import PurePosixPath

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Layout
from scrimp_trainers.data.tree import Tree

TRAIN = frozenset({"train", "training"})
HELD_OUT = frozenset({"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"})
"""Names of folders that are splits and never classes, in any case."""
NUMBERING = re.compile(r"\d{5,}")
"""Folders that only number images, as those of FFHQ (00000, 01000) and of EDM's dataset tool."""
ASIDE = re.compile(
    r"[_@].*|thumb(nail)?s?(\d.*)?|cache|\$recycle\.bin|system volume information|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
"""Folders of small copies and of programs' own files."""
HOLDS_IMAGES = re.compile(r"(images?|imgs?|data)(\d+(x\d+)?)?", re.IGNORECASE)
"""Folders that hold all images of a split or class, and are no class."""


def _resembles(words: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern of names that begin like a split: train2017, test_images, trainA."""
    return re.compile(rf"({'|'.join(sorted(words))})([-_. \d].*|images|imgs|data|set|[ab])", re.IGNORECASE)


LIKE_TRAIN = _resembles(TRAIN)
LIKE_HELD_OUT = _resembles(HELD_OUT)


def is_train(folder: str) -> bool:
    """Whether a folder is called like a split of training images."""
    return folder.lower() in TRAIN


def is_held_out(folder: str) -> bool:
    """Whether a folder is called like a split that is not trained on."""
    return folder.lower() in HELD_OUT


def path_below(name: str, above: str) -> tuple[str, ...]:
    """Return the folders of an image below `above`, and its file."""
    return PurePosixPath(name[len(above) :].lstrip("/")).parts


def copies_folder(name: str) -> str | None:
    """Return the first folder of an image that holds copies or a program's own files, if there is one."""
    return next((part for part in PurePosixPath(name).parts[:-1] if ASIDE.fullmatch(part)), None)


def images_by_split(names: list[str], above: str, layout: Layout) -> dict[str, list[str]] | None:
    """Return the images by their folder of a split, training first; none if there are no such folders.

    Raises
    ------
    UserError
        If other folders of images lie beside those of splits, or folders of splits lie elsewhere or may be meant.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        parts = path_below(name, above)
        by_folder.setdefault(parts[0] if len(parts) > 1 else "", []).append(name)
    found = {folder for folder in by_folder if is_train(folder) or is_held_out(folder)}

    if layout.labels != "folder":
        _refuse_deeper(names, above, found)
        _refuse_alike(set(by_folder) - found)
    if not found:
        return None
    if others := sorted(set(by_folder) - found):
        other = f"{others[0]}/" if others[0] else PurePosixPath(by_folder[""][0]).name
        raise UserError(
            f"{other}: lies beside {sorted(found)[0]}/, which is a split; move or rename it, "
            "or take all images with --flat"
        )
    if not any(is_train(folder) for folder in found):
        raise UserError(f"{', '.join(sorted(found))}: there is no folder of training images; take all with --flat")
    return dict(sorted(by_folder.items(), key=lambda entry: not is_train(entry[0])))


def _refuse_deeper(names: list[str], above: str, found: set[str]) -> None:
    """Refuse folders of splits below others: which images are held out must not depend on a guess."""
    for name in names:
        folders = path_below(name, above)[:-1]
        deeper = folders[1:] if folders and folders[0] in found else folders
        odd = next((part for part in deeper if is_train(part) or is_held_out(part)), None)
        if odd is not None:
            outer = "/".join(folders[: folders.index(odd, len(folders) - len(deeper))])
            raise UserError(
                f"{outer}/{odd}/: a split inside another folder; put the folders of splits on top, or prepare {outer}/ "
                "by itself, or take all images with --flat, or with --labels folder"
            )


def _refuse_alike(folders: set[str]) -> None:
    """Refuse folders such as train2017/ beside val2017/, which would be classes."""
    train = sorted(folder for folder in folders if LIKE_TRAIN.fullmatch(folder))
    held_out = sorted(folder for folder in folders if LIKE_HELD_OUT.fullmatch(folder))
    if train and held_out:
        raise UserError(
            f"{train[0]}/, {held_out[0]}/: classes or splits? Rename splits to train/ and test/; "
            "--labels folder makes classes of them, --flat takes all images"
        )


def classes_by_folder(
    tree: Tree, names: list[str], top: str, layout: Layout, notes: list[str], where: str = ""
) -> list[str] | None:
    """Return the first folder that tells images apart, as the class of each; none if there is no such folder.

    Parameters
    ----------
    top
        The folder of the images' split; empty without splits.
    where
        What notes and messages begin with.

    Raises
    ------
    UserError
        If it is not plain which folders are classes.
    """
    above = os.path.commonpath([PurePosixPath(name).parent for name in names])
    if top:  # a single folder within a split is a class, unless it only holds the images
        first = path_below(above, top)[:1]
        above = "/".join((top, *(part for part in first if HOLDS_IMAGES.fullmatch(part))))
    paths = [path_below(name, above) for name in names]
    loose = [len(parts) == 1 for parts in paths]
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

    given = [parts[0] for parts in paths]
    if layout.labels is None:
        _refuse_holders(sorted(set(given)), where)
        if all(NUMBERING.fullmatch(folder) for folder in given):
            numbering = f"folders such as {given[0]}/ only number images"
            notes.append(f"{where}{numbering}; --labels folder makes classes of them")
            return None
    deeper = {parts[:-1] for parts in paths if len(parts) > 2 and not HOLDS_IMAGES.fullmatch(parts[1])}
    if deeper:
        notes.append(f"{where}folders inside those of classes make no difference, such as {'/'.join(min(deeper))}/")
    return given


def _refuse_holders(folders: list[str], where: str) -> None:
    """Refuse folders such as images/ beside masks/: neither is a class."""
    holder = next((folder for folder in folders if HOLDS_IMAGES.fullmatch(folder)), None)
    if holder is not None and len(folders) > 1:
        other = next(folder for folder in folders if folder != holder)
        raise UserError(
            f"{where}{holder}/: holds images of no one class, and lies beside {other}/; prepare one of them, "
            "or make classes of them with --labels folder"
        )
