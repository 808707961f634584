"""The only reader and writer of YAML. It reads a plain, unambiguous subset and rejects the rest with a one-line error.

PyYAML takes the last of two equal keys, expands aliases without limit, and reads `1e-3` as text and `1:30` as 90. Here
a document is built from the parser's events instead: each key once, no aliases, no tags.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scrimp_trainers.common.errors import UserError

MAX_BYTES = 2**20
"""Size of a file."""
MAX_DEPTH = 20
"""Nesting of lists and mappings."""
MAX_NUMBER_LENGTH = 40
"""Characters of a number."""


def _spellings(*words: str) -> list[str]:
    """Return the three cases in which YAML accepts a word: true, True, TRUE."""
    return [spelling for word in words for spelling in (word, word.capitalize(), word.upper())]


WORDS: dict[str, bool | None] = {
    **dict.fromkeys(["", "~", *_spellings("null")], None),
    **dict.fromkeys(_spellings("true", "yes", "on"), True),
    **dict.fromkeys(_spellings("false", "no", "off"), False),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*_[0-9_.]*|[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?)")
NOT_A_NUMBER = (".nan", ".NaN", ".NAN")

NUMBERS = (INTEGER, FLOAT, INFINITE, ODD_NUMBER)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):
    """Writes what `parse_yaml` reads back: PyYAML leaves text such as `08` and `0E0` without quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_number = any(pattern.fullmatch(text) for pattern in NUMBERS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if is_number else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(tree: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: Path, where: str) -> Any:
    """Read a YAML file; `where` names it in error messages.

    Raises
    ------
    UserError
        If it cannot be read, or is not plain YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    return parse_yaml(data, where)


def parse_yaml(data: str | bytes, where: str) -> Any:
    """Parse a YAML document into dicts, lists and scalars.

    Raises
    ------
    UserError
        If it is not YAML, repeats a key, or uses aliases, tags or an unusual notation for numbers.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{where}: larger than {MAX_BYTES >> 20} MiB, too large for a space or recipe")
    text = _decoded(data, where) if isinstance(data, bytes) else data
    try:
        return _Document(text, where).build()
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: not YAML: {reason}") from None


def _decoded(data: bytes, where: str) -> str:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


class _Document:
    """One document, built from the events of PyYAML's parser."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=LOADER)

    def build(self) -> Any:
        result = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refusal(event, "a second document; put it into a file of its own")
                result = self._node(next(self._events), 0)
        return result

    def _node(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise self._refusal(event, f"*{event.anchor} repeats another part; write it out")
        if getattr(event, "tag", None):
            raise self._refusal(event, f"the tag {str(event.tag)[:50]}; write a plain value")  # pyright: ignore[reportAttributeAccessIssue]
        if depth > MAX_DEPTH:
            raise self._refusal(event, f"more than {MAX_DEPTH} lists and mappings inside each other")

        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        assert isinstance(event, yaml.ScalarEvent)  # noqa: S101 -- nothing else starts a node
        return self._scalar(event)

    def _sequence(self, depth: int) -> list[Any]:
        values = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._node(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self._node(event, depth + 1)
            if not isinstance(key, str):
                raise self._refusal(event, f"the key {key!r:.50} is not text; put it into quotes")
            if key == "<<":
                raise self._refusal(event, "<< merges another part; write it out")
            if key in lines:
                raise UserError(f"{self._where}: {key[:100]} appears twice, in lines {lines[key]} and {line}")

            lines[key] = line
            values[key] = self._node(next(self._events), depth + 1)
        return values

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if event.style:  # quoted, or a block of text
            return text
        if text in WORDS:
            return WORDS[text]

        # Numbers.
        if text in NOT_A_NUMBER:
            raise self._refusal(event, f"{text} is not a number")
        if INFINITE.fullmatch(text):
            return float("-inf") if text.startswith("-") else float("inf")
        if ODD_NUMBER.fullmatch(text):
            raise self._refusal(event, f"the number {text[:50]}; write it in decimal digits, or as text in quotes")
        if not FLOAT.fullmatch(text):
            return text
        if len(text) > MAX_NUMBER_LENGTH:
            raise self._refusal(event, f"a number of {len(text):,} digits")
        return int(text) if INTEGER.fullmatch(text) else float(text)

    def _refusal(self, event: yaml.Event, what: str) -> UserError:
        return UserError(f"{self._where}: line {event.start_mark.line + 1}: {what}")
