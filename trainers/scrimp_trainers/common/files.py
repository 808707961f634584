"""Files that are there whole or not at all, and how to tell that a disk has no room for them.

Who may read them is the umask's business, for all files alike: nothing here, and nothing that is written with it, is
opened to others or closed to them by a mode of its own.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from scrimp_trainers.common.errors import DiskFull, UserError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give an empty file aside to fill, which takes `path`'s place at the end, unless something is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # mkstemp's mode would ignore the umask
    mode = stat.S_IMODE(aside.stat().st_mode)
    try:
        yield aside
        aside.chmod(mode)  # safetensors puts a file of mode 0600 there
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only disk
            aside.unlink(missing_ok=True)
        raise


def match_folder_mode(file: Path) -> None:
    """Open a file to those to whom its new folder is open: safetensors writes with mode 0600, whatever the umask."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content at once; its folder is made if need be."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, a quota spent, or a file system read-only."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors says it in its text alone
    return told is not None and int(told[1]) in DISK_FULL_ERRNOS


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make this file; the others wait. In a folder that cannot be written all go on."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
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
        kind = DiskFull if is_disk_full(error) else UserError
        raise kind(f"{out}: cannot be made ({error.strerror})") from None
    try:
        _claim(lock, part, out)
        yield part
        os.fsync(lock)
        part.rename(out)
        with contextlib.suppress(OSError):  # some network file systems do not sync folders
            _sync(out.parent)
    except BaseException as error:
        if not isinstance(error, _TakenError):
            shutil.rmtree(part, ignore_errors=True)
            for folder in new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if is_disk_full(error):
            raise DiskFull(f"{out}: the disk is full or read-only; make room there or choose another place") from error
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


@contextlib.contextmanager
def explain_disk_full(out: Path, needed: int) -> Iterator[None]:
    """Say how much was needed when the disk is full.

    Raises
    ------
    NoRoom
        If the disk at `out` is full.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; about {max(1, needed >> 20):,} MiB are needed there") from None
