"""A storage that is removed or unmounted in the middle of a sweep, and one that belongs to somebody else."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from made_up_sweep import make_space, write_sweep

from scrimp_platform import plan, storage_loss, store, worker
from scrimp_platform.cli import main
from scrimp_platform.search import tune_loop
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import SweepFolder
from scrimp_trainers.data import manifest

NOBODY = 65534


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return write_sweep(tmp_path / "runs" / "sweep", make_space(budget={"trials": 3}), most=2)


def status_of(action, capsys) -> tuple[int, str]:
    """Run a command that does this; return its exit status and what it printed as an error."""

    class Command:
        def main(self, *_args, **_options):
            action()

    with pytest.raises(SystemExit) as ended:
        main.main([], Command())  # type: ignore[arg-type]
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def test_a_storage_that_goes_in_the_middle_ends_the_sweep_with_one_line_and_is_not_made_anew(folder, capsys):
    ledger = Ledger(folder, make_space(budget={"trials": 3}), 5, 1, lambda _: None)
    repeat = ledger.propose()
    assert repeat
    shutil.rmtree(folder.path)

    def drive() -> None:
        with storage_loss.explained(folder):
            ledger.finish(repeat, "its worker died")

    code, error = status_of(drive, capsys)
    assert (code, error.count("\n")) == (1, 1)
    assert error == (
        f"scrimp: the storage is gone: {folder.path}: No such file or directory; "
        "once it is back, the same command resumes\n"
    )
    assert not folder.path.exists()


def test_a_ledger_that_cannot_write_ends_the_search(folder):
    ledger = Ledger(folder, make_space(budget={"trials": 3}), 5, 1, lambda _: None)
    limits = tune_loop.Limits(ledger)
    searcher = tune_loop.RepeatSearcher(ledger, lambda: 2, list, str, limits.end_after_error)
    handed_out = searcher.suggest("tune")
    assert isinstance(handed_out, dict)
    assert not limits.stop_all()
    shutil.rmtree(folder.path)
    assert searcher.suggest("another") is None
    searcher.on_trial_complete("tune", {worker.FAILURE: "its worker died"})
    assert limits.stop_all()
    assert isinstance(limits.failure, FileNotFoundError)
    assert not folder.path.exists()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_storage_that_no_longer_answers_ends_the_sweep_with_one_line(folder, number):
    with pytest.raises(storage_loss.StorageLost, match=os.strerror(number)), storage_loss.explained(folder):
        raise OSError(number, os.strerror(number), "trials/0001")


def test_other_errors_stay_what_they_are(folder):
    with pytest.raises(ZeroDivisionError), storage_loss.explained(folder):
        raise ZeroDivisionError


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_sweep_of_another_user_is_one_line(capsys):
    space = make_space(budget={"trials": 1})
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders let nobody else in
        Path(place).chmod(0o777)
        folder = write_sweep(Path(place) / "sweep", space)
        facts = manifest.load_manifest(Path(place) / "datasets" / "digits")
        os.seteuid(NOBODY)
        try:
            resumed = status_of(lambda: plan._check_resume(folder, space, facts, 5), capsys)
            reported = status_of(lambda: store.write_atomic(folder.report, "page"), capsys)
        finally:
            os.seteuid(0)
    assert resumed == (
        2,
        f"scrimp: {folder.path}: belongs to another user and cannot be written; use another --name\n",
    )
    assert reported[0] == 2
    assert re.fullmatch(r"scrimp: .* Permission denied: .*; ask its owner, or choose another place\n", reported[1])
