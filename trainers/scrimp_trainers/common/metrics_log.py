"""`metrics.jsonl`: one JSON row per tick and per rung, appended by one process while others may read it.

Each row carries a checksum as its last entry, `crc32`, which readers do not see.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord
from scrimp_trainers.common.files import write_atomic

EXTRACTOR = "extractor"
"""The entry of `scores` that names their feature extractor."""
SELECTED = "selected"
"""That which says of how many evaluations a model was chosen as the best; none of a last model."""


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """A row of `metrics.jsonl`: how training went since the row before and, at a rung, how good the model is.

    The file holds these fields in this order, except those that are None, and then the entries of `scores`.
    """

    kimg: float
    """Thousands of images seen."""
    images: int
    """Images seen."""
    step: int
    """Steps taken."""
    loss: float
    """Mean loss of the steps since the row before."""
    lr: float
    """Learning rate."""
    microbatch: int | None = None
    """Images that a device computes at a time, which depends on its memory; None in rows from before this was kept."""
    seconds: float
    """Time spent on training and scoring so far, over all attempts."""
    nonzero_fraction: float
    """Fraction of the network's parameters that no mask sets to zero; 1 without a mask."""
    train_flops: float
    """FLOPs of the training so far."""
    images_per_second: float
    """Speed of training since the row before."""
    rung: float | None = None
    """The rung in kimg at which the model was scored; None between rungs."""
    scores: dict[str, float | str] = field(default_factory=dict)
    """At a rung, scores and costs by name, among them words that say what the scores apply to, such as `reference`.

    Entries of the file that this version does not know are kept here, too.
    """

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> "MetricsRow":
        """Make a row of the entries that the file has for it.

        Raises
        ------
        DamagedRecord
            If one is missing that every row has.
        """
        names = {each.name for each in fields(cls)} - {"scores"}
        values = {name: value for name, value in entries.items() if name in names}
        scores = {name: value for name, value in entries.items() if name not in names}
        try:
            return cls(**values, scores=scores)
        except TypeError as error:
            raise DamagedRecord(f"damaged: not a row of metrics ({error})") from None

    def to_entries(self) -> dict[str, Any]:
        """Return its entries by name, in the file's order."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        del values["scores"]
        return values | self.scores

    def value(self, name: str) -> float:
        """Return a number by its name in the file, such as `seconds` or `fid`; NaN if there is none."""
        value = vars(self).get(name, self.scores.get(name))
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def extractor(self) -> str:
        """The feature extractor of the scores; empty if the model was not scored."""
        return str(self.scores.get(EXTRACTOR, ""))


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
            intact.append(MetricsRow.from_entries(checksums.unseal(text)))
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
    return json.dumps(checksums.seal(row.to_entries())) + "\n"
