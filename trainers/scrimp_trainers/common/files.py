"""Atomic files and folders, which exist completely or not at all; file locks; and errors of full disks.

The umask alone decides who may read files: nothing here, and nothing written with it, sets permissions of its own.
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
from typing import IO

from scrimp_trainers.common.errors import DiskFull, UserError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full, a quota that is used up, a read-only file system."""
CANNOT_SYNC_ERRNOS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
"""Of folders that do not sync: some network file systems refuse it, and one that is not readable cannot be opened."""


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gives, with the home folder in place of a leading `~` or `~user`.

    Raises
    ------
    UserError
        If there is no user of this name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = os.fspath(path)
        raise UserError(f"{name}: there is no user of this name; write ./{name} if it is a file") from None


def expand_name(name: str) -> str:
    """Return what a user gives that may be a path or a name of something else, such as `digits` or a hub id."""
    return str(expand_home(name)) if name.startswith("~") else name


def publish(part: Path, target: Path) -> None:
    """Give a finished file or folder its final name, once it is on disk, and wait until the name is, too.

    A file replaces one of that name; a folder does not, see `replace_folder`. No other code of Scrimp renames what
    lasts: after a kill or a power cut a name stands for what was there before or for all that was written.
    """
    sync_to_disk(part)
    part.rename(target)  # on POSIX systems this replaces a file
    try:
        sync_to_disk(target.parent)
    except OSError as error:
        if error.errno not in CANNOT_SYNC_ERRNOS:
            raise


def replace_folder(new: Path, folder: Path, old: Path) -> None:
    """Publish the folder `new` as `folder`; keep what it replaces as `old`, in place of what that was.

    A kill at any moment leaves at least one of the two whole.
    """
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    publish(new, folder)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file to fill, which replaces `path` at the end unless an exception is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # mkstemp's mode would ignore the umask
    mode = stat.S_IMODE(temporary.stat().st_mode)

    try:
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file by one of mode 0600
        publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only disk
            temporary.unlink(missing_ok=True)
        raise


def match_folder_mode(file: Path) -> None:
    """Give a file the permissions of its folder: safetensors writes with mode 0600, whatever the umask."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content atomically. Its folder is created if needed."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def read_regular(path: Path) -> bytes:
    """Return the content of a file. A pipe is refused, as reading one would wait for its writer.

    Raises
    ------
    OSError
        If it is no regular file, or cannot be read.
    """

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full, a quota used up, or a file system read-only."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS

    number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has it in the message only
    return number is not None and int(number[1]) in DISK_FULL_ERRNOS


def try_lock(file: int | IO[str], shared: bool = False) -> bool:
    """Lock an open file unless another process has; return whether that worked.

    The lock lasts until the file is closed or the process ends. Several processes may have a `shared` one together.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[str], shared: bool = False) -> None:
    """Lock an open file as `try_lock` does, once no other process has."""
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Let one process at a time make this file; the others wait. Yield whether no other process can be at it.

    Without write access to the folder, or on a file system without locks, nobody waits.
    """
    is_locked = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            wait_for_lock(file)
            is_locked = True
        yield is_locked


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder `OUT.part` to fill, which is renamed to `out` at the end; on any exception it is removed.

    What a killed process left there is removed by the next one. A running process keeps the folder locked.

    Raises
    ------
    UserError
        If `out` exists, another process is making it, or it cannot be created.
    """
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    new_parents = [folder for folder in out.parents if not folder.exists()]
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else UserError
        raise kind(f"{out}: cannot be created ({error.strerror})") from None

    try:
        _claim(lock, part, out)
        yield part
        publish(part, out)
    except BaseException as error:
        if not isinstance(error, _InUseError):
            shutil.rmtree(part, ignore_errors=True)
            for folder in new_parents:
                with contextlib.suppress(OSError):
                    folder.rmdir()

        if is_disk_full(error):
            raise DiskFull(f"{out}: the disk is full or read-only; make room there or choose another place") from error
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
        raise
    finally:
        os.close(lock)


class _InUseError(UserError):
    """Another process works on the folder, so this one must not remove it."""


def _claim(lock: int, part: Path, out: Path) -> None:
    """Lock the folder `part` and empty it."""
    is_free = True
    with contextlib.suppress(OSError):  # a network file system without locks
        is_free = try_lock(lock)
    if not is_free:
        raise _InUseError(f"{out}: another process is making it now")

    locked_inode = os.fstat(lock).st_ino
    if not part.exists() or part.stat().st_ino != locked_inode:  # its maker has renamed it in the meantime
        raise _InUseError(f"{out}: another process has just made it")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; choose another name or remove it")

    for entry in part.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or what was created and renamed in a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_disk_full(out: Path, needed: int) -> Iterator[None]:
    """Raise an error that says how many bytes are `needed` if the block finds the disk full.

    Raises
    ------
    DiskFull
        If the disk at `out` is full.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        needed_mib = max(1, needed >> 20)
        raise DiskFull(f"{out}: the disk is full; about {needed_mib:,} MiB are needed there") from None
