"""The layout and the names that design and packaging rely on."""

import ast
import re
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = [
    ROOT / "platform/scrimp",
    ROOT / "platform/scrimp_platform",
    ROOT / "search_spaces/scrimp_spaces",
    ROOT / "trainers/scrimp_trainers",
    ROOT / "cluster/scrimp_cluster",
]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def test_a_source_root_holds_its_packages_and_nothing_else():
    for root in {package.parent for package in PACKAGES}:
        packages = {package for package in PACKAGES if package.parent == root}
        assert {path for path in root.iterdir() if path.name != "__pycache__"} == packages


def test_no_two_public_classes_share_a_name():
    homes = [
        (statement.name, str(path.relative_to(ROOT)))
        for package in PACKAGES
        for path in package.rglob("*.py")
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_")
    ]
    counts = Counter(name for name, _ in homes)
    assert counts["Recipe"] == 1
    assert [home for home in homes if counts[home[0]] > 1] == []


def test_no_top_level_name_shadows_the_standard_library_or_a_dependency():
    ours = {package.name for package in PACKAGES} | {path.stem for path in ROOT.glob("*.py")}
    others = {name for name, owners in packages_distributions().items() if "scrimp" not in owners}
    assert not ours & (others | sys.stdlib_module_names)


@pytest.mark.parametrize("arguments", [["-c", "import platform; platform.system()"], ["-m", "pytest", "--version"]])
def test_platform_is_pythons_own_in_a_fresh_interpreter_at_the_root(arguments):
    assert subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True).returncode == 0


def test_the_wheel_holds_every_module_and_every_yaml(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    data = [path for package in PACKAGES for path in package.rglob("*.yaml")]
    assert data
    for package in PACKAGES:
        for path in [*package.rglob("*.py"), *package.rglob("*.yaml")]:
            assert str(path.relative_to(package.parent)) in names


def test_the_lock_pins_every_package_and_names_no_place():
    assert len(LOCK) > 100
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[A-Za-z0-9._+]+( ; [\w .<>=!'()]+)?", line) for line in LOCK)


def test_the_lock_is_the_same_for_every_python():
    def packages(version: str) -> list[str]:
        here = {"python_version": version, "python_full_version": f"{version}.0"}
        requirements = [Requirement(line) for line in LOCK]
        return [str(one) for one in requirements if one.marker is None or one.marker.evaluate(here)]

    oldest = packages("3.11")
    assert len(oldest) > 100
    assert all(packages(version) == oldest for version in ("3.12", "3.13", "3.14"))
