"""A folder for temporary files that sockets fit into: the kernel takes paths of 107 bytes."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

LONGEST = 107
RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below it."""
PLACE = Path("/tmp")  # noqa: S108 -- what the folder that is made here is for
NAMES = ("RAY_TMPDIR", "TMPDIR")


def shorten(say: Callable[[str], object]) -> None:
    """Use a folder of our own below /tmp, for this process and its children, where the user's is too long."""
    given = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    long = [name for name, folder in given.items() if len(os.fsencode(Path(folder, RAY_SOCKET))) > LONGEST]
    if not long:
        return
    folder = own_folder()
    for name in long:
        os.environ[name] = str(folder)
    tempfile.tempdir = None  # it is asked for anew
    say(f"{' and '.join(long)}: too long for the paths of sockets, {folder} is used instead")


def own_folder() -> Path:
    """Return a short folder of this user's that nobody else can enter."""
    folder = PLACE / f"scrimp-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="scrimp-", dir=PLACE))
    return folder
