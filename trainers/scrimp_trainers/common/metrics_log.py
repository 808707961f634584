"""`metrics.jsonl`: one JSON line a tick and a rung, written by one process and read while it grows.

Each line carries a checksum as its last entry, `crc32`, which readers do not see.
"""

import json
import os
from pathlib import Path
from typing import Any

from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord
from scrimp_trainers.common.files import write_atomic

MetricsRow = dict[str, Any]
"""Flat numbers, and a few words that say what scores hold for."""


def scan_rows(path: Path) -> tuple[list[MetricsRow], str]:
    """Return the sound lines of a file, none if it is not there; and which are damaged, empty if none.

    A last line that a kill cut short is neither: its writer repeats it.
    """
    if not path.exists():
        return [], ""
    sound, damaged = [], []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            sound.append(checksums.unseal(text))
        except DamagedRecord:
            damaged.append(str(number))
    return sound, f"{path}: damaged in line {', '.join(damaged)}" if damaged else ""


def read_rows(path: Path) -> list[MetricsRow]:
    """Return the sound lines of a file; `scan` says which were damaged."""
    return scan_rows(path)[0]


def append_row(path: Path, line: MetricsRow) -> None:
    """Add a line; when this returns it is on disk."""
    with path.open("a") as file:
        file.write(row_text(line))
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, lines: list[MetricsRow]) -> None:
    """Replace the whole file at once."""
    write_atomic(path, "".join(map(row_text, lines)))


def row_text(line: MetricsRow) -> str:
    """Return a line as the file holds it."""
    return json.dumps(checksums.seal(line)) + "\n"
