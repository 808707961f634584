"""docs/tutorial.md can be followed as it stands: its files and commands run, and print what it shows."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests
import yaml

from scrimp_spaces.space import Space

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
SINGLE_MACHINE = PAGE.split("\n## 9. On a cluster")[0]
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """Return the page's commands for one machine, in order."""
    outside = re.sub(r"^```.*?^```", "", SINGLE_MACHINE, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^    (\S.*)$", outside, re.MULTILINE)


def output_of(command: str) -> list[str]:
    """Return the lines that the page shows below a command."""
    return PAGE.split(f"    {command}\n\n```\n")[1].split("\n```")[0].splitlines()


def write_files(folder: Path) -> None:
    """Write the files that the page tells its reader to save."""
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        name = code.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(code)
    (folder / "first.yaml").write_text(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])  # type: ignore[index]


def run(command: str, folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "SCRIMP_STORAGE")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", **variables}
    answer = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def test_prepare_prints_what_the_page_shows(tmp_path: Path):
    write_files(tmp_path)
    make_photos, prepare = commands()[:2]
    run(make_photos, tmp_path)
    printed = run(f"{prepare} --no-classifier", tmp_path).splitlines()
    shown = [line for line in output_of(prepare) if not line.startswith(("classifier", "..."))]
    assert shown[0].startswith("data/photos: 360 train, 40 holdout")
    assert [line for line in shown if line not in printed] == []


def test_the_space_of_the_page_is_valid_and_the_plan_shows_its_budget(tmp_path: Path):
    write_files(tmp_path)
    space = Space.model_validate(yaml.safe_load((tmp_path / "first.yaml").read_text()))
    dry_run = "\n".join(output_of("scrimp sweep --space first.yaml --data data/photos --dry-run"))
    assert f"{space.budget.trials} trials" in dry_run
    assert f"{space.budget.leaders} leaders race for up to {space.budget.repeats} repeats" in dry_run


@pytest.mark.slow
def test_the_page_can_be_followed_to_the_registered_model(tmp_path: Path):
    write_files(tmp_path)
    variables: dict[str, str] = {}
    server = None
    with tempfile.TemporaryDirectory(prefix="ray-") as apart:
        try:
            for command in commands():
                if command.startswith("scrimp ui"):
                    server = subprocess.Popen([BIN / "scrimp", *command.split()[1:]], cwd=tmp_path)
                    wait_for("http://127.0.0.1:5055/health")
                elif command.startswith("export "):
                    names = " ".join(re.findall(r"(\w+)=", command))
                    values = run(f"{command}; for name in {names}; do echo ${{!name}}; done", tmp_path).split()
                    variables |= dict(zip(names.split(), values, strict=True))
                elif command == "python load.py":
                    assert run(command, tmp_path, **variables).split("\n")[0] == "(16, 16, 16, 3) uint8"
                else:
                    run(command, tmp_path, RAY_TMPDIR=apart)
        finally:
            if server is not None:
                server.terminate()
                server.wait()
    assert (tmp_path / "samples" / "grid.png").is_file()
    assert (tmp_path / "runs" / "first-photos" / "report.html").is_file()
    assert (tmp_path / "longer" / "model" / "README.md").is_file()


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            requests.get(address, timeout=5)
            return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError(f"{address}: nothing listens")
