"""Trials in a row that fail with the same error: then their recipes are not the cause, and the sweep ends."""

import re

from scrimp_platform.search.records import Repeat
from scrimp_trainers.common.errors import Diverged

MAX_SAME_FAILURES = 3
"""Trials in a row that fail for good with the same cause before the sweep ends."""


class SameFailures:
    """The trials in a row that failed for good with the same error, in this run of the sweep.

    Numbers in an error do not count: paths have the trial's, and what fits in memory depends on the recipe.
    """

    def __init__(self) -> None:
        self._causes: dict[int, str] = {}

    def clear(self) -> None:
        """End the row: something was trained."""
        self._causes.clear()

    def count(self, repeat: Repeat) -> None:
        """Take account of how a repeat has ended.

        A training that diverges fails because of its recipe: it neither counts nor ends the row.
        """
        if repeat.status == "stopped" or repeat.cause.startswith(Diverged.__name__):
            return

        has_failed = repeat.status == "failed"
        kinds = {_without_numbers(cause) for cause in self._causes.values()}
        if not has_failed or kinds - {_without_numbers(repeat.cause)}:
            self.clear()
        if has_failed:
            self._causes[repeat.trial] = repeat.cause

    @property
    def too_many(self) -> bool:
        """Whether the sweep is to end."""
        return len(self._causes) >= MAX_SAME_FAILURES

    def text(self) -> str:
        """Return the number of trials and their error, for a message."""
        cause = next(iter(self._causes.values()))
        return f"{len(self._causes)} trials in a row failed with the same error ({cause})"


def _without_numbers(cause: str) -> str:
    return re.sub(r"\d+", "N", cause)
