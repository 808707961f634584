"""Quick, Draw!'s files: a drawing a line as JSON, `.ndjson` plain or gzipped, simplified or raw.

A stroke is [xs, ys], or raw [xs, ys, times]; times are not used. Each word is a class.
"""

import bisect
import gzip
import itertools
import json
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.drawing import Drawing
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import DAMAGED, Tree, refuse_bomb

SUFFIXES = (".ndjson", ".ndjson.gz")
WORD = re.compile(rb'"word"\s*:\s*("(?:[^"\\]|\\.)*")')
NOT_RECOGNISED = re.compile(rb'"recognized"\s*:\s*false')


def recognises(tree: Tree) -> bool:
    """Whether there are files with such an ending."""
    return any(name.endswith(SUFFIXES) for name in tree.names)


def read(tree: Tree) -> Source:
    """Find where each drawing begins, and its word; drawings themselves are read one by one.

    Raises
    ------
    UserError
        If a file is damaged, or some drawings have a word and others none.
    """
    names = [name for name in tree.names if name.endswith(SUFFIXES)]
    opened = [_Lines(tree, name) for name in names]
    first = list(itertools.accumulate((len(lines.starts) for lines in opened), initial=0))
    words = [word for lines in opened for word in lines.words]
    if None in words and len(set(words)) > 1:
        raise UserError(f"{tree.path}: drawing {words.index(None)} has no word, but others have one")

    def place(number: int) -> tuple[_Lines, int]:
        file = bisect.bisect_right(first, number) - 1
        return opened[file], number - first[file]

    def load(number: int) -> Drawing:
        lines, line = place(number)
        return drawing(lines.line(line), lines.where(line))

    def where(number: int) -> str:
        lines, line = place(number)
        return lines.where(line)

    labels, classes = None, None
    known = [word for word in words if word is not None]
    if known:
        values, numbers = np.unique(np.array(known), return_inverse=True)
        labels, classes = numbers.astype(np.int64), [str(value) for value in values]
    unrecognised = sum(lines.unrecognised for lines in opened)
    notes = [f"{unrecognised:,} drawings were not recognised in the game, and are used"] if unrecognised else []
    return Source("quickdraw", len(words), load, where, labels, classes, notes=notes, modality="strokes")


def drawing(line: bytes, where: str) -> Drawing:
    """Return the strokes of one line.

    Raises
    ------
    UserError
        If it is not JSON, or has no list of strokes.
    """
    try:
        strokes = json.loads(line)["drawing"]
        return [np.stack([np.asarray(axis, dtype=np.float64) for axis in stroke[:2]], axis=1) for stroke in strokes]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(f"{where}: not a drawing of Quick, Draw! ({type(error).__name__}: {error})") from None


class _Lines:
    """The lines of one file, of which each can be read by itself."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.name = tree.where(name)
        self._tree = tree
        self._member = name
        self._plain = _unpacked(tree, name) if name.endswith(".gz") else None
        self.starts: list[int] = []
        self.words: list[str | None] = []
        self.unrecognised = 0

        try:
            with self._open() as file:
                position = 0
                for line in file:
                    if line.strip():
                        self._add(line, position)
                    position += len(line)
        except DAMAGED as error:
            raise UserError(f"{self.name}: cannot be read ({error})") from None

    def line(self, number: int) -> bytes:
        """Return a line."""
        with self._open() as file:
            file.seek(self.starts[number])
            return file.readline()

    def where(self, number: int) -> str:
        """Name a drawing for an error message."""
        return f"{self.name}, drawing {number}"

    def _open(self) -> BinaryIO:
        return self._tree.open(self._member) if self._plain is None else self._plain.open("rb")

    def _add(self, line: bytes, position: int) -> None:
        word = WORD.search(line)
        try:
            self.words.append(None if word is None else str(json.loads(word[1])))
        except ValueError:
            raise UserError(f"{self.where(len(self.starts))}: its word is not text") from None
        self.starts.append(position)
        self.unrecognised += bool(NOT_RECOGNISED.search(line))


def _unpacked(tree: Tree, name: str) -> Path:
    """Unpack a gzipped file into the scratch folder: in a packed one no line can be read by itself."""
    with tempfile.NamedTemporaryFile(dir=tree.scratch, delete=False) as target:
        size = 0
        try:
            with tree.open(name) as packed:
                packed_size = packed.seek(0, 2)
            with tree.open(name) as packed, gzip.GzipFile(fileobj=packed) as source:
                while block := source.read(2**20):
                    size += len(block)
                    refuse_bomb(size, packed_size, tree.where(name))
                    target.write(block)
        except DAMAGED as error:
            raise UserError(f"{tree.where(name)}: cut short or damaged ({error})") from None
    return Path(target.name)
