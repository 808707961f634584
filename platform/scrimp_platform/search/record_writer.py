"""Writes a sweep's records and recipes. It waits while the disk is full, and raises an error if the storage is gone."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scrimp_platform import storage_loss, store
from scrimp_platform.search import budget_changes
from scrimp_platform.search.records import Preparation, Repeat, Trial
from scrimp_platform.store import SweepFolder, WorkFolder, write_atomic
from scrimp_spaces.space import Space


class RecordWriter:
    """Writes to the folder of one sweep.

    Parameters
    ----------
    folder : SweepFolder
        The sweep's files.
    say : Callable
        Called with a line when the disk is full, and when it no longer is.
    """

    def __init__(self, folder: SweepFolder, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def files(self, work: Repeat | Preparation) -> WorkFolder:
        """Return the files of a repeat or a preparation."""
        if isinstance(work, Preparation):
            return self._folder.preparation(work.name)
        return self._folder.repeat(work.trial, work.repeat)

    def save(self, work: Repeat | Preparation) -> None:
        """Write the record of a repeat or a preparation."""
        self._write(partial(work.save, self.files(work)))

    def save_trial(self, trial: Trial) -> None:
        """Write the record of a trial."""
        self._write(partial(trial.save, self._folder))

    def write_recipe(self, work: Repeat | Preparation, recipe: str) -> None:
        """Write the recipe, as YAML, that a repeat or a preparation trains."""
        self._write(partial(write_atomic, self.files(work).recipe, recipe))

    def write_record(self, file: Path, record: Mapping[str, Any]) -> None:
        """Write another record of the sweep."""
        self._write(partial(store.write_json, file, record))

    def save_limit(self, field: str, before: Space, after: Space) -> None:
        """Write that a limit of the budget has changed."""
        self._write(partial(budget_changes.save, self._folder, field, before, after))

    def _write(self, write: Callable[[], None]) -> None:
        def write_if_storage_exists() -> None:
            storage_loss.require_storage(self._folder.journal)
            write()

        store.retry_when_disk_full(write_if_storage_exists, self._say)
