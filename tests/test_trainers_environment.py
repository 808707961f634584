"""What a repeat records of the code that trains it."""

import importlib.util
import shutil
from pathlib import Path

from scrimp_trainers.common import environment


def code_hash(package: Path) -> str:
    """Hash the code of a copy of the package."""
    spec = importlib.util.spec_from_file_location("environment_copy", package / "common" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.describe_environment("")["code"]


def test_a_change_anywhere_in_the_trainers_is_another_code(tmp_path):
    package = Path(environment.__file__).parents[1]
    copy = tmp_path / "trainers"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hash(copy)
    assert before == environment.describe_environment("")["code"]
    for name in ("training/loop.py", "run.py", "recipe/presets/tiny-edm.yaml"):
        with (copy / name).open("a") as file:
            file.write("\n# changed\n")
        after = code_hash(copy)
        assert after != before
        before = after
