"""Captions beside images: a `.txt` of an image's name, or a table that lists them, as in Hugging Face's imagefolder.

Not a reader of its own (it has no `recognises`); `images` uses it.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.labels import FILE_COLUMNS, read_rows
from scrimp_trainers.data.tree import Tree

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
COLUMNS = ("caption", "text")
"""Names of the column of captions, in upper or lower case."""
SUFFIX = ".txt"


@dataclass(frozen=True)
class Captions:
    """The captions that lie beside images."""

    of: dict[str, str]
    """Caption of each image that has one, by the image's name."""
    files: frozenset[str]
    """The files that they come from."""
    note: str
    """Says where they come from."""


def find(tree: Tree, names: list[str]) -> Captions | None:
    """Read the captions of these images: of text files beside them, or else of tables in their folders or above.

    Returns None if there are none. Text files of numbers alone, such as the boxes of a detector, are no captions.

    Raises
    ------
    UserError
        If a file is damaged, or an image has two captions.
    """
    existing = set(tree.names)
    beside = {name: str(PurePosixPath(name).with_suffix(SUFFIX)) for name in names}
    texts = {name: caption_of(tree.read(file), tree.where(file)) for name, file in beside.items() if file in existing}
    if any(letter.isalpha() for text in texts.values() for letter in text):
        return Captions(texts, frozenset(beside[name] for name in texts), f"captions from {SUFFIX} files")

    known = set(names)
    of: dict[str, str] = {}
    files: set[str] = set()
    for file in tree.names:
        if PurePosixPath(file).name in TABLES:
            pairs = [(name, caption) for name, caption in _rows(tree, file) if name in known]
            files |= {file} if pairs else set()
            _add(of, pairs, tree.where(file))
    if not of:
        return None
    return Captions(of, frozenset(files), f"captions from {', '.join(sorted({PurePosixPath(f).name for f in files}))}")


def caption_of(data: bytes, where: str) -> str:
    """Return the caption in a text file: all of its words, on one line; empty without any.

    Raises
    ------
    UserError
        If it is not UTF-8 text.
    """
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text; fix it, or use --captions none") from None


def describe(captions: list[str | None]) -> str:
    """Say how many captions there are, and how long they are."""
    known = [caption for caption in captions if caption]
    words = [len(caption.split()) for caption in known]
    different = len(Counter(known))
    length = f"of {min(words)} to {max(words)} words" if words else "and no words"
    return f"{len(known):,} captions, {different:,} different, {length}"


def _rows(tree: Tree, file: str) -> list[tuple[str, str]]:
    """Return the name and the caption of each image that a table lists; none without a column of captions."""
    where = tree.where(file)
    folder = PurePosixPath(file).parent
    rows = read_rows(tree.read(file), file, where, FILE_COLUMNS, COLUMNS, hint="use --captions none")
    pairs = [(str(folder / name.replace("\\", "/")), caption) for name, caption in rows or []]
    return [
        (name, " ".join(caption.split())) for name, caption in pairs if isinstance(caption, str) and caption.strip()
    ]


def _add(of: dict[str, str], pairs: list[tuple[str, str]], where: str) -> None:
    for name, caption in pairs:
        if of.setdefault(name, caption) != caption:
            raise UserError(f"{where}: {name} has two captions; keep one, or use --captions none")
