"""What went wrong in a sweep: every repeat, reference and proxy that has failed, and how often for which cause."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scrimp_platform.search.records import Preparation, Records, Repeat
from scrimp_platform.store import SweepFolder, WorkFolder

MAX_ROWS = 100
"""Failures that are listed one by one, and as many causes."""


@dataclass(frozen=True)
class RepeatFault:
    """The last failure of what was trained."""

    label: str
    folder: Path
    status: str
    attempts: int
    node: str
    cause: str


def faults(folder: SweepFolder, known: Records) -> list[RepeatFault]:
    """Return the failures, also those that a later attempt mended."""
    failures = []
    for work in [*known.preparations, *known.repeats]:
        if work.attempt > 1 or work.status == "failed":
            files = _files(folder, work)
            cause = _cause(files, work)
            failures.append(RepeatFault(files.label, files.path, work.status, work.attempt, work.node, cause))
    return failures


def causes(failures: list[RepeatFault]) -> list[tuple[str, int]]:
    """Return how often each cause occurs, the most frequent first."""
    return Counter(failure.cause or "not recorded" for failure in failures).most_common(MAX_ROWS)


def _files(folder: SweepFolder, work: Repeat | Preparation) -> WorkFolder:
    if isinstance(work, Preparation):
        return folder.preparation(work.name)
    return folder.repeat(work.trial, work.repeat)


def _cause(files: WorkFolder, work: Repeat | Preparation) -> str:
    """Return why it failed; if a later attempt completed it, the last line of the traceback."""
    if work.status in ("failed", "waiting") or not files.error.exists():
        return work.cause
    lines = files.error.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), work.cause)
