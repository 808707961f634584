"""`sweep.log`: the decisions of the driver."""

import contextlib
import time
from pathlib import Path

from rich.markup import escape

from scrimp_platform.cli.terminal import console


class Log:
    """Prints the decisions of a sweep with the time since its start, and appends them to its log file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()
        self._unwritten = ""

    def __call__(self, decision: str) -> None:
        """Print and append one decision."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(decision)}", soft_wrap=True)

        timestamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._unwritten += f"{timestamp} {decision}\n"
        # If the disk is full, the line is written together with the next decision.
        with contextlib.suppress(OSError):
            with self._path.open("a") as file:
                file.write(self._unwritten)
            self._unwritten = ""
