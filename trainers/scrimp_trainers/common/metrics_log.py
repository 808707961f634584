"""`metrics.jsonl`: one JSON row per tick and per rung, appended by one process while others may read it.

Each row carries a checksum as its last entry, `crc32`, which readers do not see.
"""

import json
import os
from pathlib import Path
from typing import Any

from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord
from scrimp_trainers.common.files import write_atomic

MetricsRow = dict[str, Any]
"""Numbers by name, and a few words that say what the scores apply to."""


def scan_rows(path: Path) -> tuple[list[MetricsRow], str]:
    """Read a file, which may not exist yet.

    Returns
    -------
    tuple
        The intact rows, and a message that names the damaged lines, empty if there are none. A last line that a kill
        cut short is neither: its writer repeats it.
    """
    if not path.exists():
        return [], ""

    intact: list[MetricsRow] = []
    damaged: list[str] = []
    complete_lines = path.read_bytes().split(b"\n")[:-1]
    for number, text in enumerate(complete_lines, 1):
        try:
            intact.append(checksums.unseal(text))
        except DamagedRecord:
            damaged.append(str(number))

    message = f"{path}: damaged in line {', '.join(damaged)}" if damaged else ""
    return intact, message


def read_rows(path: Path) -> list[MetricsRow]:
    """Return the intact rows of a file; `scan_rows` also reports damaged ones."""
    rows, _ = scan_rows(path)
    return rows


def append_row(path: Path, row: MetricsRow) -> None:
    """Append a row and wait until it is on disk."""
    with path.open("a") as file:
        file.write(row_text(row))
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, rows: list[MetricsRow]) -> None:
    """Replace the whole file atomically."""
    write_atomic(path, "".join(map(row_text, rows)))


def row_text(row: MetricsRow) -> str:
    """Return a row as it stands in the file."""
    return json.dumps(checksums.seal(row)) + "\n"
