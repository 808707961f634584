"""Work that grows with the sweep, done less often the longer it takes."""

import time
from collections.abc import Callable

FREE_WORK_S = 0.05
"""Time that a piece of work may take without being throttled."""
PAUSE_PER_WORK = 9.0
"""Seconds of pause for each further second of work: it takes a tenth of the time."""


class Throttle:
    """Does a piece of work when called, unless the last time took long and was not long ago."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self, work: Callable[[], object]) -> None:
        """Do the work if it is due."""
        began = time.monotonic()
        if began >= self._due:
            work()
            ended = time.monotonic()
            self._due = ended + PAUSE_PER_WORK * max(0.0, ended - began - FREE_WORK_S)
