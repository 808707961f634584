"""Ctrl-C and SIGTERM: both end a command, with the exit status that a shell expects of each."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

CHECK_INTERVAL_S = 0.1
"""How often a sleep checks for a signal."""

_requested: int | None = None


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM, so that code that cleans up after Ctrl-C also does after SIGTERM."""


def listen() -> None:
    """Raise `Terminated` for SIGTERM, as Python raises KeyboardInterrupt for Ctrl-C.

    Ray installs a handler of its own when it starts, which prints C++ stacks. Call this again after that.
    """
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """Handle these signals with a function inside the block; outside Python's main thread signals are left alone."""
    before = {number: signal.signal(number, handler) for number in numbers if _in_main_thread()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Leave neither handlers of ours nor a noted signal behind, in a process that goes on after a sweep."""
    global _requested
    numbers = (signal.SIGINT, signal.SIGTERM) if _in_main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        _requested = None
        for number, handler in before.items():
            if handler is not None:  # none: it was not set from Python
                signal.signal(number, handler)


def exit_status(error: BaseException) -> int:
    """Return 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def deferred(notice: Callable[[], object]) -> Iterator[None]:
    """Record the first Ctrl-C or SIGTERM, for `requested`, and call `notice`; the second one raises at once."""
    global _requested

    def record(number: int, _frame: Any) -> None:
        global _requested
        _requested = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        listen()
        notice()

    _requested = None
    with handled(record, signal.SIGINT, signal.SIGTERM):
        yield


def requested() -> int | None:
    """Return the signal that was recorded; none if there was none."""
    return _requested


def raise_if_requested() -> None:
    """Raise the exception of the signal that was recorded, if there was one.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C.
    Terminated
        After SIGTERM.
    """
    if _requested is not None:
        raise Terminated if _requested == signal.SIGTERM else KeyboardInterrupt


def sleep(seconds: float) -> None:
    """Sleep, unless a signal is recorded before or meanwhile: that is raised."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        raise_if_requested()
        time.sleep(min(left, CHECK_INTERVAL_S))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(*_: Any) -> None:
    raise Terminated
