"""Work that grows with the sweep, done the less often the longer it takes."""

import time
from collections.abc import Callable

FREE = 0.05
"""Seconds that a piece of work may take every time."""
REST = 9.0
"""Seconds of rest for each further second: a tenth of the time goes into it."""


class Throttle:
    """Does a piece of work when called, unless the last time was long and not long ago."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self, work: Callable[[], object]) -> None:
        """Do it, if it is due."""
        began = time.monotonic()
        if began >= self._due:
            work()
            ended = time.monotonic()
            self._due = ended + REST * max(0.0, ended - began - FREE)
