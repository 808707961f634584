"""What to do with the result of a sweep: where its files lie, and the commands that use the recommended model."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from scrimp_platform import recommended, store
from scrimp_platform.recommended import Recommended
from scrimp_platform.store import SweepFolder
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


def links(folder: SweepFolder, best: Recommended | None) -> list[Link]:
    """Return links to what there is of a sweep's files, those of its best trial first, and to its runs in MLflow."""
    paths = {"leaderboard.csv": folder.leaderboard, "sweep.log": folder.log, "all trials": folder.trials}
    if best:
        trial = f"trial {best.files.trial}"
        paths_of_best = {
            f"model of {trial}": best.files.model,
            f"recipe of {trial}": folder.best_recipe,
            f"repeat {best.files.label}: samples, metrics, checkpoints": best.files.path,
        }
        paths = paths_of_best | paths
    present = [Link(text, target(folder, path)) for text, path in paths.items() if path.exists()]

    sent = store.read_sound(folder.tracking) or {}
    if str(sent.get("uri")).startswith(("http://", "https://")):
        present.append(Link("runs in MLflow", mlflow_server.ui_link(sent["uri"], sent["experiment"])))
    return present


def steps(folder: SweepFolder, best: Recommended | None, space: Space) -> list[NextStep]:
    """Return the commands that sample and train the recommended model; only that of MLflow if there is none."""
    browse = shlex.join(["scrimp", "ui", "--storage", str(folder.path.parent)])
    commands = [NextStep("Browse the runs in MLflow, until Ctrl-C:", browse)]
    if best and best.files.model.exists():
        commands = [
            NextStep(f"Sample the model of trial {best.files.trial}:", recommended.sample_command(folder)),
            NextStep("Train its recipe again with a new seed:", recommended.again_command(folder)),
            NextStep("Train it twice as long:", recommended.longer_command(folder, best, space)),
            *commands,
        ]
    return commands


def python_code(card: Path) -> str:
    """Return the first Python code of a model card; empty if there is none."""
    if not card.exists():
        return ""
    match = re.search(r"```python\n(.*?)```", card.read_text(errors="replace"), re.DOTALL)
    return match.group(1) if match else ""
