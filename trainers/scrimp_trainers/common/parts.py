"""Parts by name: a part is one file, and its file's name is its `kind` in a recipe."""

import importlib
from types import ModuleType
from typing import Any


def module(folder: str, kind: str) -> ModuleType:
    """Return the module of a part: `networks`, `unet` is `scrimp_trainers.networks.unet`."""
    return importlib.import_module(f"scrimp_trainers.{folder}.{kind}")


def build(folder: str, section: Any, *arguments: Any, **options: Any) -> Any:
    """Make the part that a section of a recipe names: `build` of the module of its `kind`, given the section."""
    return module(folder, section.kind).build(section, *arguments, **options)
