"""What trains: the code, the libraries and the data that a result depends on beside its recipe and seed."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

Environment = dict[str, str]


def describe_environment(content_hash: str) -> Environment:
    """Return the hash of this package's code, the versions of its libraries, and the hash of the dataset."""
    libraries = {name: metadata.version(name) for name in ("torch", "diffusers")}
    return {"code": _code(), **libraries, "dataset": content_hash}


def describe_changes(before: Environment, now: Environment) -> str:
    """Say in words what is not as it was; empty if all is."""
    names = [name for name in now if now[name] != before.get(name)]
    return ", ".join(f"{name} {now[name][:12]} (was {before.get(name, 'unknown')[:12]})" for name in names)


@cache
def _code() -> str:
    """Hash the package's own files, names and contents."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
