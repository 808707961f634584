"""A thousand flips and truncations in the files of a finished sweep: each read answers the same or names the file."""

import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_sweep import SPACE, open_ledger, write_finished_sweep

from scrimp import Result
from scrimp_platform import operations, recommended, storage_loss, store, sweep, tune, winner
from scrimp_platform.cli import status, status_view
from scrimp_platform.model import Model
from scrimp_platform.report import compare, importance, leaderboard
from scrimp_platform.search import records, steering
from scrimp_platform.store import RepeatFolder, Storage, SweepFolder, WorkFolder
from scrimp_trainers.common import metrics_log, weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.training.snapshots import Snapshots

Answer = tuple[Any, list[str]]
"""What was read, and the lines that name damaged files."""
Read = Callable[[SweepFolder], Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> SweepFolder:
    return write_finished_sweep(tmp_path_factory.mktemp("storage") / "runs" / "sweep")


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory) -> SweepFolder:
    """The same sweep in another storage, of which nothing is damaged."""
    place = tmp_path_factory.mktemp("other") / "sweep"
    return SweepFolder(shutil.copytree(folder.path, place))


@pytest.fixture(autouse=True)
def _nobody_waits_for_a_driver(monkeypatch):
    monkeypatch.setattr(steering, "SILENCE_TIMEOUT_S", -1.0)


class Whole:
    """The files of a sweep as they were, to put them back."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        files = self._files()
        self.content = {file: file.read_bytes() for file in files}
        self._stamps = {file: _stamp(file) for file in files}

    def _files(self) -> list[Path]:
        return sorted(file for file in self._folder.path.rglob("*") if file.is_file())

    def of_each_kind(self) -> dict[str, list[Path]]:
        """Return the files by their paths, in which numbers do not count."""
        kinds: dict[str, list[Path]] = defaultdict(list)
        for file in self.content:
            kinds[re.sub(r"\d+", "N", str(file.relative_to(self._folder.path)))].append(file)
        return kinds

    def restore(self) -> None:
        for file in set(self._files()) - self.content.keys():
            file.unlink()
        for file, content in self.content.items():
            if _stamp(file) != self._stamps[file]:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                self._stamps[file] = _stamp(file)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def damage(file: Path, content: bytes, rng: random.Random) -> None:
    changed = bytearray(content)
    if content and rng.random() < 0.7:
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del changed[rng.randrange(len(content) + 1) :]
    file.write_bytes(changed)


@pytest.fixture
def whole(folder) -> Iterator[Whole]:
    """The sweep's files, which are put back after the test."""
    whole = Whole(folder)
    yield whole
    whole.restore()


def status_answer(folder: SweepFolder) -> Answer:
    known = status.read_storage(Storage(folder.path.parent))
    status_view.show_storage(*known)
    named = [problem for standing in known.unfinished for problem in standing.problems]
    standings = [(one.reason, one.trials, one.preparations) for one in known.unfinished]
    return [known.complete, standings], [*known.problems, *named]


def report_answer(folder: SweepFolder) -> Answer:
    space = records.space_of(folder)
    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    curves = [metrics_log.read_rows(folder.repeat(repeat.trial, repeat.repeat).metrics) for repeat in known.repeats]
    ranking = [(row.number, row.status, row.summaries) for row in rows]
    shares = importance.field_importances(known.trials, space)
    return [ranking, leaderboard.verdict(rows, space), curves, shares, known.preparations], known.problems


def result_answer(folder: SweepFolder) -> Answer:
    result = Result.load(folder.path)
    table = result.leaderboard.to_csv()  # pyright: ignore[reportAttributeAccessIssue] -- pandas is installed
    return [result.reason, result.verdict, table, result.best_recipe], list(result.problems)


def comparison_with(other: SweepFolder) -> Read:
    def compare_answer(folder: SweepFolder) -> Answer:
        compared = compare.compare([folder, other])
        winners = [winner for group in compared.groups for winner in group.winners] + compared.without
        return repr(compared), [winner.verdict for winner in winners]

    return compare_answer


def model_answer(folder: SweepFolder) -> Answer:
    """What `scrimp sample SWEEP` and `scrimp evaluate SWEEP` draw, and what `scrimp sample SWEEP/model` does."""
    chosen = recommended.find(folder)
    places = [chosen.files.model, folder.models["recommended"]]
    return [chosen.files.label, *(Model.load(place, "cpu").sample(1).tobytes() for place in places)], []


def tune_answer(folder: SweepFolder) -> Answer:
    """What `scrimp tune SWEEP` reads before it draws samples."""
    run = tune.training(folder.path)
    average = Snapshots.find(run, 8000).average(0.1)
    return [run, weights.digest_of(average)], []


def resume_answer(folder: SweepFolder) -> Answer:
    said: list[str] = []
    ledger, answering = open_ledger(folder, said)
    trials = [(trial.number, trial.params, trial.status, list(trial.repeats)) for trial in ledger.trials]
    answering.begin()
    answers = [(store.read_sound(file) or {}).get("answer") for file in folder.requests()]
    return [trials, answers], said


def waiting_answer(folder: SweepFolder) -> Answer:
    """What `--dry-run` says of requests that nobody has answered."""
    lines = steering.waiting(folder)
    return lines, lines


def request_answer(folder: SweepFolder) -> Answer:
    """What `scrimp set`, `scrimp stop` and `scrimp pause` say where no driver runs."""
    answers = [operations.set_limits(folder.path, ["budget.trials=9"]), operations.stop(folder.path, 0)]
    with pytest.raises(UserError, match="nothing to pause"):
        operations.pause(folder.path)
    return answers, []


def answered(read: Read, folder: SweepFolder) -> Answer:
    """Read, and take a refusal in one line for an answer that names what it is about."""
    try:
        with storage_loss.explained(folder):
            return read(folder)
    except UserError as error:
        return None, [str(error)]


def require_same_or_named(read: Read, right: Any, folder: SweepFolder, file: Path) -> Any:
    """Require that an answer is right, or that a line names the damaged file; return the answer."""
    answer, lines = answered(read, folder)
    place = str(file.parent.relative_to(folder.path))
    is_named = any(file.name in line and place in line for line in lines)
    assert answer == right or is_named, f"{read.__name__}: {file}: {lines}"
    assert not any("\n" in line for line in lines)
    return answer


WEIGHT_READS: list[Read] = [model_answer, tune_answer]
"""These take most of the time, and read records as the others do."""


def reads_beside(other: SweepFolder) -> list[Read]:
    """Return every way to read a sweep; the last two write into it."""
    first = [status_answer, report_answer, result_answer, comparison_with(other), waiting_answer]
    return [*first, *WEIGHT_READS, resume_answer, request_answer]


def places_of_weights(folder: SweepFolder) -> list[Path]:
    """Return the folders that hold what samples are drawn of."""
    return [recommended.find(folder).files.path, folder.models["recommended"]]


def right_answers(reads: list[Read], folder: SweepFolder, whole: Whole) -> list[Any]:
    answers = []
    for read in reads:
        answers.append(read(folder)[0])
        whole.restore()
    return answers


@pytest.mark.parametrize("damages", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_goes_unnoticed_and_none_makes_another_recommendation(folder, other, whole, damages):
    rng = random.Random(0)
    kinds = whole.of_each_kind()
    reads = reads_beside(other)
    expected = right_answers(reads, folder, whole)
    (recommendation,) = recommendations(expected[1])
    places = places_of_weights(folder)
    for _ in range(damages):
        file = rng.choice(kinds[rng.choice(sorted(kinds))])
        damage(file, whole.content[file], rng)
        has_weights = any(file.is_relative_to(place) for place in places)
        for read, right in zip(reads, expected, strict=True):
            if read in WEIGHT_READS and not has_weights:
                continue
            answer = require_same_or_named(read, right, folder, file)
            if read is report_answer:
                assert recommendations(answer) <= {recommendation}
        whole.restore()


@pytest.mark.slow
def test_a_report_can_be_written_whichever_file_is_damaged(folder, whole):
    rng = random.Random(1)
    for files in whole.of_each_kind().values():
        file = rng.choice(files)
        damage(file, whole.content[file], rng)
        _, lines = answered(lambda own: sweep.write_results(own, SPACE), folder)
        assert not lines or any(file.name in line for line in lines)
        whole.restore()


@pytest.mark.slow
def test_a_folder_in_place_of_a_file_is_named(folder, other, whole):
    reads = reads_beside(other)
    expected = right_answers(reads, folder, whole)
    for files in whole.of_each_kind().values():
        file = files[0]
        file.unlink()
        file.mkdir()
        for read, right in zip(reads, expected, strict=True):
            require_same_or_named(read, right, folder, file)
        if file.is_dir():
            shutil.rmtree(file)
        whole.restore()


def write_models(folder: SweepFolder) -> list[str]:
    rows = leaderboard.rank(records.read_as_observer(folder).trials, SPACE)
    return winner.write_models(folder, rows, SPACE)


def test_a_damaged_model_of_a_repeat_is_named_and_not_copied(folder, whole):
    config = recommended.find(folder).files.model / "unet" / "config.json"
    config.write_bytes(whole.content[config].replace(b"1e-05", b"1e-04"))
    target = folder.models["recommended"]
    shutil.rmtree(target)
    (problem,) = write_models(folder)
    assert str(config) in problem
    assert not target.exists()


def test_a_damaged_copy_of_the_model_is_named_and_left_to_its_owner(folder, whole):
    weights_file = folder.models["recommended"] / "unet" / "diffusion_pytorch_model.safetensors"
    damaged = whole.content[weights_file][:-1] + b"?"
    weights_file.write_bytes(damaged)
    (problem,) = write_models(folder)
    assert str(weights_file) in problem
    assert "remove" in problem
    assert weights_file.read_bytes() == damaged


def test_a_copy_of_the_model_that_does_not_say_whose_it_is_is_written_again(folder, whole):
    target = folder.models["recommended"]
    identity = winner.identity_of(target)
    (target / winner.MLMODEL).write_bytes(b"metadata:\n  scrimp.model: \xff\n")
    assert write_models(folder) == []
    assert winner.identity_of(target) == identity


NOT_FILES = {"label"}


def places_of(files: SweepFolder | WorkFolder) -> dict[str, list[Path]]:
    """Return what `store.py` names in a folder, by the property that names it."""
    names = [name for name in dir(type(files)) if isinstance(getattr(type(files), name), property)]
    places: dict[str, list[Path]] = {}
    for name in set(names) - NOT_FILES:
        value = getattr(files, name)
        places[name] = [value] if isinstance(value, Path) else list(value)
    return places


def test_the_made_up_sweep_has_every_kind_of_file_that_the_store_names(folder):
    chosen = recommended.find(folder).files
    assert isinstance(chosen, RepeatFolder)
    (preparation,) = folder.preparations()
    of_sweep = places_of(folder)
    of_sweep["models"] = [folder.models["recommended"]]  # the best one is there only if it is another
    for named in (of_sweep, places_of(preparation), places_of(chosen)):
        missing = {name: str(path) for name, paths in named.items() for path in paths if not path.exists()}
        assert not missing
    assert len(folder.requests()) == 2
    assert (chosen.path / store.TUNED_FILE).exists()
    assert (chosen.path / "environments.json").exists()


def recommendations(answer: Any) -> set[int]:
    return {number for number, state, _ in answer[0] if state == "recommended"} if answer else set()
