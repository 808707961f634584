"""The docs name what exists: files, functions, links, layers."""

import ast
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from scrimp_platform.cli.main import scrimp

ROOT = Path(__file__).parent.parent
PACKAGES = [*ROOT.glob("*/scrimp"), *ROOT.glob("*/scrimp_*")]
FOLDERS = [ROOT, *{package.parent for package in PACKAGES}, *PACKAGES]
"""From where the architecture page names files."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
FILE = re.compile(r"`([\w/]+\.py)`")
CALL = re.compile(r"`((?:[A-Z]\w*\.)?\w+)\(\)`")
CLASS = re.compile(r"`([A-Z]\w*[a-z]\w*)`|`(EDM|DDPM|MAFP|OOD)`")


def without_code_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(page), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {f"#{heading.replace(' ', '-')}" for heading in words}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page):
    for target, anchor in LINK.findall(without_code_blocks(page)):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target + anchor


def test_the_readme_links_every_page():
    links = {target for target, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert {str(page.relative_to(ROOT)) for page in PAGES} - links == {"README.md"}


def blocks() -> list[str]:
    """Return the paragraphs, list items and table rows of the architecture page."""
    starts = re.sub(r"^(?= *(?:\d+\.|-|\|) )", "\n", ARCHITECTURE, flags=re.MULTILINE)
    return re.split(r"\n\s*\n", starts)


def files_named(block: str) -> list[Path]:
    """Return the files that a block names: from the root, a source root or a package."""
    files = []
    for name in FILE.findall(block):
        candidates = [folder / name for folder in FOLDERS]
        existing = [path for path in candidates if path.is_file()]
        assert existing, f"{name}: no such file"
        assert len(existing) == 1, f"{name}: stands for {len(existing)} files; name its package too"
        files += existing
    links = [(ROOT / "docs" / target).resolve() for target, _ in LINK.findall(block)]
    return files + [file for file in links if file.suffix == ".py"]


@cache
def definitions(file: Path) -> set[str]:
    """Return the functions, classes and methods that a module defines."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_every_file_function_and_class_on_the_architecture_page_exists():
    count = 0
    for block in blocks():
        defined = set[str]().union(*(definitions(file) for file in files_named(block)))
        classes = {one or other for one, other in CLASS.findall(block)}
        for name in [*CALL.findall(block), *classes]:
            assert name in defined, f"{name}: not defined in the files that its paragraph names:\n{block}"
            count += 1
    assert count > 30


def first_column(heading: str) -> list[str]:
    """Return what stands first in each row of the first table of a section."""
    section = ARCHITECTURE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index("|---") :].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)`", table, re.MULTILINE)


def test_the_layers_are_those_that_the_linter_checks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages, trainers = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    assert first_column("Packages") == packages
    assert first_column("Layers of the trainers") == trainers


def test_every_folder_of_the_platform_is_on_the_architecture_page():
    for folder in (ROOT / "platform" / "scrimp_platform").glob("*/__init__.py"):
        assert f"`{folder.parent.name}/`" in ARCHITECTURE


def commands_in(page: Path) -> list[list[str]]:
    """Return name and arguments of each `scrimp` command, and of `sweep.py`, in a page's code."""
    indented = re.findall(r"^    (\S.*)$", page.read_text(), re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", without_code_blocks(page))
    commands: list[list[str]] = []
    for line in indented + inline:
        if not line.startswith(("scrimp ", "python sweep.py", "ray submit", "ray exec")):
            continue
        words = shlex.split(line, comments=True)
        if words[1] == "exec":
            words = shlex.split(words[-1])
        if words[0] == "scrimp" and words[1] != "--help":
            commands.append(words[1:])
        elif "sweep.py" in words:
            commands.append(["sweep", *words[words.index("sweep.py") + 1 :]])
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_a_name_and_options_that_exist(page):
    for name, *words in commands_in(page):
        assert name in scrimp.commands, name
        command = scrimp.commands[name]
        options = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= options | {"--help", "-h"}, f"scrimp {name}: {used - options}"
