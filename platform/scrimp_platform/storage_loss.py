"""What happens when the storage is removed, unmounted or no longer answers: one line, and nothing is left running."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from scrimp_platform.store import SweepFolder

LOST = (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENODEV)


class StorageLost(Exception):
    """A sweep's folder is gone. The message is one line."""


def require(file: Path) -> None:
    """Refuse to go on without a file that has been there: the folder would be made anew on what lies below a mount.

    Raises
    ------
    OSError
        If it is not there.
    """
    file.stat()


@contextlib.contextmanager
def explained(folder: SweepFolder) -> Iterator[None]:
    """Turn whatever goes wrong because a sweep's folder is gone into one line.

    Raises
    ------
    StorageLost
        If that is why.
    """
    try:
        yield
    except Exception as error:
        if cause := _cause(folder, error):
            _clear(folder)
            line = f"the storage is gone: {folder.path}: {cause}; with it back, the same command resumes"
            raise StorageLost(line) from error
        raise


def _clear(folder: SweepFolder) -> None:
    """Remove what Ray has made anew where the folder was."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.ray, ignore_errors=True)
        folder.path.rmdir()
        folder.path.parent.rmdir()


def _cause(folder: SweepFolder, error: Exception) -> str:
    """Say why the folder cannot be used; empty if it can."""
    if isinstance(error, OSError) and error.errno in LOST:
        return str(error.strerror)
    try:
        folder.sweep.stat()
    except OSError as missing:
        return str(missing.strerror)
    return ""
