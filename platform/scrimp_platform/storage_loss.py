"""What happens when the storage is removed, unmounted or no longer answers: one error message, no process left.

The same for a folder that has the name of one of the sweep's files.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError

LOST_ERRNOS = (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENODEV)


class StorageLost(Exception):
    """A sweep's folder is no longer there. The message is one line."""


def require_storage(file: Path) -> None:
    """Fail if a file that existed is missing: writing would create the folder again, below an unmounted mount point.

    Raises
    ------
    OSError
        If the file is missing.
    """
    file.stat()


@contextlib.contextmanager
def explained(folder: SweepFolder) -> Iterator[None]:
    """Replace any exception by one line if its cause is that a sweep's folder is no longer there.

    Raises
    ------
    StorageLost
        If that is the cause.
    UserError
        If a folder has the name of one of the sweep's files.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise UserError(f"{error.filename2 or error.filename}: a folder, where a file belongs; move it away") from error
    except Exception as error:
        cause = _cause(folder, error)
        if not cause:
            raise
        _remove_leftovers(folder)
        line = f"the storage is gone: {folder.path}: {cause}; once it is back, the same command resumes"
        raise StorageLost(line) from error


def _remove_leftovers(folder: SweepFolder) -> None:
    """Remove what Ray has created again in place of the folder."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.ray, ignore_errors=True)
        folder.path.rmdir()
        folder.path.parent.rmdir()


def _cause(folder: SweepFolder, error: Exception) -> str:
    """Return why the folder cannot be used; empty if it can."""
    if isinstance(error, OSError) and error.errno in LOST_ERRNOS:
        return str(error.strerror)
    try:
        folder.description.stat()
    except OSError as missing:
        return str(missing.strerror)
    return ""
