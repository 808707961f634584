"""Where MLflow's server keeps its runs, and their backup.

That is a SQLite file in the server's folder, or, where the folder lies on a network file system, whose locks SQLite
cannot trust, on this machine's own disk. The file `database` in the folder may name another one, such as PostgreSQL.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from scrimp_platform.store import Storage
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import replacing

SETTING = "database"
FILE = "mlflow.db"
KEPT = 7  # backups, one a day
SQLITE = "sqlite:///"
EXAMPLES = f"`postgresql://user@host/mlflow` or `{SQLITE}/local/disk/{FILE}`"
MOUNTS = Path("/proc/mounts")
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "beegfs", "ceph", "glusterfs", "gpfs", "lustre"}


def address(folder: Path) -> str:
    """Return the address of the database, as MLflow wants it.

    Raises
    ------
    UserError
        If the folder's setting is not one that can be used, or no local disk is found for SQLite.
    """
    setting = folder / SETTING
    if setting.exists():
        return _checked(setting)
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    for place in (folder, home / "scrimp" / identity(folder)):
        if not on_network(place):
            return f"{SQLITE}{place / FILE}"
    raise UserError(
        f"MLflow: {folder} and {home} are both on the network, where SQLite loses data; "
        f"write the address of a database into {setting}: {EXAMPLES}"
    )


def prepare(folder: Path) -> str:
    """Return the database's address; a SQLite file that is gone comes back from its latest backup."""
    where = address(folder)
    if file := sqlite_file(where):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists() and (backups := _backups(folder)):
            # What sweeps have sent since then they have to send again.
            for sweep in Storage(folder.parent).sweeps():
                sweep.tracking.unlink(missing_ok=True)
            with replacing(file) as aside:
                shutil.copyfile(backups[-1], aside)
    return where


def back_up(folder: Path) -> None:
    """Copy the SQLite file as it is now, also while a server writes to it, as this day's backup; the latest 7 stay.

    Raises
    ------
    UserError
        If that fails; the earlier backups are whole then.
    """
    file = sqlite_file(address(folder))
    if file is None or not file.exists():
        return
    try:
        with replacing(folder / "backup" / f"mlflow-{time.strftime('%Y-%m-%d')}.db") as aside:
            # Nobody else knows the file aside, and a network file system may have no locks.
            unlocked = f"{aside.as_uri()}?nolock=1"
            with (
                contextlib.closing(sqlite3.connect(file)) as database,
                contextlib.closing(sqlite3.connect(unlocked, uri=True)) as copy,
            ):
                database.backup(copy)
        for old in _backups(folder)[:-KEPT]:
            old.unlink()
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"MLflow's database {file} could not be backed up: {error}") from None


def on_network(path: Path) -> bool:
    """Whether a path, which need not exist, lies on a network file system."""
    path = path.resolve()
    deepest, kind = -1, ""
    for line in MOUNTS.read_text().splitlines():
        point, its_kind = line.split()[1:3]
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))
        # Of two at the same place the later one lies on top.
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), its_kind
    return kind in NETWORK or kind.startswith("fuse.")


def sqlite_file(where: str) -> Path | None:
    """Return the file that an address names, if it names one."""
    return Path(where.removeprefix(SQLITE)) if where.startswith("sqlite:") else None


def identity(folder: Path) -> str:
    """Return a name for a server's folder that no other folder has."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _checked(setting: Path) -> str:
    """Return the address that the setting holds; what it says is not repeated, since it may hold a password."""
    where = setting.read_text().strip()
    parts = urlsplit(where)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError(f"{setting}: others can read this file; leave the password out and put it into ~/.pgpass")
    file = sqlite_file(where)
    if parts.scheme not in ("postgresql", "sqlite") or (file and not file.is_absolute()):
        raise UserError(f"{setting}: not the address of a database, such as {EXAMPLES}")
    if file and on_network(file):
        raise UserError(f"{setting}: {file} is on the network, where SQLite loses data; name one on a local disk")
    return where


def _backups(folder: Path) -> list[Path]:
    return sorted((folder / "backup").glob("mlflow-*.db"))
