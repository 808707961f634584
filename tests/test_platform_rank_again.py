"""A sweep that has been trained is ranked by other goals, from its records alone."""

import re
import statistics
from pathlib import Path

import pytest
from made_up_sweep import make_space, write_sweep

from scrimp_platform.cli import main
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", make_space(prefer="best"))


def contents(folder: SweepFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def report(capsys: pytest.CaptureFixture[str], folder: SweepFolder, *options: str) -> str:
    main.main(["report", str(folder.path), *options])
    return " ".join(capsys.readouterr().out.split())


def test_a_constraint_makes_trials_infeasible_and_names_the_best_of_the_others(folder, capsys):
    first, second = leaderboard.rank(records.read_records(folder).trials, make_space(prefer="best"))[:2]
    plain = [[repeat.score("fd_classifier", 60.0) for repeat in row.counted] for row in (first, second)]
    limit = statistics.fmean(map(statistics.fmean, plain))

    before = contents(folder)
    text = report(capsys, folder, "--constraint", f"fd_classifier>={limit}")
    assert contents(folder) == before
    assert " infeasible " in text
    assert f"minimize fd_classifier, fd_classifier at least {limit:.4g}" in text
    assert text.endswith(f"recipe {folder.repeat(second.number, 0).recipe}")


def test_a_constraint_may_be_an_upper_limit(folder, capsys):
    rows = leaderboard.rank(records.read_records(folder).trials, make_space(prefer="best"))
    costs = {row.number: row.counted[0].score("parameters", 60.0) for row in rows if row.fresh}
    limit = min(costs.values())
    text = report(capsys, folder, "--constraint", f"parameters<={limit}")
    assert f"parameters at most {limit:.4g}" in text
    recommended = int(re.findall(r"trials/(\d+)/repeat-0/recipe", text)[-1])
    assert costs[recommended] == limit


def test_another_objective_ranks_by_it(folder, capsys):
    text = report(capsys, folder, "--objective", "parameters:minimize")
    space = make_space(objectives={"parameters": "minimize"})
    rows = leaderboard.rank(records.read_records(folder).trials, space)
    first = rows[0]
    assert first.summaries["parameters"].mean == min(row.summaries["parameters"].mean for row in rows if row.fresh)
    assert f"recipe {folder.repeat(first.number, 0).recipe}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constraint", "memorized_fraction=0.1"], "write it as 'SCORE<=LIMIT'"),
        (["--constraint", "memorized_fraction<=few"], "write it as 'SCORE<=LIMIT'"),
        (["--constraint", "memorized_fraction<=nan"], "write it as 'SCORE<=LIMIT'"),
        (["--constraint", "quality<=1"], "quality: was not measured in this sweep"),
        (["--constraint", "kd_classifier<=1"], "was not measured in this sweep"),
        (["--objective", "fd_classifier"], "SCORE:minimize or SCORE:maximize"),
    ],
)
def test_goals_that_make_no_sense_are_refused_in_a_line(folder, capsys, options, message):
    with pytest.raises(SystemExit) as ending:
        main.main(["report", str(folder.path), *options])
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
