"""`metrics.jsonl`: one JSON line a tick and a rung, written by one process and read while it grows."""

import json
import os
from pathlib import Path
from typing import Any

from scrimp_trainers.files import write_atomic

Line = dict[str, Any]
"""Flat numbers, and a few words that say what scores hold for."""


def read(path: Path) -> list[Line]:
    """Return the lines of a file, none if it is not there; a last one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append(path: Path, line: Line) -> None:
    """Add a line; when this returns it is on disk."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rewrite(path: Path, lines: list[Line]) -> None:
    """Replace the whole file at once."""
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
