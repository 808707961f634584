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
READ_BY_LIBRARIES = {
    "backend_cls",  # Ray Train
    "create_app",  # MLflow, by pyproject.toml
    "find_class",  # pickle
    "infer_relative_search_space",  # Optuna
    "load_context",  # MLflow
    "log_message",  # http.server
    "sample_independent",  # Optuna
    "sample_relative",  # Optuna
    "stop_all",  # Ray Tune
}
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
        assert (package / "py.typed").exists()  # type checkers of those who import it look for this
        for path in [*package.rglob("*.py"), *package.rglob("*.yaml"), package / "py.typed"]:
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


def renames(path: Path) -> list[str]:
    """Calls that give a file another name, as `file:line`. Recipes and dropout have a `replace` of their own."""
    places: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = ast.unparse(node.func.value)
        moves = receiver in ("os", "shutil") and node.func.attr in ("rename", "renames", "replace", "move")
        one_argument = len(node.args) + len(node.keywords) == 1
        named = node.func.attr == "rename" or (node.func.attr == "replace" and one_argument)
        if moves or (named and not re.search(r"recipe|base\b|base\(|reference|dropout", receiver)):
            places.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def test_one_file_renames_what_lasts():
    """So that the order of write, sync and rename, on which nothing being lost depends, is right in one place."""
    places = [place for package in PACKAGES for path in package.rglob("*.py") for place in renames(path)]
    assert {place.partition(":")[0] for place in places} == {"trainers/scrimp_trainers/common/files.py"}
    assert len(places) == 2


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("os.replace(a, b)", 1),
        ("shutil.move(a, b)", 1),
        ("part.replace(path)", 1),
        ("folder.rename(target=old)", 1),
        ("text.replace('a', 'b')", 0),
        ("base.replace(values)", 0),
        ("dataclasses.replace(one, of=2)", 0),
    ],
)
def test_a_rename_is_seen_in_each_of_its_forms(code, count, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "code.py").write_text(code + "\n")
    assert len(renames(tmp_path / "code.py")) == count


def defined_names(tree: ast.Module) -> set[str]:
    """Functions, methods, classes and the variables of a module; without what pydantic, click and Python call."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(re.match(r"model_validator|field_validator|scrimp\.command", one) for one in decorators):
                names.add(node.name)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not re.fullmatch(r"__\w+__", name)}


def test_what_nobody_reads_is_gone():
    """A name that stands in no code but where it is defined. Tests do not count; a comment that has the name does."""
    ours = [path for package in PACKAGES for path in package.rglob("*.py")]
    pages = [path for package in PACKAGES for path in package.rglob("*.html")]
    words: Counter[str] = Counter()
    for path in [*ours, *pages, ROOT / "sweep.py", *(ROOT / "benchmarks").rglob("*.py")]:
        words.update(re.findall(r"\w+", path.read_text()))

    names = {name for path in ours for name in defined_names(ast.parse(path.read_text()))}
    assert {name for name in names if words[name] == 1} == READ_BY_LIBRARIES
