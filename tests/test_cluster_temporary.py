"""Where temporary files go if the user's folder is too long for sockets."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from scrimp_cluster import temporary


@pytest.fixture
def place(tmp_path_factory, monkeypatch):
    """A short folder in place of /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(temporary, "SHORT_PARENT", Path(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_gives_way_to_a_short_one_of_the_users_own(name, place, tmp_path, monkeypatch):
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(long))
    said: list[str] = []
    temporary.shorten(said.append)
    folder = Path(os.environ[name])
    assert said == [f"{name}: too long for the paths of sockets; using {folder} instead"]
    assert folder.parent == place
    assert folder.stat().st_mode & 0o777 == 0o700
    path = folder / temporary.RAY_SOCKET
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))

    temporary.shorten(said.append)
    assert len(said) == 1


def test_a_folder_that_is_short_enough_stays(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    temporary.shorten(pytest.fail)
    assert os.environ["TMPDIR"] == str(place)


def test_a_folder_that_others_can_enter_is_not_used(place):
    (place / f"scrimp-{os.getuid()}").mkdir(mode=0o777)
    (place / f"scrimp-{os.getuid()}").chmod(0o777)
    folder = temporary.own_folder()
    assert folder != place / f"scrimp-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
