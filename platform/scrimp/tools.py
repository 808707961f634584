"""Presets and spaces, scores of images, own parts, and the state of sweeps and of the cluster."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from scrimp.trainings import dataset_folder
from scrimp_platform import operations
from scrimp_platform.operations import ReportProgress
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as search_spaces
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.recipe import recipe as presets

if TYPE_CHECKING:
    from scrimp_cluster.doctor import ClusterReport
    from scrimp_platform.check import Outcome
    from scrimp_platform.cli.status import StorageStatus
    from scrimp_platform.inspection import Inspection
    from scrimp_trainers.precompute.coreset import ScoredImages


def recipes() -> dict[str, str]:
    """Return the names of the presets, each with what it is. `Recipe.load` loads one."""
    return {name: presets.load(name).about for name in presets.presets()}


def spaces() -> dict[str, str]:
    """Return the names of the spaces that come with Scrimp, each with what it is. `Space.load` loads one."""
    return {name: search_spaces.load_space(name).about for name in search_spaces.names()}


def check(file: str | PathLike[str]) -> "list[Outcome]":
    """Check the parts that a file of your own defines, as `scrimp check` does.

    Parameters
    ----------
    file
        Such as `my_parts.py`. It is run.

    Returns
    -------
    list of Outcome
        For each part its `kind`, `what` it is, and its `fault`, which is empty if it keeps every promise.

    Raises
    ------
    UserError
        If the file cannot be loaded, or defines no part.
    """
    from scrimp_platform.check import check

    return list(check(expand_home(file)))


def score(
    data: Dataset | str | PathLike[str],
    *,
    features: str = "inception",
    weights: str | PathLike[str] | None = None,
    score: str = "gaussian",
    covariance: Literal["ridge", "shrunk"] = "ridge",
    keep: float = 0.1,
    per_class: bool | None = None,
    side: Literal["high", "low"] = "high",
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> "ScoredImages":
    """Score a dataset's training images and choose those that a coreset keeps, as `scrimp score` does.

    Parameters
    ----------
    data
        A dataset, or its folder, in which the scores are kept.
    features
        Extractor of the features, such as `classifier`.
    weights
        Its weight file.
    score
        `gaussian`, `ppca`, `knn`, `moderate`, `closest` or `random`.
    covariance
        Of `gaussian`: `ridge` or `shrunk`.
    keep
        Fraction of the images to keep.
    per_class
        Keep this fraction of each class, or of all images; by default as the score was published.
    side
        Keep the `high` or the `low` scores.
    seed
        Seed of `random`.
    progress
        Called with the number of images done and the total.

    Returns
    -------
    ScoredImages
        Of each training image its key, its score, and whether it is kept.

    Raises
    ------
    UserError
        If a value is not allowed, or the extractor cannot be used with this dataset.
    """
    folder = dataset_folder(data)
    coreset = operations.make_coreset(
        folder,
        features=features,
        weights=None if weights is None else str(weights),
        score=score,
        covariance=covariance,
        keep=keep,
        per_class=per_class,
        side=side,
    )
    return operations.score(folder, coreset, seed, progress)


def inspect(
    data: Dataset | str | PathLike[str],
    *,
    out: str | PathLike[str] | None = None,
    on: str | None = None,
    storage: str | PathLike[str] = "runs",
    progress: ReportProgress | None = None,
    **options: Any,
) -> "Inspection":
    """Look at a dataset, or at a source before it is prepared, as `scrimp inspect` does.

    Parameters
    ----------
    data
        A dataset or its folder; or a source that `prepare` takes, of which nothing is written.
    out
        A page to write, such as `photos.html`.
    on
        Machines that hours are reckoned for, such as `2x24GB`; by default those at hand.
    storage
        Folder of earlier sweeps.
    progress
        Called with the number of images read so far and their total.
    options
        How a source is read: `size`, `labels` and others of `prepare`.

    Returns
    -------
    Inspection
        The `manifest`, statistics of the `channels`, contact `sheets`, what is `cached`, the `nearness` of held-out
        images, and the `advice`.

    Raises
    ------
    UserError
        If it is neither, a source cannot be read, or the page not written.
    """
    from scrimp_platform import inspection
    from scrimp_platform.report import inspection_page
    from scrimp_trainers.data.options import Options

    source = str(data.folder if isinstance(data, Dataset) else expand_home(data))
    inspected = inspection.inspect(source, expand_home(storage), Options(**options), on, progress)
    if out is not None:
        inspection_page.write_page(inspected, expand_home(out))
    return inspected


def status(storage: str | PathLike[str] = "runs") -> "StorageStatus":
    """Read what `scrimp status` prints of a storage folder, from its files alone.

    Parameters
    ----------
    storage
        Folder of all sweeps.

    Returns
    -------
    StorageStatus
        The status of each sweep that is not complete (`unfinished`), the names of those that are (`complete`), and a
        line for each that cannot be read (`problems`).

    Raises
    ------
    UserError
        If no sweep is there.
    """
    from scrimp_platform.cli.status import read_storage

    return read_storage(Storage(expand_home(storage)))


def set_limits(sweep: str | PathLike[str], limits: Mapping[str, float | str | None]) -> list[str]:
    """Change limits of a sweep's budget, also while it runs, as `scrimp set` does.

    Parameters
    ----------
    sweep
        The sweep's folder.
    limits
        Such as `{"budget.trials": 40}`; None removes a limit.

    Returns
    -------
    list of str
        For each limit what its driver has answered, or when it will carry this out.

    Raises
    ------
    UserError
        If a limit cannot change, or the driver refuses.
    """
    assignments = [f"{name}={value}" for name, value in limits.items()]
    return operations.set_limits(expand_home(sweep), assignments)


def stop(sweep: str | PathLike[str], trial: int) -> str:
    """Stop a trial of a sweep for good, as `scrimp stop` does.

    Parameters
    ----------
    sweep
        The sweep's folder.
    trial
        Number of the trial.

    Returns
    -------
    str
        What its driver has answered, or when it will carry this out.

    Raises
    ------
    UserError
        If there is no such trial, or it has ended.
    """
    return operations.stop(expand_home(sweep), trial)


def pause(sweep: str | PathLike[str]) -> str:
    """Pause a sweep until its command is run again, as `scrimp pause` does.

    Parameters
    ----------
    sweep
        The sweep's folder.

    Returns
    -------
    str
        What its driver has answered.

    Raises
    ------
    UserError
        If the sweep does not run.
    """
    return operations.pause(expand_home(sweep))


def sync(sweep: str | PathLike[str], *, tracking_uri: str | None = None, progress: ReportProgress | None = None) -> str:
    """Send MLflow everything that it is missing of a sweep that has ended, as `scrimp sync` does.

    Parameters
    ----------
    sweep
        Folder of the sweep.
    tracking_uri
        An MLflow server; by default that of the storage, which is started for as long as it takes.
    progress
        Called with the number of runs done and the total.

    Returns
    -------
    str
        The sweep's address in MLflow.

    Raises
    ------
    UserError
        If the sweep is running, or no server can be reached.
    """
    from scrimp_platform.tracking import mirror

    folder = SweepFolder(expand_home(sweep).absolute())
    records.space_of(folder)
    return mirror.sync_ended_sweep(folder, Storage(folder.path.parent), tracking_uri, progress or (lambda *_: None))


def doctor(
    storage: str | PathLike[str] = "runs",
    *,
    data: Dataset | str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
) -> "ClusterReport":
    """Examine every node that a sweep would run on, as `scrimp doctor` does.

    Parameters
    ----------
    storage
        Folder of all sweeps, which every node has to reach.
    data
        A dataset that every node has to read, or its folder.
    tracking_uri
        An MLflow server that has to answer.

    Returns
    -------
    ClusterReport
        Its `faults` say what is wrong, where, and what to do; of those that a sweep cannot run with, `stops` is true.

    Raises
    ------
    UserError
        If an argument is wrong, or the cluster cannot be joined.
    """
    folder = None if data is None else dataset_folder(data)
    return operations.examine(expand_home(storage), folder, tracking_uri)
