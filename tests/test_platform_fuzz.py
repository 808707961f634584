"""A thousand flips and truncations in the files of a finished sweep: each read answers the same or names the file."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import make_space, write_sweep

from scrimp_platform import storage_loss
from scrimp_platform.cli import status
from scrimp_platform.report import importance, leaderboard, page
from scrimp_platform.search import records
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import Storage, SweepFolder
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError

SPACE = make_space(proposals="tpe", budget={"trials": 6, "leaders": 2, "repeats": 4, "rungs_kimg": [4, 8]})
SEED = 3

Answer = tuple[list[Any], list[str]]
"""What was read, and the lines that name damaged files."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> SweepFolder:
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", SPACE, reason="interrupted", seed=SEED)


def contents(folder: SweepFolder) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.path.rglob("*")) if file.is_file()}


def restore(folder: SweepFolder, whole: dict[Path, bytes]) -> None:
    for file in contents(folder).keys() - whole.keys():
        file.unlink()
    for file, content in whole.items():
        if not file.exists() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def damage(file: Path, content: bytes, rng: random.Random) -> None:
    changed = bytearray(content)
    if content and rng.random() < 0.7:
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del changed[rng.randrange(len(content) + 1) :]
    file.write_bytes(changed)


def status_answer(folder: SweepFolder) -> Answer:
    standings, complete, problems = status.read_storage(Storage(folder.path.parent))
    named = [problem for standing in standings for problem in standing.problems]
    return [complete, *((one.reason, one.trials) for one in standings)], [*problems, *named]


def report_answer(folder: SweepFolder) -> Answer:
    try:
        space = records.space_of(folder)
    except UserError as error:
        return [], [str(error)]
    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    curves = [metrics_log.read_rows(folder.repeat(repeat.trial, repeat.repeat).metrics) for repeat in known.repeats]
    ranking = [(row.number, row.status, row.summaries) for row in rows]
    shares = importance.field_importances(known.trials, space)
    return [ranking, leaderboard.verdict(rows, space), curves, shares], known.problems


def resume_answer(folder: SweepFolder) -> Answer:
    said: list[str] = []
    ledger = Ledger(folder, SPACE, SEED, 1, said.append)
    return [(trial.number, trial.params, trial.status, trial.repeats) for trial in ledger.trials], said


@pytest.mark.parametrize("damages", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_goes_unnoticed_and_none_makes_another_recommendation(folder, damages):
    rng = random.Random(0)
    reads = (status_answer, report_answer, resume_answer)
    expected = [read(folder)[0] for read in reads]
    (recommended,) = recommendations(expected[1])
    whole = contents(folder)
    files = list(whole)
    for count in range(damages):
        file = rng.choice(files)
        damage(file, whole[file], rng)
        if count % 100 == 0:
            write_report(folder)
        for read, right in zip(reads, expected, strict=True):
            answer, problems = read(folder)
            assert answer == right or any(file.name in problem for problem in problems), f"{read.__name__}: {file}"
            if read is report_answer:
                assert recommendations(answer) <= {recommended}
        restore(folder, whole)


def test_a_folder_in_place_of_a_file_is_named(folder):
    reads = (status_answer, report_answer, resume_answer)
    expected = [read(folder)[0] for read in reads]
    whole = contents(folder)
    one_of_each_name = {file.name: file for file in whole}
    for file in one_of_each_name.values():
        file.unlink()
        file.mkdir()
        for read, right in zip(reads, expected, strict=True):
            try:
                with storage_loss.explained(folder):
                    answer, problems = read(folder)
            except UserError as error:
                answer, problems = None, [str(error)]
            assert answer == right or any(file.name in problem for problem in problems), f"{read.__name__}: {file}"
        file.rmdir()
        restore(folder, whole)


def recommendations(answer: list[Any]) -> set[int]:
    return {number for number, state, _ in answer[0] if state == "recommended"} if answer else set()


def write_report(folder: SweepFolder) -> None:
    with contextlib.suppress(UserError):
        page.write_report(folder)
