"""A folder for temporary files that sockets fit into: the kernel takes paths of 107 bytes."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

MAX_SOCKET_PATH = 107
RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below it."""
SHORT_PARENT = Path("/tmp")  # noqa: S108 -- the folder made in it belongs to one user
VARIABLES = ("RAY_TMPDIR", "TMPDIR")


def shorten(say: Callable[[str], object]) -> None:
    """Use a folder of our own below /tmp, for this process and its children, where the user's path is too long."""
    too_long = []
    for name in VARIABLES:
        folder = os.environ.get(name)
        if folder and len(os.fsencode(Path(folder, RAY_SOCKET))) > MAX_SOCKET_PATH:
            too_long.append(name)
    if not too_long:
        return

    folder = own_folder()
    for name in too_long:
        os.environ[name] = str(folder)
    tempfile.tempdir = None  # Python looks it up again
    say(f"{' and '.join(too_long)}: too long for the paths of sockets; using {folder} instead")


def own_folder() -> Path:
    """Return a short folder of this user's that nobody else can enter."""
    folder = SHORT_PARENT / f"scrimp-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="scrimp-", dir=SHORT_PARENT))
    return folder
