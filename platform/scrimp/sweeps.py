"""Sweeps and what came of them."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scrimp_platform import store
from scrimp_platform.model import Model
from scrimp_platform.report import goals, leaderboard
from scrimp_platform.report.leaderboard import TrialRow
from scrimp_platform.search import records
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Result:
    """What a sweep has found, as its folder says at the time when it is loaded."""

    folder: Path
    """The sweep's folder; `report.html` in it is the report."""
    reason: str
    """Why the sweep ended: `complete`, `interrupted`, the limit that was reached; or `not over yet`."""
    verdict: str
    """Which trial wins and by what, or which cannot be told apart: the sentence that the report begins with."""
    problems: tuple[str, ...]
    """A line for each record that is damaged or missing."""
    space: Space = field(repr=False)
    """What was searched, and by what it is ranked."""
    _rows: tuple[TrialRow, ...] = field(repr=False)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Result":
        """Read a sweep's folder, also while the sweep runs.

        Raises
        ------
        UserError
            If the folder is not that of a sweep, or its description is damaged.
        """
        files = SweepFolder(Path(folder).expanduser().absolute())
        space, known = records.space_of(files), records.read_as_observer(files)
        rows = leaderboard.rank(known.trials, space)
        outcome = store.read_sound(files.outcome) or {"reason": "not over yet"}
        return cls(
            folder=files.path,
            reason=outcome["reason"],
            verdict=leaderboard.verdict(rows, space),
            problems=tuple(known.problems),
            space=space,
            _rows=tuple(rows),
        )

    def rank(
        self,
        objectives: Mapping[str, Literal["minimize", "maximize"]] | None = None,
        constraints: Mapping[str, Mapping[str, float]] | None = None,
    ) -> "Result":
        """Rank the same trials by other goals: nothing is trained, and no file changes.

        Parameters
        ----------
        objectives
            Such as `{"kid": "minimize"}`; by default the space's own.
        constraints
            Such as `{"memorized_fraction": {"max": 0.1}}`; by default the space's own.

        Returns
        -------
        Result
            Another result of the same sweep.

        Raises
        ------
        UserError
            If there is no such score, or this sweep did not measure it.
        """
        space = goals.with_goals(self.space, objectives, constraints)
        trials = sorted((row.trial for row in self._rows), key=lambda trial: trial.number)
        goals.require_measured(space, trials)
        rows = leaderboard.rank(trials, space)
        return dataclasses.replace(self, verdict=leaderboard.verdict(rows, space), space=space, _rows=tuple(rows))

    @property
    def leaderboard(self) -> "pandas.DataFrame | list[dict[str, Any]]":
        """The trials, best first, in the columns of leaderboard.csv: a list of dicts where pandas is not installed."""
        entries = leaderboard.entries(self._rows, self.space)
        try:
            import pandas
        except ImportError:
            return entries
        return pandas.DataFrame(entries, columns=leaderboard.columns(self.space))

    @property
    def best_recipe(self) -> Recipe | None:
        """The recipe of the best trial; none if no trial was trained to the end and keeps the constraints."""
        files = self._best
        return Recipe.load(files.recipe) if files else None

    def model(self, *, device: str | None = None) -> Model:
        """Load the model of the best trial's typical repeat: the one whose score is nearest to the trial's mean.

        Raises
        ------
        UserError
            If there is no best trial.
        """
        files = self._best
        if not files:
            raise UserError(f"{self.folder}: no best model; {'; '.join(self.problems) or self.verdict}")
        return Model.load(files.model, device)

    @property
    def _best(self) -> RepeatFolder | None:
        """The best trial's typical repeat; none while the records of a trial are damaged that may be better."""
        best = leaderboard.best(self._rows)
        if best is None or any(leaderboard.lost(row.trial) for row in self._rows):
            return None
        typical = leaderboard.typical(best, self.space)
        return SweepFolder(self.folder).repeat(typical.trial, typical.repeat)


def sweep(
    space: Space | str | PathLike[str] = "quickstart",
    data: Dataset | str | PathLike[str] = "digits",
    *,
    trials: int | None = None,
    repeats: int | None = None,
    rungs: Sequence[float] | None = None,
    name: str | None = None,
    storage: str | PathLike[str] = "runs",
    tracking_uri: str | None = None,
    warm_start: Sequence[str | PathLike[str]] = (),
    max_gpu_hours: float | None = None,
    gpus_per_repeat: int | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Result:
    """Search a space on a dataset, repeat the leaders, find the winner; the same call again resumes.

    It joins the Ray cluster that runs, as a job of it, or starts Ray on this machine; it prints what `scrimp sweep`
    prints. The first Ctrl-C ends it cleanly, and the result's `reason` says so; the second raises KeyboardInterrupt.

    Parameters
    ----------
    space
        A space, the name of one, or a YAML file.
    data
        A dataset, its folder, or `digits`, which is prepared on first use.
    trials, repeats, rungs, max_gpu_hours
        In place of the space's own budget: recipes to try, seeds that a leader gets, marks in kimg at which repeats are
        scored, device-hours to spend at most.
    name
        Name of the sweep; by default SPACE-DATASET, where a space made in Python is called `space`.
    storage
        Folder of all sweeps.
    tracking_uri
        An MLflow server; by default one of its own, for as long as the sweep lasts.
    warm_start
        Folders of earlier sweeps, whose leaders are tried first.
    gpus_per_repeat
        GPUs of one repeat; by default all of a node.
    fresh
        Start anew beside an earlier sweep of this name.
    seed
        Seed of everything.

    Returns
    -------
    Result
        What was found; its `reason` says whether the sweep is complete.

    Raises
    ------
    UserError
        If what was asked for cannot be done; nothing has been started then.
    """
    from scrimp_cluster import proxies, temporary
    from scrimp_platform import interrupt
    from scrimp_platform.cli import terminal
    from scrimp_platform.plan import SweepOptions
    from scrimp_platform.sweep import run_sweep

    options = SweepOptions(
        space=space if isinstance(space, Space) else fspath(space),
        data=str(data.folder) if isinstance(data, Dataset) else str(Path(data).expanduser()),
        trials=trials,
        repeats=repeats,
        rungs=tuple(rungs) if rungs is not None else None,
        name=name,
        storage=Path(storage),
        tracking_uri=tracking_uri,
        warm_start=tuple(Path(folder).expanduser() for folder in warm_start),
        max_gpu_hours=max_gpu_hours,
        gpus_per_repeat=gpus_per_repeat,
        fresh=fresh,
        seed=seed,
    )
    _require_free_ray()
    proxies.bypass()
    temporary.shorten(terminal.say)
    with interrupt.contained():
        ending = run_sweep(options)
    return Result.load(ending.folder.path)


def _require_free_ray() -> None:
    """Refuse a process that uses Ray already: it has one at a time, and a sweep ends its own."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        raise UserError("this process uses Ray already; call ray.shutdown() first")
