"""What `ray up` does on each node: the shell scripts, in a clone whose environment is a stand-in, and cluster.yaml."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
UV = 'echo "$*" >>calls'
PYTHON = """
case $1 in
-c) echo 3.13 ;;
-m) echo "$*" >>calls && rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
install) echo "pip $*" >>calls && ln -s pip .venv/bin/uv ;;
*) echo "$*" >>calls ;;
esac
"""
"""Stands for a Python 3.13, and for pip and uv in the environments that it makes."""


@pytest.fixture
def clone(tmp_path) -> Path:
    """The parts of a clone that the scripts need, with a uv that only says what it is asked for."""
    scripts = tmp_path / "scrimp/cluster/scrimp_cluster"
    scripts.mkdir(parents=True)
    for name in ("environment.sh", "node.sh"):
        shutil.copy(ROOT / "cluster/scrimp_cluster" / name, scripts)
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "scrimp")
    (tmp_path / "scrimp/.venv/bin").mkdir(parents=True)
    program(tmp_path / "scrimp/.venv/bin/uv", UV)
    program(tmp_path / "scrimp/.venv/bin/python", "echo 3.11")
    return tmp_path / "scrimp"


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def prepare(clone: Path, storage: str = "/shared/scrimp", **variables: str) -> list[str]:
    """Run node.sh, and return what uv has been asked for so far."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(clone.parent), **variables}
    subprocess.run(["sh", "cluster/scrimp_cluster/node.sh", storage], cwd=clone, env=environment, check=True)
    return (clone / "calls").read_text().splitlines()


def login(clone: Path, expression: str) -> str:
    """Evaluate an expression in a shell as ssh starts one on the node."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(clone.parent), "SSH_CONNECTION": "10.0.0.9 4711 10.0.0.3 22"}
    line = f'. ~/.bashrc; echo "{expression}"'
    return subprocess.run(["bash", "-c", line], env=environment, check=True, capture_output=True, text=True).stdout[:-1]


def test_the_environment_is_installed_once_and_again_when_the_lock_changes(clone):
    assert [call.split()[1] for call in prepare(clone)] == ["sync", "install"]
    assert len(prepare(clone)) == 2
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert len(prepare(clone)) == 4


def test_an_installation_that_failed_is_taken_up_again(clone):
    program(clone / ".venv/bin/uv", f"{UV}; exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        prepare(clone)
    program(clone / ".venv/bin/uv", UV)
    assert len(prepare(clone)) == 3


def test_another_python_makes_the_environment_anew_and_it_keeps_that_one(clone):
    other = program(clone / "python3.13", PYTHON)
    assert len(prepare(clone)) == 2
    calls = prepare(clone, PYTHON=str(other))[2:]
    assert [call.split()[:2] for call in calls] == [
        ["-m", "venv"],
        ["pip", "install"],
        ["pip", "sync"],
        ["pip", "install"],
    ]
    for again in ({}, {"PYTHON": str(other)}):
        assert len(prepare(clone, **again)) == 6


def test_a_python_that_is_too_old_is_refused_in_a_line(clone, capfd):
    with pytest.raises(subprocess.CalledProcessError):
        prepare(clone, PYTHON=str(program(clone / "python3.10", ":")))
    assert capfd.readouterr().err == f"{clone}/python3.10: no Python 3.11 or newer; PYTHON names another one\n"


def test_a_login_finds_python_the_storage_and_the_address_at_which_it_came_in(clone):
    prepare(clone, "/mnt/our lab")
    assert login(clone, "$PATH").split(":")[0] == str(clone / ".venv/bin")
    assert login(clone, "$SCRIMP_STORAGE $RAY_AUTH_MODE") == "/mnt/our lab token"
    assert "--node-ip-address=10.0.0.3 " in login(clone, "$SCRIMP_RAY_START")


def test_a_users_own_bashrc_keeps_its_lines_and_gets_one(clone):
    bashrc = clone.parent / ".bashrc"
    bashrc.write_text("alias ll='ls -l'")  # no newline at its end
    for _ in range(2):
        prepare(clone)
    assert bashrc.read_text() == f"alias ll='ls -l'\n. {clone}/node.env\n"


def test_cluster_yaml_sends_what_there_is_and_leaves_room_for_ten():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert all((ROOT / part).exists() for part in cluster["file_mounts"].values())
    assert len({cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]}) == 10
