"""Files that are there whole or not at all, and how to tell that a disk has no room for them."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give an empty file aside to fill, which takes `path`'s place at the end, unless something is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only disk
            aside.unlink(missing_ok=True)
        raise


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
