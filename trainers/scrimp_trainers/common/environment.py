"""The code, libraries and data that a result depends on, besides its recipe and seed."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

Environment = dict[str, str]


def describe_environment(content_hash: str) -> Environment:
    """Return the hash of the code, the versions of the libraries, and the hash of the dataset."""
    libraries = {name: metadata.version(name) for name in ("torch", "diffusers")}
    return {"code": _code(), **libraries, "dataset": content_hash}


def describe_changes(before: Environment, now: Environment) -> str:
    """Describe what differs between two environments; empty if nothing does."""
    changed = [name for name in now if now[name] != before.get(name)]
    return ", ".join(f"{name} {now[name][:12]} (was {before.get(name, 'unknown')[:12]})" for name in changed)


@cache
def _code() -> str:
    """Hash the names and contents of all source files of this package."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
