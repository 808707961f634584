"""Lists of labels beside images: those of Hugging Face's imagefolder, of Tiny ImageNet, of EDM's dataset tool.

Not a reader of its own (it offers no `recognises`): `images` asks it.
"""

import csv
import io
import json
import os.path
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from scrimp_trainers.data.tree import Tree
from scrimp_trainers.errors import UserError

EDM = "dataset.json"
TINY_IMAGENET = "val_annotations.txt"
TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl")
NAMES = frozenset({EDM, TINY_IMAGENET, *TABLES})
FILES = ("file_name", "filename", "file", "image", "path")
LABELS = ("label", "class", "category", "target")
"""Names of the columns, in any case."""


def edm(tree: Tree, above: str, names: list[str]) -> dict[str, str] | None:
    """Read the labels of EDM's `dataset.json`, which lies with all images or above them; none if there are none.

    Raises
    ------
    UserError
        If it is not as EDM's tool writes it, or does not match the images.
    """
    folders = [PurePosixPath(above), *PurePosixPath(above).parents]
    root = next((folder for folder in folders if str(folder / EDM) in tree.names), None)
    if root is None:
        return None
    file = str(root / EDM)
    where = tree.where(file)
    try:
        listed = json.loads(tree.read(file))["labels"]
        pairs = None if listed is None else [(str(name), label) for name, label in listed]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{where}: not a list of labels as EDM's dataset tool writes it; remove or mend it") from None
    if pairs is None:
        return None
    for name, label in pairs:
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(f"{where}: {name}: its label {str(label)[:50]} is no whole number")
    given = _unique(((str(root / name), str(label)) for name, label in pairs), where)
    return _matched(given, names, where)


def beside(tree: Tree, top: str, names: list[str], notes: list[str]) -> tuple[str, dict[str, str]] | None:
    """Read the list of labels that lies with all these images, or in a folder above them up to `top`.

    Return its name, and the class of each image.

    Raises
    ------
    UserError
        If it does not match the images.
    """
    deepest = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in names]))
    folders = [folder for folder in (deepest, *deepest.parents) if folder.is_relative_to(PurePosixPath(top))]
    for file in (folder / name for folder in folders for name in (*TABLES, TINY_IMAGENET)):
        if str(file) not in tree.names:
            continue
        where = tree.where(str(file))
        rows = _rows(tree.read(str(file)), file.name, where)
        if rows is None:
            notes.append(f"{file} is not used: it has no columns of files and labels ({', '.join(LABELS)})")
            continue
        return str(file), _assigned(rows, names, str(file.parent), where)
    return None


def from_file(path: str, names: list[str], root: str) -> dict[str, str]:
    """Read the list of labels that the user names.

    Raises
    ------
    UserError
        If it cannot be read, has no labels, or does not match the images.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"--labels {path}: cannot be read ({error.strerror})") from None
    rows = _rows(data, Path(path).name, f"--labels {path}")
    if rows is None:
        raise UserError(
            f"--labels {path}: has no columns of files ({', '.join(FILES)}) and labels ({', '.join(LABELS)})"
        )
    return _assigned(rows, names, root, f"--labels {path}")


def _rows(data: bytes, name: str, where: str) -> list[tuple[str, str]] | None:
    """Return file and class of each row; none if a table has no such columns."""
    try:
        text = data.decode("utf-8-sig")
        if name == TINY_IMAGENET:
            return [(fields[0], fields[1]) for line in text.splitlines() if len(fields := line.split("\t")) > 1]
        if name.endswith(".jsonl"):
            tables: list[Mapping[str, Any]] = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            tables = list(csv.DictReader(io.StringIO(text)))
        if not all(isinstance(row, dict) for row in tables):
            raise ValueError
    except (ValueError, csv.Error, RecursionError):
        raise UserError(f"{where}: not a table of UTF-8 text; mend it, or use --labels none") from None
    columns = {str(column).lower(): column for row in tables[:1] for column in row}
    file = next((columns[column] for column in FILES if column in columns), None)
    label = next((columns[column] for column in LABELS if column in columns), None)
    if file is None or label is None:
        return None
    return [(str(row.get(file)), _class(row.get(label), where)) for row in tables]


def _class(value: Any, where: str) -> str:
    """Return the name of a class: a text, or a whole number."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: the label {str(value)[:50]} is neither a text nor a whole number")


def _assigned(rows: list[tuple[str, str]], names: list[str], root: str, where: str) -> dict[str, str]:
    """Match the rows with the images below `root`: by their path there, or else by their names alone."""
    paths = {str(PurePosixPath(root, file)) for file, _ in rows}
    if paths & set(names):
        return _matched(_unique(((str(PurePosixPath(root, file)), label) for file, label in rows), where), names, where)
    by_name: dict[str, str] = {}
    for name in names:
        base = PurePosixPath(name).name
        if base in by_name:
            raise UserError(f"{where}: {base} is the name of several images; give their paths")
        by_name[base] = name
    given = _unique(((by_name.get(file, file), label) for file, label in rows), where)
    return _matched(given, names, where)


def _unique(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, label in pairs:
        if given.setdefault(name, label) != label:
            raise UserError(f"{where}: {name} has two labels, {given[name]} and {label}")
    return given


def _matched(given: dict[str, str], names: list[str], where: str) -> dict[str, str]:
    odd = sorted(set(names) ^ set(given))
    if odd:
        problem = "has no label" if odd[0] in names else "is not there"
        raise UserError(
            f"{where}: {odd[0]} {problem}; {len(odd):,} labels do not match the images (--labels none leaves them out)"
        )
    return given
