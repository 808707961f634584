"""Who may read what a sweep and MLflow write is the umask's business, except for the password."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_sweep import write_finished_sweep

from scrimp_platform import store
from scrimp_platform.store import Storage
from scrimp_platform.tracking import mlflow_database, mlflow_server


@pytest.fixture(params=[0o077, 0o022])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_below(folder: Path) -> dict[str, int]:
    """Return the mode of every file and folder, by its path."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def usual_modes(folder: Path, umask: int) -> dict[str, int]:
    """Return the modes that the umask leaves: all may read and write, or nobody else."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}


def test_all_that_a_sweep_leaves_follows_the_umask(umask, tmp_path):
    folder = write_finished_sweep(tmp_path / "storage" / "sweep")
    modes = modes_below(tmp_path / "storage")
    assert modes == usual_modes(tmp_path / "storage", umask)

    files = [folder.description, folder.journal, folder.report, folder.leaderboard, folder.lock, folder.log]
    files += [*folder.requests(), folder.models["recommended"] / "MLmodel"]
    for file in files:
        assert modes[str(file.relative_to(tmp_path / "storage"))] == 0o666 & ~umask


def test_of_mlflows_files_the_password_alone_is_its_owners_whatever_the_umask(umask, tmp_path):
    folder = Storage(tmp_path / "storage").mlflow
    folder.mkdir(parents=True)
    mlflow_server.read_or_create_password(folder)
    with store.exclusive(folder / "start.lock", "MLflow"):
        store.write_json(folder / "server.json", {"host": "here", "port": 5000})
    database = mlflow_database.sqlite_file(mlflow_database.prepare_database(folder))
    assert database
    assert database == folder / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE runs (id TEXT)")
    mlflow_database.back_up(folder)

    modes = modes_below(folder)
    assert modes.pop("password") == 0o600
    assert len(modes) == 5
    # SQLite itself makes files that others cannot write.
    expected = usual_modes(folder, umask) | {"mlflow.db": 0o644 & ~umask}
    del expected["password"]
    assert modes == expected
