"""Parts by name: a part is one file, and its file's name is its `kind` in a recipe.

A user's own part is a class in a file that a recipe or a space lists under `parts`; its kind is `my_parts:MyNetwork`.
Loading such a file runs it. So that happens only for files that the user has named, never because a dataset, a model or
a sweep names one.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from scrimp_trainers.common.errors import UserError

_own_files: dict[str, tuple[str, ModuleType]] = {}
"""Hash and module of each file of own parts that this process has loaded, by the name of the module."""


def is_own(kind: str) -> bool:
    """Whether a kind names a user's own part."""
    return ":" in kind


def module(folder: str, kind: str) -> Any:
    """Return what makes a part: `networks`, `unet` is the module `scrimp_trainers.networks.unet`; of own parts a class.

    Raises
    ------
    UserError
        If it is an own part that has not been loaded.
    """
    return own(kind) if is_own(kind) else importlib.import_module(f"scrimp_trainers.{folder}.{kind}")


def build(folder: str, section: Any, *arguments: Any, **options: Any) -> Any:
    """Build the part that a recipe section describes, by calling `build` in the module named by its `kind`."""
    return module(folder, section.kind).build(section, *arguments, **options)


def load_files(files: Iterable[Path]) -> None:
    """Load files of own parts, which runs them; one that was loaded and has not changed is not run again.

    Raises
    ------
    UserError
        If one is missing, cannot be imported, or has the name of another one.
    """
    for file in files:
        name = file.stem
        if not (file.suffix == ".py" and name.isidentifier() and file.is_file()):
            raise UserError(f"parts: {file}: not a Python file; name one such as my_parts.py")
        digest = digests([file])[file.name]
        known, _ = _own_files.get(name, (None, None))
        if known is None:
            _own_files[name] = (digest, _load(file))
        elif known != digest:
            raise UserError(f"parts: {file}: another {file.name} has been loaded; rename one of them")


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name without its folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def contents(file: Path) -> dict[str, Any]:
    """Return what a loaded file defines itself, by name."""
    _, loaded = _own_files[file.stem]
    return {name: value for name, value in vars(loaded).items() if getattr(value, "__module__", "") == loaded.__name__}


def digest_of(kind: str) -> str:
    """Return the SHA-256 of the file that an own part was loaded from."""
    own(kind)
    return _own_files[kind.partition(":")[0]][0]


def own(kind: str) -> Any:
    """Return a user's own part: `my_parts:MyNetwork` is that class of the loaded file `my_parts.py`.

    Raises
    ------
    UserError
        If the file has not been loaded, or has nothing of that name.
    """
    name, _, attribute = kind.partition(":")
    if name not in _own_files:
        raise UserError(f"{kind}: the file {name}.py has not been loaded; list it under `parts`")
    _, loaded = _own_files[name]
    if not hasattr(loaded, attribute):
        raise UserError(f"{kind}: {name}.py has no {attribute!r}")
    return getattr(loaded, attribute)


def _load(file: Path) -> ModuleType:
    name = f"scrimp_own_parts_{file.stem}"  # not the bare name, which may be that of an installed package
    loader = SourceFileLoader(name, str(file))
    loaded = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(file)))
    sys.modules[name] = loaded  # where pydantic looks a class up
    try:
        loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"parts: {file}: cannot be imported: {type(error).__name__}: {error}") from error
    return loaded
