"""Ray's token is for its owner alone, whoever makes it first."""

import os
import stat
from pathlib import Path

import pytest

from scrimp_cluster import token
from scrimp_platform import cluster
from scrimp_trainers.common.errors import UserError


@pytest.fixture(params=[0o022, 0o000])
def file(request, tmp_path, monkeypatch):
    """Where the token of a user who has none will be, under a umask that lets others read."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(request.param)
    yield tmp_path / ".ray" / "auth_token"
    os.umask(before)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_local_ray_starts_with_a_private_token(file, monkeypatch):
    modes = []
    monkeypatch.setattr("ray.init", lambda **_: modes.append(mode(file)))
    cluster.start_here()
    assert modes == [0o600]
    assert len(file.read_text()) == 64
    assert list(file.parent.iterdir()) == [file]


def test_a_token_that_is_there_stays_and_is_closed_to_others(file):
    file.parent.mkdir()
    file.write_text("secret")
    token.ensure_token()
    assert file.read_text() == "secret"
    assert mode(file) == 0o600


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "secret"), ("RAY_AUTH_TOKEN_PATH", "/nowhere/token")],
)
def test_no_token_is_made_where_ray_would_not_read_it(file, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    token.ensure_token()
    assert not file.exists()


def test_a_home_that_cannot_be_written_gives_one_line(file):
    file.parent.write_text("in the way")
    with pytest.raises(UserError, match=r"\.ray: Ray's token cannot be written there"):
        cluster.start_here()
