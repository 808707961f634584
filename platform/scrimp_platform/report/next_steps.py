"""What to do with the result of a sweep: where its files lie, and the commands that use the recommended recipe."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scrimp_platform import store
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_spaces.space import Space


@dataclass(frozen=True)
class Link:
    """A file or folder of the sweep, or a page of MLflow."""

    text: str
    target: str
    """A path relative to the report, or an address."""


@dataclass(frozen=True)
class NextStep:
    """A command, and what it is for."""

    about: str
    command: str


def target(folder: SweepFolder, path: Path) -> str:
    """Return where a file or folder of the sweep lies, as a link of its report."""
    relative = quote(os.path.relpath(path, folder.path))
    return f"{relative}/" if path.is_dir() else relative


def links(folder: SweepFolder, recommended: RepeatFolder | None) -> list[Link]:
    """Return links to what there is of a sweep's files, those of its best trial first, and to its runs in MLflow."""
    named = {"leaderboard.csv": folder.leaderboard, "sweep.log": folder.log, "all trials": folder.trials}
    if recommended:
        trial = f"trial {recommended.trial}"
        own = {
            f"model of {trial}": recommended.model,
            f"recipe of {trial}": folder.best_recipe,
            f"repeat {recommended.label}: samples, metrics, checkpoints": recommended.path,
        }
        named = own | named
    shown = [Link(text, target(folder, path)) for text, path in named.items() if path.exists()]

    sent = store.read_sound(folder.tracking) or {}
    if str(sent.get("uri")).startswith(("http://", "https://")):
        shown.append(Link("runs in MLflow", mlflow_server.ui_link(sent["uri"], sent["experiment"])))
    return shown


def steps(folder: SweepFolder, sweep: dict[str, Any], recommended: RepeatFolder | None, space: Space) -> list[NextStep]:
    """Return the commands that sample and train the best trial's recipe; only that of MLflow if there is none."""
    browse = NextStep("Browse the runs in MLflow, until Ctrl-C:", _line("ui", "--storage", folder.path.parent))
    if recommended is None:
        return [browse]
    data = sweep["dataset"]["folder"]
    sample = _line("sample", recommended.model, "SAMPLES", "-n", "64")
    again = _line("train", folder.best_recipe, data, "OUT", "--seed", "1")
    longer = _line("train", folder.best_recipe, data, "LONGER", "--seed", "1", "--kimg", _twice(space))
    return [
        NextStep(f"Sample the model of trial {recommended.trial}:", sample),
        NextStep("Train its recipe again with a new seed:", again),
        NextStep("Train it twice as long:", longer),
        browse,
    ]


def _twice(space: Space) -> str:
    return f"{2 * space.budget.rungs_kimg[-1]:g}"


def python_code(card: Path) -> str:
    """Return the first Python code of a model card; empty if there is none."""
    if not card.exists():
        return ""
    match = re.search(r"```python\n(.*?)```", card.read_text(errors="replace"), re.DOTALL)
    return match.group(1) if match else ""


def _line(*words: str | Path) -> str:
    return shlex.join(["scrimp", *map(str, words)])
