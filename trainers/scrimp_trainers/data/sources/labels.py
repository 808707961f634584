"""Lists of labels beside images: those of Hugging Face's imagefolder, of Tiny ImageNet, of EDM's dataset tool.

Not a reader of its own (it offers no `recognises`): `images` asks it.
"""

import csv
import io
import json
import os.path
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.tree import Tree

EDM = "dataset.json"
TINY_IMAGENET = "val_annotations.txt"
TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl")
NAMES = frozenset({EDM, TINY_IMAGENET, *TABLES})
FILES = ("file_name", "filename", "file", "image", "path")
LABELS = ("label", "class", "category", "target")
"""Names of the columns, in any case."""
COLUMNS = f"files ({', '.join(FILES)}) and labels ({', '.join(LABELS)})"


@dataclass(frozen=True)
class LabelTable:
    """The classes of images by their names, as a list says them."""

    file: str
    """The list, for a person."""
    where: str
    """Where it lies, for messages."""
    given: dict[str, str]
    """Class of each image that it lists."""

    def has_any(self, names: list[str]) -> bool:
        """Whether it lists any of these images."""
        return any(name in self.given for name in names)

    def check(self, names: list[str]) -> None:
        """Require that it lists these images and no others.

        Raises
        ------
        UserError
            If it does not.
        """
        there = set(names)
        odd = sorted(there ^ set(self.given))
        if odd:
            problem = "has no label" if odd[0] in there else "is not there"
            raise UserError(
                f"{self.where}: {odd[0]} {problem}; {len(odd):,} labels do not match the images "
                "(--labels none leaves them out)"
            )


def find_table(tree: Tree, top: str, names: list[str], notes: list[str]) -> LabelTable | None:
    """Read the list of labels that lies with all these images, or in a folder above them up to `top`.

    Raises
    ------
    UserError
        If it is damaged, or it is not plain which images it means.
    """
    deepest = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in names]))
    folders = [folder for folder in (deepest, *deepest.parents) if folder.is_relative_to(PurePosixPath(top))]
    there = set(tree.names)
    for file in (folder / name for folder in folders for name in (EDM, *TABLES, TINY_IMAGENET)):
        if str(file) not in there:
            continue
        where = tree.where(str(file))
        data = tree.read(str(file))
        rows = _edm_rows(data, where) if file.name == EDM else _rows(data, file.name, where)
        if rows is not None:
            return LabelTable(file.name, where, _assigned(rows, names, str(file.parent), where))
        if file.name != EDM:
            notes.append(f"{file} is not used: it has no columns of {COLUMNS}")
    return None


def _edm_rows(data: bytes, where: str) -> list[tuple[str, str]] | None:
    """Return file and class of each image of EDM's `dataset.json`; none if it has no labels."""
    try:
        listed = json.loads(data)["labels"]
        pairs = None if listed is None else [(str(name), label) for name, label in listed]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{where}: not a list of labels as EDM's dataset tool writes it; mend it, or use --labels none"
        ) from None
    for name, label in pairs or ():
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(
                f"{where}: {name}: its label {str(label)[:50]} is no whole number; mend it, or use --labels none"
            )
    return None if pairs is None else [(name, str(label)) for name, label in pairs]


def read_table(path: str, names: list[str]) -> LabelTable:
    """Read the list of labels that the user names.

    Raises
    ------
    UserError
        If it cannot be read, has no labels, or it is not plain which images it means.
    """
    where = f"--labels {path}"
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    rows = _rows(data, Path(path).name, where)
    if rows is None:
        raise UserError(f"{where}: has no columns of {COLUMNS}")
    return LabelTable(path, where, _assigned(rows, names, "", where))


def _rows(data: bytes, name: str, where: str) -> list[tuple[str, str]] | None:
    """Return file and class of each row; none if a table has no such columns."""
    try:
        text = data.decode("utf-8-sig")
        if name == TINY_IMAGENET:
            return [(fields[0], fields[1]) for line in text.splitlines() if len(fields := line.split("\t")) > 1]
        table = _jsonl(text) if name.endswith(".jsonl") else _csv(text)
    except (ValueError, csv.Error, RecursionError):
        raise UserError(f"{where}: not a table of UTF-8 text; mend it, or use --labels none") from None
    columns = {str(column).lower(): column for row in table for column in row}
    file = next((columns[column] for column in FILES if column in columns), None)
    label = next((columns[column] for column in LABELS if column in columns), None)
    if file is None or label is None:
        return None
    return [(str(row.get(file)), _class(row.get(label), f"{where}: {row.get(file)}")) for row in table]


def _jsonl(text: str) -> list[Mapping[str, Any]]:
    table = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in table):
        raise ValueError
    return table


def _csv(text: str) -> list[Mapping[str, Any]]:
    """Read a table with a head, whose columns are parted by whichever of these signs is most frequent there."""
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    return list(csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True))


def _class(value: Any, where: str) -> str:
    """Return the name of a class: a text, or a whole number."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(
        f"{where}: the label {str(value)[:50]} is neither a text nor a whole number; mend it, or use --labels none"
    )


def _assigned(rows: list[tuple[str, str]], names: list[str], root: str, where: str) -> dict[str, str]:
    """Match the rows with the images below `root`: by their path there, or else by their names alone."""
    # Tables from Windows have backslashes.
    pairs = [(str(PurePosixPath(root, file.replace("\\", "/"))), label) for file, label in rows]
    there = set(names)
    if any(path in there for path, _ in pairs):
        return _unique(pairs, where)
    by_name: dict[str, str] = {}
    for name in names:
        base = PurePosixPath(name).name
        if base in by_name:
            raise UserError(f"{where}: {base} is the name of several images; give their paths")
        by_name[base] = name
    return _unique(((by_name.get(file, file), label) for file, label in rows), where)


def _unique(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, label in pairs:
        if given.setdefault(name, label) != label:
            raise UserError(f"{where}: {name} has two labels, {given[name]} and {label}")
    return given
