"""The folder of a sweep is the truth: it may be moved, lose its journal and be damaged; nothing is lost silently."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from made_up_sweep import make_space, train_all, write_sweep

from scrimp_platform import store, sweep
from scrimp_platform.cli import commands, status
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import Storage, SweepFolder
from scrimp_trainers.common.errors import DamagedRecord

BUDGET = {"trials": 12, "leaders": 2, "repeats": 3, "rungs_kimg": [10, 20]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", make_space(budget=BUDGET))


@pytest.fixture
def folder(original, tmp_path) -> SweepFolder:
    return SweepFolder(shutil.copytree(original.path, tmp_path / "sweep"))


def digests(folder: SweepFolder, trials: int) -> dict[Path, str]:
    files = (file for number in range(trials) for file in folder.trial(number).rglob("*") if file.is_file())
    return {file.relative_to(folder.path): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def resume(folder: SweepFolder, **budget) -> tuple[Ledger, list[str]]:
    said: list[str] = []
    return Ledger(folder, make_space(budget=BUDGET | budget), 5, 1, said.append), said


def flip(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def answer(folder: SweepFolder) -> tuple[list, str, list[str]]:
    known, space = records.read_as_observer(folder), records.space_of(folder)
    rows = leaderboard.rank(known.trials, space)
    return [(row.number, row.status, row.summaries) for row in rows], leaderboard.verdict(rows, space), known.problems


def raced(folder: SweepFolder) -> records.Trial:
    return next(trial for trial in records.read_records(folder).trials if len(trial.repeats) == 3)


ANEW = "study.journal does not match the trials on disk: rebuilt from them"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Twelve trials without a race, and the values of twelve more when nothing has happened to them."""
    folder = write_sweep(tmp_path_factory.mktemp("runs") / "sweep", make_space(budget=BUDGET | {"repeats": 1}))
    undisturbed = SweepFolder(shutil.copytree(folder.path, folder.path.parent / "undisturbed"))
    ledger, said = resume(undisturbed, trials=24, repeats=1)
    assert said == []
    train_all(ledger)
    return folder, [trial.params for trial in ledger.trials]


@pytest.mark.parametrize("journal", ["whole", "lost", "cut", "damaged", "of another sweep"])
def test_a_renamed_sweep_gets_more_trials_and_keeps_its_own(searched, tmp_path, journal):
    original, params = searched
    folder = SweepFolder(shutil.copytree(original.path, tmp_path / "renamed"))
    before = digests(folder, 12)
    if journal == "lost":
        folder.journal.unlink()
    elif journal == "cut":
        folder.journal.write_bytes(folder.journal.read_bytes()[:3000])
    elif journal == "damaged":
        flip(folder.journal, b'"op_code":4', b'"op_code":\xff')
    elif journal == "of another sweep":
        space = make_space(budget=BUDGET | {"repeats": 1})
        shutil.copy(write_sweep(tmp_path / "other", space, seed=6).journal, folder.journal)

    ledger, said = resume(folder, trials=24, repeats=1)
    assert said == ([] if journal == "whole" else [ANEW])
    train_all(ledger)
    assert digests(folder, 12) == before
    assert [trial.params for trial in ledger.trials] == params
    assert resume(folder, trials=24, repeats=1)[1] == []


def test_a_journal_lost_in_the_middle_of_a_sweep_changes_nothing(original, tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget=BUDGET), most=7)
    folder.journal.unlink()
    ledger, said = resume(folder)
    assert said == [ANEW]
    train_all(ledger)
    assert [(trial.params, trial.status) for trial in ledger.trials] == [
        (trial.params, trial.status) for trial in records.read_records(original).trials
    ]


def test_skipped_proposals_stay_counted_without_the_journal(tmp_path):
    search = {
        "conditioning.classes": {"choice": [False, True]},
        "conditioning.label_drop": {"uniform": [0.1, 0.2]},
        "sampler.guidance": {"choice": [1.0, 3.0]},
    }
    space = make_space(budget=BUDGET)
    space = type(space).model_validate(space.model_dump() | {"search": search})
    (tmp_path / "sweep").mkdir()
    folder = SweepFolder(tmp_path / "sweep")
    ledger = Ledger(folder, space, 5, 1, lambda _: None)
    train_all(ledger)
    skipped = records.read_records(folder).skipped
    assert skipped
    folder.journal.unlink()
    again = Ledger(folder, space, 5, 1, lambda _: None)
    assert again.propose() is None
    assert records.read_records(folder).skipped == skipped


DAMAGES = {
    "a flipped score": lambda files: flip(files.metrics, b'"fd_classifier": ', b'"fd_classifier": 1'),
    "no metrics": lambda files: files.metrics.unlink(),
    "metrics cut at a line": lambda files: files.metrics.write_bytes(files.metrics.read_bytes().rpartition(b"{")[0]),
    "a flipped seed": lambda files: flip(files.record, b'"seed": ', b'"seed": 1'),
    "no record": lambda files: files.record.unlink(),
    "no folder": lambda files: shutil.rmtree(files.path),
    "a flipped recipe": lambda files: flip(files.recipe, b"lr: 0.0", b"lr: 0.1"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_repeat_is_named_and_left_out_until_it_is_trained_again(folder, damage, number):
    rows, verdict, _ = answer(folder)
    best = rows[0][0]
    files = folder.repeat(best, number)
    damage(files)
    damaged, uncertain, problems = answer(folder)
    (problem,) = problems
    assert problem.startswith(f"{files.path}/")
    assert problem.endswith(f"; repeat {best}.{number} is left out")
    assert "recommended" not in {status for _, status, _ in damaged}
    assert " leads " in uncertain

    ledger, said = resume(folder)
    assert said[0] == problem
    assert said[1] == f"retraining damaged repeat {best}.{number} from its last checkpoint"
    train_all(ledger)
    assert answer(folder) == (rows, verdict, [])


def test_the_best_recipe_stays_while_its_records_are_damaged(folder):
    space = records.space_of(folder)
    sweep.conclude(folder, space, "complete")
    before = folder.best_recipe.read_bytes()
    best = answer(folder)[0][0][0]
    for number in range(3):
        shutil.rmtree(folder.repeat(best, number).path)
    sweep.conclude(folder, space, "complete")
    assert answer(folder)[0][0][0] != best
    assert folder.best_recipe.read_bytes() == before
    assert f"repeat {best}.0 is left out" in folder.report.read_text()


def test_a_damaged_trial_is_named_left_out_and_replaced(folder):
    rows, _, _ = answer(folder)
    best = rows[0][0]
    (folder.trial(best) / store.TRIAL_FILE).unlink()
    before = digests(folder, 12)
    damaged, verdict, (problem,) = answer(folder)
    assert problem == f"{folder.trial(best) / store.TRIAL_FILE}: missing; trial {best} is left out"
    assert (best, "damaged") in [row[:2] for row in damaged]
    assert " wins" not in verdict
    ledger, said = resume(folder)
    assert said[0] == problem
    train_all(ledger)
    assert len(ledger.trials) == 13
    kept = digests(folder, 12)
    assert {name for name in before if kept[name] != before[name] and name.name != store.TRIAL_FILE} == set()


def test_trials_that_are_gone_are_named(folder):
    for number in (3, 11):
        shutil.rmtree(folder.trial(number))
    problems = answer(folder)[2]
    assert [problem.rpartition("; ")[2] for problem in problems] == ["trial 3 is left out", "trial 11 is left out"]


def test_a_sweep_without_its_description_is_not_begun_anew(folder):
    folder.description.unlink()
    with pytest.raises(DamagedRecord, match=r"sweep\.json: missing; restore it"):
        records.sweep_description(folder)


@pytest.mark.parametrize("foreign", ['{"name": "somebody else\'s"}', "[1]", "{", '{"crc32": "a3"}'])
def test_a_foreign_sweep_stops_no_other(folder, foreign):
    strange = SweepFolder(folder.path.parent / "strange")
    strange.path.mkdir()
    strange.description.write_text(foreign)
    standings, complete, problems = status.read_storage(Storage(folder.path.parent))
    assert (standings, complete) == ([], ["sweep"])
    assert [problem.partition(": ")[0] for problem in problems] == [str(strange.description)]
    with pytest.raises(DamagedRecord, match=r"strange/sweep\.json"):
        commands.report(strange.path)


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(folder):
    strange = SweepFolder(folder.path.parent / "strange")
    strange.path.mkdir()
    os.mkfifo(strange.description)
    _, complete, problems = status.read_storage(Storage(folder.path.parent))
    assert complete == ["sweep"]
    assert problems == [f"{strange.description}: cannot be read (not a regular file)"]
