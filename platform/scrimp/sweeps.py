"""Running a sweep and reading its result."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scrimp.trainings import dataset_folder
from scrimp_platform import recommended
from scrimp_platform.model import Model
from scrimp_platform.report import goals, leaderboard
from scrimp_platform.report.leaderboard import TrialRow
from scrimp_platform.search import records
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home, expand_name
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas

    from scrimp_platform.report.compare import Comparison
    from scrimp_platform.search.replay import Replay


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a sweep, as its folder shows it when it is loaded."""

    folder: Path
    """The sweep's folder; `report.html` in it is the report."""
    reason: str
    """Why the sweep ended: `complete`, `interrupted`, or the limit that was reached; `not over yet` if it runs."""
    verdict: str
    """Which trial is recommended, how sure that is, and which cannot be told from it."""
    problems: tuple[str, ...]
    """A line for each record that is damaged or missing."""
    space: Space = field(repr=False)
    """The space that was searched, with the objectives and constraints that rank the trials."""
    _rows: tuple[TrialRow, ...] = field(repr=False)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Result":
        """Read a sweep's folder; this works while the sweep runs, too.

        Raises
        ------
        UserError
            If the folder holds no sweep, or its `sweep.json` is damaged.
        """
        files = SweepFolder(expand_home(folder).absolute())
        space = records.space_of(files)
        known = records.read_as_observer(files)
        rows = leaderboard.rank(known.trials, space)
        return cls(
            folder=files.path,
            reason=records.last_ending(files),
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
        """Rank the same trials by other goals. Nothing is trained, and no file changes.

        Parameters
        ----------
        objectives
            Such as `{"kid": "minimize"}`; by default those of the space.
        constraints
            Such as `{"memorized_fraction": {"max": 0.1}}`; by default those of the space.

        Returns
        -------
        Result
            The same sweep with the new ranking.

        Raises
        ------
        UserError
            If a score does not exist, or this sweep did not measure it.
        """
        space = goals.with_goals(self.space, objectives, constraints)
        trials = sorted((row.trial for row in self._rows), key=lambda trial: trial.number)
        goals.require_measured(space, trials)

        rows = leaderboard.rank(trials, space)
        verdict = leaderboard.verdict(rows, space)
        return dataclasses.replace(self, verdict=verdict, space=space, _rows=tuple(rows))

    def write_report(self) -> None:
        """Write leaderboard, recommended recipe and report again from the sweep's files, as `scrimp report` does."""
        from scrimp_platform.sweep import write_results

        write_results(SweepFolder(self.folder), records.space_of(SweepFolder(self.folder)))

    @property
    def leaderboard(self) -> "pandas.DataFrame | list[dict[str, Any]]":
        """The trials, best first, in the columns of leaderboard.csv; a list of dicts if pandas is not installed."""
        entries = leaderboard.entries(self._rows, self.space)
        try:
            import pandas
        except ImportError:
            return entries
        return pandas.DataFrame(entries, columns=leaderboard.columns(self.space))

    @property
    def best_recipe(self) -> Recipe | None:
        """The recipe of the best trial; None if no trial was trained to the end within the constraints."""
        files = self._best_repeat
        return recipes.read(files.recipe) if files else None

    def model(self, *, device: str | None = None) -> Model:
        """Load the model of the best trial's typical repeat, whose score is nearest to the trial's mean.

        Raises
        ------
        UserError
            If there is no best trial.
        """
        files = self._best_repeat
        if not files:
            cause = "; ".join(self.problems) or self.verdict
            raise UserError(f"{self.folder}: no best model; {cause}")
        return Model.load(files.model, device)

    @property
    def _best_repeat(self) -> RepeatFolder | None:
        """The best trial's typical repeat; None while a trial that may be better has damaged records."""
        best = recommended.repeat_of(SweepFolder(self.folder), self._rows, self.space)
        return best.files if best else None


def sweep(
    space: Space | str | PathLike[str] = "quickstart",
    data: Dataset | str | PathLike[str] = "digits",
    *,
    trials: int | str | None = None,
    repeats: int | None = None,
    rungs: Sequence[float] | None = None,
    name: str | None = None,
    storage: str | PathLike[str] = "runs",
    tracking_uri: str | None = None,
    warm_start: Sequence[str | PathLike[str]] = (),
    max_gpu_hours: float | None = None,
    until_gain: float | str | None = None,
    gpus_per_repeat: int | Literal["auto"] | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> Result:
    """Search a space on a dataset, repeat the leading trials with fresh seeds, and recommend one.

    The same call resumes an earlier sweep. It runs as a job on the Ray cluster if one is running, or else starts Ray on
    this machine, and it prints what `scrimp sweep` prints. The first Ctrl-C ends the sweep cleanly, and the result's
    `reason` says so; the second raises KeyboardInterrupt.

    Parameters
    ----------
    space
        A space, the name of one, or a YAML file.
    data
        A dataset, its folder, or `digits`, which is prepared on first use.
    trials, repeats, rungs, max_gpu_hours
        These replace the space's budget: number of recipes to try, seeds per leading trial, marks in kimg at which
        repeats are scored, and the maximum of device-hours. Of `trials`, `"+4"` adds to those that the sweep has.
    until_gain
        The search ends once ten more trials are expected to improve the best score by less than this share: `"0.5%"`.
    name
        Name of the sweep; by default SPACE-DATASET, where a space made in Python is called `space`.
    storage
        Folder of all sweeps.
    tracking_uri
        An MLflow server; by default the sweep starts its own and stops it at the end.
    warm_start
        Folders of earlier sweeps whose order of recipes shapes the proposals, or `all` for every other one of the
        storage.
    gpus_per_repeat
        GPUs per repeat; by default all GPUs of a node. `"auto"` measures whether all of them, one, or a share of one
        finishes most repeats.
    fresh
        Start a new sweep beside an earlier one of the same name.
    seed
        Seed of the search and of all training runs.

    Returns
    -------
    Result
        The result; its `reason` says whether the sweep is complete.

    Raises
    ------
    UserError
        If an argument is wrong or the sweep cannot start; nothing has been started then.
    """
    from scrimp_cluster import proxies, temporary
    from scrimp_platform import interrupt
    from scrimp_platform.cli import terminal
    from scrimp_platform.plan import SweepOptions
    from scrimp_platform.sweep import run_sweep

    if not isinstance(space, Space):
        space = expand_name(fspath(space))
    options = SweepOptions(
        space=space,
        data=str(dataset_folder(data)),
        trials=trials,
        repeats=repeats,
        rungs=None if rungs is None else tuple(rungs),
        name=name,
        storage=expand_home(storage),
        tracking_uri=tracking_uri,
        warm_start=tuple(expand_home(folder) for folder in warm_start),
        max_gpu_hours=max_gpu_hours,
        until_gain=until_gain,
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


def compare(*sweeps: str | PathLike[str]) -> "Comparison":
    """Put the winners of sweeps side by side; scores that were not measured alike are in different groups.

    Parameters
    ----------
    *sweeps
        Folders of at least two sweeps.

    Returns
    -------
    Comparison
        The `groups` of winners whose scores can be compared, each with what these hold for (`basis`), its `winners`,
        the best first, the `settings` that were searched or differ, and in what its scores differ from those of the
        first group (`differs`); and the sweeps that have no winner (`without`).

    Raises
    ------
    UserError
        If there are fewer than two sweeps, one is named twice, or a folder holds none.
    """
    from scrimp_platform.report import compare

    return compare.compare([SweepFolder(expand_home(folder).absolute()) for folder in sweeps])


def replay(
    sweep: str | PathLike[str],
    *,
    methods: Sequence[str] = ("scrimp", "halving", "random", "tpe"),
    seeds: int = 10,
) -> "Replay":
    """Tell what other methods would have done on a finished sweep's curves. Nothing is trained, and no file changes.

    Parameters
    ----------
    sweep
        Folder of the sweep.
    methods
        Any of `scrimp`, `halving`, `random`, `qmc`, `tpe`, `tpe-halving` and `gp`.
    seeds
        How often each method searches; the seeds follow that of the sweep.

    Returns
    -------
    Replay
        What the sweep did (`recording`), what came of each method (`methods`), and what that cannot tell (`limits`).

    Raises
    ------
    UserError
        If a method does not exist, or the sweep cannot be replayed.
    """
    from scrimp_platform.search import replay

    return replay.replay(SweepFolder(expand_home(sweep).absolute()), methods, seeds)


def _require_free_ray() -> None:
    """Refuse a process that already uses Ray: it can have one connection only, and the sweep closes its own."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        raise UserError("this process uses Ray already; call ray.shutdown() first")
