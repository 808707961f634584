"""Where MLflow's runs are kept: on a local disk or in PostgreSQL, and in a backup a day."""

import contextlib
import sqlite3

import pytest

from scrimp_platform import store
from scrimp_platform.store import Storage
from scrimp_platform.tracking import mlflow_database
from scrimp_trainers.common.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = Storage(tmp_path / "runs of a lab").mlflow
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """Pretend that these folders are mounted, with file systems of these kinds, over a local disk."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))

    def pretend(**kinds: str) -> None:
        points = {str(tmp_path / name.replace("_", " ")).replace(" ", r"\040"): kind for name, kind in kinds.items()}
        lines = [f"what {point} {kind} rw,relatime 0 0" for point, kind in ({"/": "ext4"} | points).items()]
        (tmp_path / "mounts").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(mlflow_database, "MOUNTS", tmp_path / "mounts")

    return pretend


def rows(file) -> int:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute("select count(*) from numbers").fetchone()[0]


@pytest.fixture
def database(folder):
    """A database with one row, open in another process's stead."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as database:
        database.execute("create table numbers (number)")
        database.execute("insert into numbers values (1)")
        yield database


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_sqlite_stays_on_a_local_disk(tmp_path, folder, mount, kind):
    mount()
    assert mlflow_database.database_address(folder) == f"sqlite:///{folder}/mlflow.db"
    mount(runs_of_a_lab=kind)
    identity = mlflow_database.folder_id(folder)
    assert mlflow_database.database_address(folder) == f"sqlite:///{tmp_path}/home/scrimp/{identity}/mlflow.db"
    assert identity != mlflow_database.folder_id(folder.parent)


def test_a_local_disk_below_or_above_a_shared_folder_counts_as_local(tmp_path, folder, mount):
    mount(runs_of_a_lab="nfs", **{"runs_of_a_lab/mlflow": "xfs"})
    assert mlflow_database.database_address(folder) == f"sqlite:///{folder}/mlflow.db"
    mount(runs="nfs")  # beside it, though its name begins alike
    assert mlflow_database.database_address(folder) == f"sqlite:///{folder}/mlflow.db"


def test_without_a_local_disk_a_database_has_to_be_named(folder, mount):
    mount(runs_of_a_lab="nfs4", home="nfs4")
    with pytest.raises(UserError, match=r"write the address of a database into .*mlflow/database: `postgresql://"):
        mlflow_database.database_address(folder)


@pytest.mark.parametrize("address", ["postgresql://scrimp@db/mlflow", "sqlite:////local/disk/mlflow.db"])
def test_one_line_in_the_storage_folder_names_another_database(folder, mount, address):
    mount(runs_of_a_lab="nfs")
    (folder / "database").write_text(f"{address}\n")
    assert mlflow_database.database_address(folder) == address


@pytest.mark.parametrize(
    "address", ["postgresql://scrimp:geheim@db/mlflow", "postgresql://db/mlflow?user=scrimp&password=geheim"]
)
def test_a_password_does_not_belong_there(folder, address):
    (folder / "database").write_text(address)
    with pytest.raises(UserError, match=r"~/\.pgpass") as refusal:
        mlflow_database.database_address(folder)
    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize("address", ["", "db:5432", "mysql://db/mlflow", "sqlite:///mlflow.db", "sqlite://"])
def test_what_is_no_address_of_a_database_is_refused(folder, address):
    (folder / "database").write_text(address)
    with pytest.raises(UserError, match="not the address of a database, such as `postgresql://"):
        mlflow_database.database_address(folder)


def test_a_sqlite_file_on_the_network_is_refused(tmp_path, folder, mount):
    mount(shared="nfs")
    (folder / "database").write_text(f"sqlite:///{tmp_path}/shared/mlflow.db")
    with pytest.raises(UserError, match="on the network, where SQLite loses data"):
        mlflow_database.database_address(folder)


def test_a_backup_is_whole_while_the_database_is_written_to(folder, database):
    database.execute("begin")
    database.execute("insert into numbers values (2)")
    mlflow_database.back_up(folder)
    database.execute("commit")
    (backup,) = (folder / "backup").iterdir()
    assert rows(backup) == 1
    mlflow_database.back_up(folder)
    assert list((folder / "backup").iterdir()) == [backup]
    assert rows(backup) == 2


def test_the_backups_of_seven_days_stay(folder, database):
    (folder / "backup").mkdir()
    days = [f"mlflow-2026-01-{day:02}.db" for day in range(1, 10)]
    for day in days:
        (folder / "backup" / day).touch()
    mlflow_database.back_up(folder)
    left = sorted(file.name for file in (folder / "backup").iterdir())
    assert len(left) == 7
    assert left[:6] == days[3:]


def test_a_backup_that_fails_says_so_and_leaves_the_last_one_whole(folder, database):
    mlflow_database.back_up(folder)
    (backup,) = (folder / "backup").iterdir()
    before = backup.read_bytes()
    database.close()
    (folder / "mlflow.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError, match=r"mlflow\.db could not be backed up: file is not a database"):
        mlflow_database.back_up(folder)
    assert backup.read_bytes() == before
    assert list((folder / "backup").iterdir()) == [backup]


def test_a_database_in_postgresql_is_left_to_its_own_tools(folder):
    (folder / "database").write_text("postgresql://db/mlflow")
    assert mlflow_database.prepare_database(folder) == "postgresql://db/mlflow"
    mlflow_database.back_up(folder)
    assert [file.name for file in folder.iterdir()] == ["database"]


def test_a_lost_database_comes_back_with_its_runs(folder, mount):
    from mlflow import MlflowClient

    mount(runs_of_a_lab="nfs")  # so that the head's disk may be lost without the backups
    sweep = Storage(folder.parent).sweep("quickstart-digits")
    address = mlflow_database.prepare_database(folder)
    experiment = MlflowClient(address).create_experiment("digits")
    run = MlflowClient(address).create_run(experiment, run_name="trial 0").info.run_id
    store.write_json(sweep.description, {})
    store.write_json(sweep.tracking, {"runs": {run: {"curve": [20.0, 1.0], "files": {}}}})
    mlflow_database.back_up(folder)

    file = mlflow_database.sqlite_file(address)
    assert file
    file.unlink()
    assert mlflow_database.prepare_database(folder) == address
    assert [found.info.run_name for found in MlflowClient(address).search_runs([experiment])] == ["trial 0"]
    # What was sent after the backup is gone, so nothing may be taken for sent.
    assert not sweep.tracking.exists()
    assert file.parent.stat().st_mode & 0o777 == 0o700
