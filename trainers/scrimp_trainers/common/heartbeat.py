"""End a process that makes no progress, so that its repeat can be retried.

A device, network or disk that never answers raises no exception. The timer is `faulthandler`'s: written in C, it fires
even while another thread holds the interpreter lock. A process has one such timer, so this module's state is global.
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
"""The file for the stacks and the timeout in seconds; none while nothing is watched."""
_started = -math.inf
"""When the timer was last started."""


@contextmanager
def watched(stacks: Path, timeout: float) -> Iterator[None]:
    """End the process if, after a call of `beat`, `timeout` seconds pass without another one.

    The stacks of its threads are appended to a file first. The file is removed at the end if it is empty.
    """
    global _watched
    with stacks.open("a") as file:
        _watched = file, timeout
        try:
            yield
        finally:
            pause()
            _watched = None
            with suppress(FileNotFoundError):  # another rank that ends at the same time may have removed it
                if not stacks.stat().st_size:
                    stacks.unlink()


def beat() -> None:
    """Restart the timer of `watched`; without it do nothing. Cheap enough to call at every step."""
    global _started
    if _watched is None:
        return

    file, timeout = _watched
    if time.monotonic() > _started + timeout / 100:
        faulthandler.dump_traceback_later(timeout, exit=True, file=file)
        _started = time.monotonic()


def pause() -> None:
    """Stop the timer until the next `beat`: what follows may take any time."""
    global _started
    faulthandler.cancel_dump_traceback_later()
    _started = -math.inf


def timeout_message(stacks: Path) -> str:
    """Return a message if the file shows that a process was ended for lack of progress; empty otherwise."""
    try:
        text = stacks.read_text(errors="replace")
    except FileNotFoundError:
        return ""

    timeout = re.search(r"^Timeout \((.*)\)!", text, re.MULTILINE)
    if timeout is None:
        return ""
    return f"no progress for {timeout[1]}, so its process was ended; where it hung is in {stacks}"
