"""Tables with a column of image files: parquet, and Arrow files of Hugging Face's `datasets` (`save_to_disk`).

Hugging Face's features in the schema name the classes. Nothing is unpickled, and the package `datasets` is not needed.
"""

import bisect
import io
import itertools
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.pixels import decode_image
from scrimp_trainers.data.sources import folders
from scrimp_trainers.data.sources.captions import COLUMNS as CAPTION_COLUMNS
from scrimp_trainers.data.sources.images import is_image
from scrimp_trainers.data.sources.labels import LABEL_COLUMNS
from scrimp_trainers.data.sources.source import AS_FOUND, Layout, Source
from scrimp_trainers.data.tree import DAMAGED, Tree

if TYPE_CHECKING:  # other formats do without it
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")
SPLIT = re.compile(r"[a-z]+")
"""The word with which a file of a split begins, as in `train-00000-of-00004.parquet`."""
CACHE = re.compile(r"cache-.*\.arrow")
"""Files that `datasets` keeps beside its own, of results computed from them."""


@dataclass(frozen=True)
class _Table:
    """One file, mapped from disk: nothing of it is in memory until it is read."""

    where: str
    rows: "pa.Table"
    held_out: bool


@dataclass(frozen=True)
class _Columns:
    """The columns that are used."""

    image: str
    label: str | None
    caption: str | None


def recognises(tree: Tree) -> bool:
    """Whether there are such files, and no images, of which they could be a list."""
    return any(_is_table(name) for name in tree.names) and not any(is_image(name) for name in tree.names)


def read(tree: Tree, layout: Layout = AS_FOUND) -> Source:
    """List the rows of all files; images are decoded one by one.

    Files, or folders, named like a split that is not trained on hold the source's own test images.

    Raises
    ------
    UserError
        If a file is damaged, files have different columns, or it is ambiguous which column is meant.
    """
    tables = [_open(tree, name) for name in tree.names if _is_table(name)]
    tables.sort(key=lambda table: table.held_out)  # training images first
    schema = tables[0].rows.schema
    for table in tables:
        if table.rows.schema.names != schema.names:
            raise UserError(f"{table.where}: has other columns than {tables[0].where}; prepare one set at a time")

    columns = _find_columns(schema, tables[0].where, layout)
    labels, classes = _labels(tables, columns.label)
    counts = [table.rows.num_rows for table in tables]
    starts = list(itertools.accumulate(counts, initial=0))

    def place(i: int) -> tuple[_Table, int]:
        number = bisect.bisect_right(starts, i) - 1
        return tables[number], i - starts[number]

    def where(i: int) -> str:
        table, row = place(i)
        return f"{table.where}: row {row}"

    def load(i: int) -> Any:
        table, row = place(i)
        value = table.rows.column(columns.image)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise UserError(f"{where(i)}: holds no image, only the name of one")
        return decode_image(io.BytesIO(data), where(i))

    held_out = np.repeat([table.held_out for table in tables], counts)
    return Source(
        "arrow",
        count=starts[-1],
        load=load,
        where=where,
        labels=labels,
        classes=classes,
        captions=_captions(tables, columns.caption),
        test=held_out if held_out.any() and not held_out.all() else None,
        notes=_notes(tables, columns),
    )


def _is_table(name: str) -> bool:
    return name.endswith(SUFFIXES) and not CACHE.fullmatch(PurePosixPath(name).name)


def _open(tree: Tree, name: str) -> _Table:
    """Map a file; a parquet file, or one inside an archive, is unpacked to the scratch folder first."""
    import pyarrow as pa

    where = tree.where(name)
    try:
        if name.endswith(".parquet"):
            rows = _map(_unpacked_parquet(tree, name))
        elif tree.is_archive:
            rows = _map(_copied(tree, name))
        else:
            rows = _map(tree.file(name))
    except (pa.ArrowException, *DAMAGED) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: cannot be read ({reason})") from None
    return _Table(where, rows, _is_held_out(name))


def _map(file: Path) -> "pa.Table":
    """Map an Arrow file of either form, stream or file."""
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _unpacked_parquet(tree: Tree, name: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = tree.scratch / f"{secrets.token_hex(4)}.arrow"
    with tree.open(name) as packed:
        file = pq.ParquetFile(packed)
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=1000):
                writer.write_batch(batch)
    return target


def _copied(tree: Tree, name: str) -> Path:
    target = tree.scratch / f"{secrets.token_hex(4)}.arrow"
    with tree.open(name) as packed, target.open("wb") as file:
        while block := packed.read(2**20):
            file.write(block)
    return target


def _is_held_out(name: str) -> bool:
    """Whether a file belongs to a split that is not trained on, by its name or that of its folder."""
    path = PurePosixPath(name)
    word = SPLIT.match(path.name.lower())
    return folders.is_held_out(path.parent.name) or (word is not None and folders.is_held_out(word[0]))


def _find_columns(schema: "pa.Schema", where: str, layout: Layout) -> _Columns:
    """Return the columns of images, classes and captions.

    Raises
    ------
    UserError
        If there is not exactly one column of images, or it is ambiguous which one has the classes.
    """
    images = [field.name for field in schema if _holds_images(field.type)]
    if len(images) != 1:
        found = f"several columns of images ({', '.join(images)})" if images else "no column of images"
        raise UserError(f"{where}: has {found}; exactly one is needed")

    caption = next((name for name in schema.names if name.lower() in CAPTION_COLUMNS), None)
    return _Columns(images[0], _label_column(schema, where, layout), caption)


def _label_column(schema: "pa.Schema", where: str, layout: Layout) -> str | None:
    if layout.labels == "none":
        return None
    if layout.label_column is not None:
        if layout.label_column not in schema.names:
            raise UserError(f"{where}: has no column {layout.label_column}, only {', '.join(schema.names)}")
        return layout.label_column

    usual = [name for name in schema.names if name.lower() in LABEL_COLUMNS]
    candidates = usual or list(_class_names(schema))
    if len(candidates) > 1:
        raise UserError(f"{where}: {', '.join(candidates)} are columns of classes; choose one with --label-column")
    return candidates[0] if candidates else None


def _holds_images(kind: "pa.DataType") -> bool:
    """Whether a column holds files: bytes, or Hugging Face's pair of bytes and a path."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return the names of the classes of each column that Hugging Face's features call one of labels."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if name in schema.names and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _labels(tables: Sequence[_Table], column: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the number of each row's class, int64 [N], and the names of the classes.

    Raises
    ------
    UserError
        If a row has no class, or the column holds neither whole numbers nor texts.
    """
    if column is None:
        return None, None
    values = list(itertools.chain.from_iterable(table.rows.column(column).to_pylist() for table in tables))
    names = _class_names(tables[0].rows.schema).get(column)
    for value in values:
        # With names of classes, `datasets` writes -1 for a row without one.
        if not isinstance(value, int | str) or isinstance(value, bool) or (names and value == -1):
            raise UserError(
                f"{tables[0].where}: a row has no class: its {column} is {str(value)[:50]}; leave out files without "
                "labels, or use --labels none"
            )

    if names and all(isinstance(value, int) and value < len(names) for value in values):
        return np.array(values, dtype=np.int64), names
    classes = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    number_of = {value: number for number, value in enumerate(classes)}
    return np.array([number_of[value] for value in values], dtype=np.int64), [str(value) for value in classes]


def _captions(tables: Iterable[_Table], column: str | None) -> list[str | None] | None:
    if column is None:
        return None
    texts = itertools.chain.from_iterable(table.rows.column(column).to_pylist() for table in tables)
    return [" ".join(text.split()) if isinstance(text, str) and text.strip() else None for text in texts]


def _notes(tables: Sequence[_Table], columns: _Columns) -> list[str]:
    used = [f"images from the column {columns.image}"]
    if columns.label:
        used.append(f"classes from {columns.label}")
    if columns.caption:
        used.append(f"captions from {columns.caption}")
    notes = [", ".join(used)]
    held = sum(table.rows.num_rows for table in tables if table.held_out)
    if held:
        notes.append(f"held out: {held:,} images of files or folders named like test or validation")
    return notes
