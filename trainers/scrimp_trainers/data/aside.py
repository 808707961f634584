"""A folder that comes into being whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scrimp_trainers.errors import NoRoom, UserError
from scrimp_trainers.files import no_room


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """Give a folder `OUT.part` to fill, and rename it to `out` at the end; on any exception it is removed.

    What a killed process left there is cleared away by the next one; a living one keeps it locked.

    Raises
    ------
    UserError
        If `out` exists, another process is making it, or it cannot be written.
    """
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    new = [folder for folder in out.parents if not folder.exists()]
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        kind = NoRoom if no_room(error) else UserError
        raise kind(f"{out}: cannot be made ({error.strerror})") from None
    try:
        _claim(lock, part, out)
        yield part
        os.fsync(lock)
        part.rename(out)
        with suppress(OSError):  # some network file systems do not sync folders
            _sync(out.parent)
    except BaseException as error:
        if not isinstance(error, _TakenError):
            shutil.rmtree(part, ignore_errors=True)
            for folder in new:
                with suppress(OSError):
                    folder.rmdir()
        if no_room(error):
            raise NoRoom(f"{out}: the disk is full or read-only; make room there or choose another place") from error
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
        raise
    finally:
        os.close(lock)


class _TakenError(UserError):
    """Another process is at work on the folder, so it is not ours to clear away."""


def _claim(lock: int, part: Path, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _TakenError(f"{out}: another process is making it just now") from None
    except OSError:  # a network file system without locks
        pass
    ours = os.fstat(lock)
    if not part.exists() or part.stat().st_ino != ours.st_ino:  # its maker finished while we waited for the lock
        raise _TakenError(f"{out}: another process has just made it")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; choose another name or remove it")
    for entry in part.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def room(out: Path, needed: int) -> Iterator[None]:
    """Say how much was needed when the disk is full.

    Raises
    ------
    NoRoom
        If the disk at `out` is full.
    """
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise NoRoom(f"{out}: the disk is full; about {max(1, needed >> 20):,} MiB are needed there") from None
