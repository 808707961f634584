"""MLflow's server as a systemd service of the user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scrimp_cluster import service

SHARED = Path("/shared/of a lab/100%/$HOME")


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """Programs in the place of systemd's, which note what they are told; returns the file with their notes."""
    notes, programs = tmp_path / "notes", tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "loginctl"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{notes}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return notes


def test_the_unit_is_installed_started_and_kept_after_logout(tmp_path, systemd):
    assert service.install(Path("/opt/scrimp"), SHARED) == ""
    installed = tmp_path / "config/systemd/user/scrimp-mlflow.service"
    assert installed.read_text() == service.unit(Path("/opt/scrimp"), SHARED)
    assert systemd.read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable scrimp-mlflow",
        "systemctl --user restart scrimp-mlflow",
        "loginctl enable-linger",
    ]


def test_a_refusal_of_systemd_is_told(tmp_path, systemd):
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    assert service.install(Path("/opt/scrimp"), SHARED) == "`systemctl --user daemon-reload`: Failed to connect to bus"
    (tmp_path / "bin" / "systemctl").unlink()
    assert service.install(Path("/opt/scrimp"), SHARED) == "`systemctl --user daemon-reload`: not there"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    program = tmp_path / "of a lab" / "scrimp"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    unit = tmp_path / "scrimp-mlflow.service"
    unit.write_text(service.unit(program, SHARED))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(unit)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=perhaps"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(unit)], env=environment, capture_output=True, text=True
    )
    assert "perhaps" in done.stderr
