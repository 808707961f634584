"""The database of the MLflow server, and its backups.

It is a SQLite file in the server's folder. If that folder is on a network file system, whose locks SQLite cannot rely
on, the file is on this machine's own disk. A file `database` in the folder can name another one, such as PostgreSQL.
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
from scrimp_trainers.common.files import atomic_file

SETTING_FILE = "database"
SQLITE_FILE = "mlflow.db"
BACKUPS_KEPT = 7
"""Number of daily backups that are kept."""
SQLITE = "sqlite:///"
EXAMPLES = f"`postgresql://user@host/mlflow` or `{SQLITE}/local/disk/{SQLITE_FILE}`"
MOUNTS = Path("/proc/mounts")
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "beegfs", "ceph", "glusterfs", "gpfs", "lustre"}


def database_address(folder: Path) -> str:
    """Return the address of the database in MLflow's form.

    Raises
    ------
    UserError
        If the folder's file `database` holds no usable address, or there is no local disk for SQLite.
    """
    setting = folder / SETTING_FILE
    if setting.exists():
        return _read_setting(setting)
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    for place in (folder, home / "scrimp" / folder_id(folder)):
        if not is_on_network(place):
            return f"{SQLITE}{place / SQLITE_FILE}"
    raise UserError(
        f"MLflow: {folder} and {home} are both on the network, where SQLite loses data; "
        f"write the address of a database into {setting}: {EXAMPLES}"
    )


def prepare_database(folder: Path) -> str:
    """Return the address of the database; a missing SQLite file is restored from the latest backup."""
    address = database_address(folder)
    file = sqlite_file(address)
    if file is None:
        return address

    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    backups = _backups(folder)
    if backups and not file.exists():
        # Sweeps must resend what is newer than the backup, so their records of what they have sent are deleted.
        for sweep in Storage(folder.parent).sweeps():
            sweep.tracking.unlink(missing_ok=True)
        with atomic_file(file) as temporary:
            shutil.copyfile(backups[-1], temporary)
    return address


def back_up(folder: Path) -> None:
    """Copy the SQLite file as today's backup, even while a server writes to it, and delete old backups.

    Raises
    ------
    UserError
        If the copy fails; the earlier backups remain intact.
    """
    file = sqlite_file(database_address(folder))
    if file is None or not file.exists():
        return
    today = time.strftime("%Y-%m-%d")
    try:
        with atomic_file(folder / "backup" / f"mlflow-{today}.db") as temporary:
            # No other process opens the temporary file, and a network file system may not support locks.
            unlocked = f"{temporary.as_uri()}?nolock=1"
            with (
                contextlib.closing(sqlite3.connect(file)) as database,
                contextlib.closing(sqlite3.connect(unlocked, uri=True)) as copy,
            ):
                database.backup(copy)
        for old in _backups(folder)[:-BACKUPS_KEPT]:
            old.unlink()
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"MLflow's database {file} could not be backed up: {error}") from None


def is_on_network(path: Path) -> bool:
    """Whether a path is on a network file system; the path need not exist."""
    path = path.resolve()
    deepest = -1
    file_system = ""
    for line in MOUNTS.read_text().splitlines():
        escaped_point, mounted = line.split()[1:3]
        # The kernel writes a space as \040.
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped_point))
        # Of two mounts at one point, the later one covers the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest = len(point.parts)
            file_system = mounted
    return file_system in NETWORK_FILE_SYSTEMS or file_system.startswith("fuse.")


def sqlite_file(address: str) -> Path | None:
    """Return the file of an SQLite address; None for another database."""
    return Path(address.removeprefix(SQLITE)) if address.startswith("sqlite:") else None


def folder_id(folder: Path) -> str:
    """Return an identifier of a server's folder, made from its path."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _read_setting(setting: Path) -> str:
    """Return the address in the file. Error messages do not repeat it, since it may contain a password."""
    address = setting.read_text().strip()
    parts = urlsplit(address)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError(f"{setting}: others can read this file; leave the password out and put it into ~/.pgpass")
    file = sqlite_file(address)
    if parts.scheme not in ("postgresql", "sqlite") or (file and not file.is_absolute()):
        raise UserError(f"{setting}: not the address of a database, such as {EXAMPLES}")
    if file and is_on_network(file):
        raise UserError(f"{setting}: {file} is on the network, where SQLite loses data; use one on a local disk")
    return address


def _backups(folder: Path) -> list[Path]:
    return sorted((folder / "backup").glob("mlflow-*.db"))
