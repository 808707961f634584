"""Files that are there whole or not at all, and how to tell that a disk has no room for them.

Who may read them is the umask's business, for all files alike: nothing here, and nothing that is written with it, is
opened to others or closed to them by a mode of its own.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
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


def share(file: Path) -> None:
    """Open a file to those to whom its new folder is open: safetensors writes with mode 0600, whatever the umask."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content at once; its folder is made if need be."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def no_room(error: BaseException) -> bool:
    """Whether an error says that a disk is full, a quota spent, or a file system read-only."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors says it in its text alone
    return told is not None and int(told[1]) in NO_ROOM
