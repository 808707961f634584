"""The recommended model of a sweep, which commands and the library take, and the commands that go on with it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrimp_platform.report import leaderboard, ranking
from scrimp_platform.report.leaderboard import TrialRow
from scrimp_platform.search import records
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes


@dataclass(frozen=True)
class Recommended:
    """The repeat whose model stands for a sweep: of its best trial the one whose score is nearest to the mean."""

    files: RepeatFolder
    seed: int
    final: bool
    """Whether its trial is recommended, and does not only lead so far."""


def repeat_of(folder: SweepFolder, rows: Sequence[TrialRow], space: Space) -> Recommended | None:
    """Return the repeat to take of a leaderboard; None without a best trial, or while one that may be is damaged."""
    typical = ranking.best_repeat(rows, space)
    best = leaderboard.best(rows)
    if typical is None or best is None:
        return None
    files = folder.repeat(typical.trial, typical.repeat)
    return Recommended(files, typical.seed, final=best.status in ("recommended", "front"))


def find(folder: SweepFolder) -> Recommended:
    """Read from a sweep's files which repeat to take.

    Raises
    ------
    UserError
        If there is none yet, or the folder is not that of a sweep.
    """
    space = records.space_of(folder)
    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    recommended = repeat_of(folder, rows, space)
    if not recommended:
        cause = "; ".join(known.problems) or leaderboard.verdict(rows, space)
        raise UserError(f"{folder.path}: no best model; {cause}")
    return recommended


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, also of one that has lost its `sweep.json`."""
    files = SweepFolder(folder)
    return files.description.exists() or bool(files.trial_numbers())


def sample_command(folder: SweepFolder) -> str:
    """Return the command that samples the recommended model."""
    own_parts = [word for file in sorted(folder.parts.glob("*.py")) for word in ("--parts", str(file))]
    return shlex.join(["scrimp", "sample", str(folder.path), f"{folder.path.name}-samples", *own_parts])


def again_command(folder: SweepFolder) -> str:
    """Return the command that trains the recommended recipe again with another seed, in another folder."""
    data = records.sweep_description(folder)["dataset"]["folder"]
    return shlex.join(["scrimp", "train", str(folder.best_recipe), data, f"{folder.path.name}-again", "--seed", "1"])


def longer_command(folder: SweepFolder, recommended: Recommended, space: Space) -> str:
    """Return the command that trains the recommended recipe for twice as long, in another folder.

    A copy of the repeat continues from its checkpoint. Some recipes depend on the length of their training from its
    first step on: these begin anew.
    """
    recipe = recipes.read(recommended.files.recipe)
    data = records.sweep_description(folder)["dataset"]["folder"]
    out = f"{folder.path.name}-longer"
    kimg = 2 * recipe.training.kimg
    words = ["scrimp", "train", str(recommended.files.recipe), data, out]
    words += ["--kimg", f"{kimg:g}", "--seed", str(recommended.seed)]
    if recipe.training.select == "best":  # it is chosen among scores
        rungs = ",".join(f"{rung:g}" for rung in space.budget.rungs_kimg)
        words += ["--extractor", space.scoring.extractor, "--rungs", rungs]

    begins_anew = recipe.training.select == "best" or recipe.sparsity.method in ("rigl", "magran")
    copy = shlex.join(["cp", "-r", str(recommended.files.path), out])
    return shlex.join(words) if begins_anew else f"{copy} && {shlex.join(words)}"
