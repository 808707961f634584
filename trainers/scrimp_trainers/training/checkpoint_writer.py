"""Write checkpoints in a thread while training goes on, the less often the more they cost."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scrimp_trainers.common import heartbeat
from scrimp_trainers.training import checkpoint
from scrimp_trainers.training.checkpoint import Content
from scrimp_trainers.training.state import State

COST_FACTOR = 50
"""From one checkpoint to the next it takes at least this many times what one costs: ten trainings that write to the
same storage keep it busy for a fifth of the time."""


class CheckpointWriter:
    """Writes the checkpoints of one training, one at a time.

    The training waits while the state is copied to main memory, and if the checkpoint before is not on disk yet. An
    error in the thread, such as that of a full disk, is raised in the training by the next call of `due`, `begin` or
    `wait`. In a process group only rank 0 writes, and nothing on the others depends on when: only it asks what is due.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._started = time.monotonic()  # when the last checkpoint was begun
        self._cost = 0.0  # seconds from then until it was on disk

    def due(self, seconds: float) -> bool:
        """Whether `seconds` have passed since the last checkpoint was begun, and 50 times what it cost."""
        if self._writing and self._writing.done():
            self.wait()

        elapsed = time.monotonic() - self._started
        cost = elapsed if self._writing else self._cost
        return elapsed > max(seconds, COST_FACTOR * cost)

    def begin(
        self, folder: Path, state: State, identity: dict[str, Any], extra: dict[str, Any], previous: Path | None = None
    ) -> None:
        """Begin to replace the checkpoint in this folder; the parameters are those of `checkpoint`'s functions."""
        self.wait()
        self._started = time.monotonic()
        content = checkpoint.copy_content(state, identity, extra)
        self._writing = self._thread.submit(self._write, folder, content, previous)

    def wait(self) -> None:
        """Wait until the checkpoint that was begun last is on disk."""
        writing = self._writing
        self._writing = None
        if writing:
            heartbeat.beat()
            writing.result()

    def close(self) -> None:
        """End the thread once it has written what was begun. The error of that is lost: call `wait` to raise it."""
        heartbeat.beat()
        self._thread.shutdown()
        heartbeat.pause()

    def _write(self, folder: Path, content: Content, previous: Path | None) -> None:
        checkpoint.write(folder, content, previous)
        self._cost = time.monotonic() - self._started
