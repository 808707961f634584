"""Ends a process that makes no progress, so that its repeat is tried again.

A device, a network or a disk that never answers raises nothing. The timer is Python's own in C, so that it also runs
out while the interpreter is held; it is one for the whole process, and so is this module's state.
"""

import faulthandler
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_watched: tuple[IO[str], float] | None = None
_started = -math.inf


@contextmanager
def watched(stacks: Path, patience: float) -> Iterator[None]:
    """End the process when `beat` has been called and then nothing for `patience` seconds.

    The stacks of its threads are appended to a file first; where nobody writes into it, it goes in the end.
    """
    global _watched
    with stacks.open("a") as file:
        _watched = file, patience
        try:
            yield
        finally:
            pause()
            _watched = None
            with suppress(FileNotFoundError):  # another rank, which ends at the same time, may remove it
                if not stacks.stat().st_size:
                    stacks.unlink()


def beat() -> None:
    """Start the time anew, where someone watches; cheap enough for every step."""
    global _started
    if _watched and time.monotonic() > _started + _watched[1] / 100:
        file, patience = _watched
        faulthandler.dump_traceback_later(patience, exit=True, file=file)
        _started = time.monotonic()


def pause() -> None:
    """Stop the time until the next `beat`: what follows may take as long as it likes."""
    global _started
    faulthandler.cancel_dump_traceback_later()
    _started = -math.inf


def timeout_message(stacks: Path) -> str:
    """Say that a process was ended, if the file tells so; empty otherwise."""
    try:
        text = stacks.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    told = re.search(r"^Timeout \((.*)\)!", text, re.MULTILINE)
    return f"no progress for {told[1]}, so its process was ended; where it hung is in {stacks}" if told else ""
