"""Lists of labels beside images: of Hugging Face's imagefolder, Kaggle, CelebA, Tiny ImageNet, EDM's dataset tool.

Not a reader of its own (it has no `recognises`); `images` uses it.
"""

import csv
import io
import json
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.data.tree import Tree

EDM_TOOL = "dataset.json"
TINY_IMAGENET = "val_annotations.txt"
IMAGENET = "LOC_val_solution.csv"
TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl")
NAMES = frozenset({EDM_TOOL, TINY_IMAGENET, IMAGENET, *TABLES})
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path", "image_id", "image_name", "id")
LABEL_COLUMNS = ("label", "class", "category", "target")
"""Names of the columns, in upper or lower case."""
COLUMNS = f"files ({', '.join(FILE_COLUMNS)}) and labels ({', '.join(LABEL_COLUMNS)})"
"""The same, for error messages."""


@dataclass(frozen=True)
class LabelTable:
    """A list of labels: the classes of images by their names."""

    file: str
    """Name of the list, for notes."""
    where: str
    """Location of the list, for error messages."""
    class_of: dict[str, str]
    """Class of each listed image."""

    def has_any(self, names: list[str]) -> bool:
        """Whether any of these images is listed."""
        return any(name in self.class_of for name in names)

    def require_exactly(self, names: list[str]) -> None:
        """Require that exactly these images are listed.

        Raises
        ------
        UserError
            If it does not.
        """
        images = set(names)
        unmatched = sorted(images ^ set(self.class_of))
        if unmatched:
            example = unmatched[0]
            problem = "has no label" if example in images else "is not there"
            raise UserError(
                f"{self.where}: {example} {problem}; {len(unmatched):,} labels do not match the images "
                "(--labels none leaves them out)"
            )


def find_table(tree: Tree, top: str, names: list[str], notes: list[str]) -> LabelTable | None:
    """Read the list of labels in the innermost folder common to these images, or in a folder above it up to `top`.

    Raises
    ------
    UserError
        If it is damaged, or it is ambiguous which images it lists.
    """
    innermost = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in names]))
    folders = [folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(PurePosixPath(top))]
    candidates = [folder / name for folder in folders for name in (EDM_TOOL, *TABLES, TINY_IMAGENET, IMAGENET)]
    existing = set(tree.names)
    for file in candidates:
        if str(file) not in existing:
            continue
        where = tree.where(str(file))
        data = tree.read(str(file))
        rows = _edm_rows(data, where) if file.name == EDM_TOOL else _table_rows(data, file.name, where)
        if rows is not None:
            return LabelTable(file.name, where, _match(rows, names, str(file.parent), where))
        if file.name != EDM_TOOL:
            notes.append(
                f"{file} is not used: it has no columns of {COLUMNS}; --labels {file} --label-column NAME uses another"
            )
    return None


def _edm_rows(data: bytes, where: str) -> list[tuple[str, str]] | None:
    """Return file and class of each image in EDM's `dataset.json`; None if it has no labels."""
    try:
        labels = json.loads(data)["labels"]
        pairs = None if labels is None else [(str(name), label) for name, label in labels]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{where}: not a list of labels as EDM's dataset tool writes it; fix it, or use --labels none"
        ) from None

    if pairs is None:
        return None
    for name, label in pairs:
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(
                f"{where}: {name}: its label {str(label)[:50]} is not a whole number; fix it, or use --labels none"
            )
    return [(name, str(label)) for name, label in pairs]


def read_table(path: str, names: list[str], column: str | None = None) -> LabelTable:
    """Read the list of labels that the user names; `column` names the one of the labels.

    Raises
    ------
    UserError
        If it cannot be read, has no labels, or it is ambiguous which images it lists.
    """
    where = f"--labels {path}"
    try:
        data = expand_home(path).read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    rows = _table_rows(data, Path(path).name, where, column)
    if rows is None and column:
        raise UserError(f"{where}: has no column {column}, or none of files ({', '.join(FILE_COLUMNS)})")
    if rows is None:
        raise UserError(f"{where}: has no columns of {COLUMNS}; --label-column NAME names another one of labels")
    return LabelTable(path, where, _match(rows, names, "", where))


def read_classes(path: str) -> frozenset[str]:
    """Read the classes that the user wants, the name of one a line.

    Raises
    ------
    UserError
        If the file cannot be read, or lists none.
    """
    where = f"--classes {path}"
    try:
        lines = expand_home(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text") from None
    names = frozenset(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"{where}: lists no class")
    return names


def _table_rows(data: bytes, name: str, where: str, column: str | None = None) -> list[tuple[str, str]] | None:
    """Return file and class of each row, from `column` or one of `LABEL_COLUMNS`; None without such columns."""
    try:
        text = data.decode("utf-8-sig")
        if name == TINY_IMAGENET:
            lines = [line.split("\t") for line in text.splitlines()]
            return [(fields[0], fields[1]) for fields in lines if len(fields) > 1]
        if name == IMAGENET:
            # `ILSVRC2012_val_00000001,n01751748 111 108 477 341`: an image without its ending, its class and boxes.
            lines = [line.split(",", 1) for line in text.splitlines()[1:]]
            return [(f"{fields[0]}.JPEG", fields[1].split()[0]) for fields in lines if len(fields) > 1]
    except (ValueError, IndexError):
        raise UserError(f"{where}: not a table of UTF-8 text; fix it, or use --labels none") from None

    label_columns = [column.lower()] if column else LABEL_COLUMNS
    rows = read_rows(data, name, where, FILE_COLUMNS, label_columns, hint="use --labels none")
    if rows is None:
        return None
    pairs = [(file, _class_name(value, f"{where}: {file}")) for file, value in rows]
    if column and {label for _, label in pairs} <= {"-1", "1"}:
        return [(file, column if label == "1" else f"not {column}") for file, label in pairs]  # CelebA's attributes
    return pairs


def read_rows(
    data: bytes, name: str, where: str, file_columns: Sequence[str], value_columns: Sequence[str], *, hint: str
) -> list[tuple[str, Any]] | None:
    """Return file and value of each row of a table, by the first columns of these names; None without such columns.

    Raises
    ------
    UserError
        If it is no table; the message ends in the `hint`.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.endswith(".jsonl"):
            table = _jsonl(text)
        elif text.split("\n", 1)[0].strip().isdigit():
            table = _celeba(text)
        else:
            table = _csv(text)
    except (ValueError, csv.Error, RecursionError):
        raise UserError(f"{where}: not a table of UTF-8 text; fix it, or {hint}") from None

    columns = {str(column).lower(): column for row in table for column in row}
    file_column = next((columns[column] for column in file_columns if column in columns), None)
    value_column = next((columns[column] for column in value_columns if column in columns), None)
    if file_column is None or value_column is None:
        return None
    return [(str(row.get(file_column)), row.get(value_column)) for row in table]


def _jsonl(text: str) -> list[Mapping[str, Any]]:
    """Read a table of one JSON object per line."""
    table = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in table):
        raise ValueError
    return table


def _csv(text: str) -> list[Mapping[str, Any]]:
    """Read a table with a header line. The separator is the one that is most frequent there."""
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    return list(csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True))


def _celeba(text: str) -> list[Mapping[str, Any]]:
    """Read CelebA's own form: the number of rows, the attributes, then in each line an image and 1 or -1 for each."""
    _, header, *lines = text.splitlines()
    columns = ["file", *header.split()]
    return [dict(zip(columns, line.split(), strict=True)) for line in lines if line.strip()]


def _class_name(value: Any, where: str) -> str:
    """Return the name of a class: a text or a whole number."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(
        f"{where}: the label {str(value)[:50]} is neither a text nor a whole number; fix it, or use --labels none"
    )


def _match(rows: list[tuple[str, str]], names: list[str], root: str, where: str) -> dict[str, str]:
    """Match rows with images, by paths below `root`, or by file names, or by these without endings.

    Returns the class of each image.
    """
    # Tables from Windows contain backslashes.
    by_path = [(str(PurePosixPath(root, file.replace("\\", "/"))), label) for file, label in rows]
    images = set(names)
    if any(path in images for path, _ in by_path):
        return _one_class_each(by_path, where)

    # Kaggle's tables often have no endings.
    by_file_name = [(PurePosixPath(name).name, name) for name in names]
    if not {file for file, _ in rows} & {file_name for file_name, _ in by_file_name}:
        by_file_name = [(PurePosixPath(name).stem, name) for name in names]

    image_of: dict[str, str] = {}
    for file_name, name in by_file_name:
        if file_name in image_of:
            raise UserError(f"{where}: {file_name} is the name of several images; give their paths")
        image_of[file_name] = name
    return _one_class_each([(image_of.get(file, file), label) for file, label in rows], where)


def _one_class_each(pairs: list[tuple[str, str]], where: str) -> dict[str, str]:
    class_of: dict[str, str] = {}
    for name, label in pairs:
        if class_of.setdefault(name, label) != label:
            raise UserError(f"{where}: {name} has two labels, {class_of[name]} and {label}")
    return class_of
