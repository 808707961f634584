"""Scrimp as a library: the command line as Python functions. docs/api.md describes each name.

Importing it is cheap: torch, Ray and MLflow are imported when a name that needs them is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scrimp.sweeps import Result, compare, replay, sweep
    from scrimp.tools import check, doctor, inspect, pause, recipes, score, set_limits, spaces, status, stop, sync
    from scrimp.trainings import evaluate, load_model, load_parts, open_dataset, prepare, train, tune
    from scrimp_platform.model import Model
    from scrimp_spaces.space import Space
    from scrimp_trainers.common.errors import Diverged, UserError
    from scrimp_trainers.data.dataset import Dataset
    from scrimp_trainers.recipe.recipe import Recipe

__all__ = [
    "Dataset",
    "Diverged",
    "Model",
    "Recipe",
    "Result",
    "Space",
    "UserError",
    "check",
    "compare",
    "doctor",
    "evaluate",
    "inspect",
    "load_model",
    "load_parts",
    "open_dataset",
    "pause",
    "prepare",
    "recipes",
    "replay",
    "score",
    "set_limits",
    "spaces",
    "status",
    "stop",
    "sweep",
    "sync",
    "train",
    "tune",
]

_MODULES = {
    "Dataset": "scrimp_trainers.data.dataset",
    "Diverged": "scrimp_trainers.common.errors",
    "Model": "scrimp_platform.model",
    "Recipe": "scrimp_trainers.recipe.recipe",
    "Result": "scrimp.sweeps",
    "Space": "scrimp_spaces.space",
    "UserError": "scrimp_trainers.common.errors",
    "check": "scrimp.tools",
    "compare": "scrimp.sweeps",
    "doctor": "scrimp.tools",
    "evaluate": "scrimp.trainings",
    "inspect": "scrimp.tools",
    "load_model": "scrimp.trainings",
    "load_parts": "scrimp.trainings",
    "open_dataset": "scrimp.trainings",
    "pause": "scrimp.tools",
    "prepare": "scrimp.trainings",
    "recipes": "scrimp.tools",
    "replay": "scrimp.sweeps",
    "score": "scrimp.tools",
    "set_limits": "scrimp.tools",
    "spaces": "scrimp.tools",
    "status": "scrimp.tools",
    "stop": "scrimp.tools",
    "sweep": "scrimp.sweeps",
    "sync": "scrimp.tools",
    "train": "scrimp.trainings",
    "tune": "scrimp.trainings",
}

if not TYPE_CHECKING:  # with __getattr__ in sight, a type checker would accept every name

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
