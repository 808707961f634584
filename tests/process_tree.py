"""Who started whom."""

import contextlib
from pathlib import Path


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the start of every process that is not a zombie, by its number."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *rest = file.read_text().rpartition(")")[2].split()
            if state != "Z":
                found[int(file.parent.name)] = int(parent), rest[17]
    return found


def descendants(pid: int) -> dict[int, str]:
    """Return the start of every process below this one, by its number."""
    known, below = processes(), {pid}
    for _ in range(6):
        below |= {child for child, (parent, _) in known.items() if parent in below}
    return {child: known[child][1] for child in below - {pid} if child in known}


def title(pid: int) -> str:
    """Return a process's command line, or what it calls itself."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
