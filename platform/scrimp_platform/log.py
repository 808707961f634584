"""`sweep.log`: what the driver decided."""

import contextlib
import time
from pathlib import Path

from rich.markup import escape

from scrimp_platform.cli.terminal import console


class Log:
    """Prints a sweep's decisions with the time since its start, and appends them to its log file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()
        self._unwritten = ""

    def __call__(self, decision: str) -> None:
        """Print and append one decision."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(decision)}", soft_wrap=True)
        self._unwritten += f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {decision}\n"
        with contextlib.suppress(OSError):  # a full disk: written together with the next decision
            with self._path.open("a") as file:
                file.write(self._unwritten)
            self._unwritten = ""
