"""`budget.rung_samples`: lower rungs score fewer samples, and no such score is compared with one of all."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from made_up_rows import make_row
from made_up_sweep import TREE, make_space, write_sweep

from scrimp_platform import plan, store
from scrimp_platform.cluster import Node, place
from scrimp_platform.plan import SweepOptions
from scrimp_platform.report import leaderboard, page, plots, sections
from scrimp_platform.search import budget_changes, estimate, halving, order, records, warm_start
from scrimp_platform.search.estimate import Speed
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_platform.sweep_record import sweep_record
from scrimp_platform.tracking import columns
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

FEWER = {"rung_samples": 100}
SPACE = make_space(budget=FEWER)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return write_sweep(tmp_path_factory.mktemp("fewer") / "sweep", SPACE)


def test_only_the_last_rung_scores_all_samples():
    assert [SPACE.samples_at(kimg) for kimg in (10, 20, 40, 60)] == [100, 100, 100, 1000]
    assert [make_space().samples_at(kimg) for kimg in (10, 60)] == [1000, 1000]
    assert Space.model_validate(SPACE.model_dump(mode="json")) == SPACE


@pytest.mark.parametrize(
    ("samples", "complaint"),
    [
        (1001, "budget.rung_samples 1001: is more than scoring.samples 1000, which the last rung"),
        (19, "rung_samples"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(samples: int, complaint: str):
    with pytest.raises(UserError, match=complaint):
        make_space(budget={"rung_samples": samples})


def test_class_wise_goals_need_enough_samples_at_every_rung(scored_digits, tmp_path: Path):
    goals = {"objectives": {"fd_classifier_class_mean": "minimize"}, "override": {"conditioning": {"classes": True}}}
    options = SweepOptions(data=str(scored_digits.folder), storage=tmp_path, space=make_space(budget=FEWER, **goals))
    with pytest.raises(UserError, match=r"^budget\.rung_samples 100: fd_classifier_class_mean: needs 50 samples"):
        plan.make_plan(options)


def test_a_sweep_from_before_goes_on_and_no_other_number_is_taken(scored_digits, tmp_path: Path):
    def options(space: Space) -> SweepOptions:
        return SweepOptions(data=str(scored_digits.folder), storage=tmp_path, space=space)

    the_plan = plan.make_plan(options(make_space()))
    record = sweep_record(the_plan)
    del record["space"]["budget"]["rung_samples"]
    store.write_json(the_plan.folder.description, record)
    assert plan.make_plan(options(make_space())).resumed
    with pytest.raises(UserError, match=r"exists and differs: space\.budget\.rung_samples was None, is 100; use anoth"):
        plan.make_plan(options(SPACE))
    with pytest.raises(UserError, match=r"budget\.rung_samples: cannot change in a sweep that has begun"):
        budget_changes.parse("budget.rung_samples=100")


def test_a_score_of_fewer_samples_costs_its_share(scored_digits, tmp_path: Path):
    budget = {"trials": 9, "repeats": 3, "rungs_kimg": [10, 30], "reduction": 3, "rung_samples": 250}
    space = make_space(budget=budget)
    # 9 trials are scored with a quarter of the samples, and 3 with all.
    assert halving.search_work(9, space) == (9 * 10 + 3 * 20, 9 / 4 + 3)

    the_plan = plan.make_plan(SweepOptions(data=str(scored_digits.folder), storage=tmp_path, space=space))
    speed = Speed(seconds_per_kimg=1.0, seconds_per_score=8.0, bytes=100)
    cost = estimate.estimate_sweep(the_plan, place((Node("here", 1, 0),), None), speed)
    # 3 leaders race with 2 further repeats of 30 kimg and a score and a quarter each.
    assert cost.hours == pytest.approx((150 + 6 * 30 + 8 * (5.25 + 6 * 1.25)) / 3600)


def test_the_time_of_a_score_is_measured_by_samples(tmp_path: Path):
    folder = SweepFolder(tmp_path)
    folder.repeat(0, 0).path.mkdir(parents=True)
    rungs = {kimg: make_row(kimg=kimg, rung=kimg, samples=SPACE.samples_at(kimg)) for kimg in (10.0, 20.0, 40.0)}
    # 60 s of training, and 13 s for a score of all samples and three of a tenth.
    rungs[60.0] = make_row(kimg=60.0, rung=60.0, samples=1000.0, seconds=73.0, images_per_second=1000.0)
    repeat = Repeat(0, 0, 5, "search", "finished", rungs=rungs)
    speed = estimate.measure_repeats(folder, [repeat])
    assert speed
    assert speed.seconds_per_score == pytest.approx(10.0)


def test_a_sweep_finds_as_good_a_recipe_where_lower_rungs_are_too_high_by_the_same(sweep: SweepFolder, tmp_path: Path):
    whole = write_sweep(tmp_path / "whole", make_space())
    known, expected = (records.read_records(folder).trials for folder in (sweep, whole))
    first = [trial.params for trial in known[:10]]
    assert first == [trial.params for trial in expected[:10]]  # those before proposals are learned
    best, best_of_whole = (leaderboard.rank(trials, SPACE)[0] for trials in (known, expected))
    assert abs(best.summaries["fd_classifier"].mean / best_of_whole.summaries["fd_classifier"].mean - 1) < 0.05


def test_plots_show_scores_of_one_number_of_samples(sweep: SweepFolder):
    trials = records.read_records(sweep).trials
    rows = leaderboard.rank(trials, SPACE)

    def shown(samples: int | None) -> set[float]:
        figure = plots.learning_curves(trials, rows, SPACE, "fd_classifier", samples=samples)
        return {x for trace in figure.data for x in trace.x if x is not None}  # type: ignore[attr-defined]

    assert shown(None) == {60}
    assert shown(100) == {10, 20, 40}
    history = plots.history(trials, rows, SPACE, "fd_classifier")
    assert "stopped earlier" not in {trace.name for trace in history.data}  # type: ignore[attr-defined]
    titles = [plot.title for plot in sections.training(sweep, trials, rows, SPACE, [])]
    assert titles == ["fd_classifier over training", "fd_classifier of 100 samples over training", "Training loss"]
    page.write_report(sweep)
    assert "1,000 samples at the last rung and 100 at the others" in sweep.report.read_text()


def test_mlflow_gets_scores_of_fewer_samples_under_names_of_their_own(sweep: SweepFolder):
    row = make_row(rung=20.0, fd_classifier=7.0, parameters=5.0, samples=100, extractor="classifier")
    assert columns.with_names(row, SPACE).scores == {
        "of_100_samples/fd_classifier": 7.0,
        "parameters": 5.0,
        "samples": 100,
        "of_100_samples/extractor": "classifier",
    }
    assert columns.with_names(dataclasses.replace(row, rung=60.0), SPACE).scores == row.scores
    assert columns.with_names(row, make_space()) == row

    rows = leaderboard.rank(records.read_records(sweep).trials, SPACE)
    curves = dict(columns.mean_curves(rows[0], SPACE))
    assert "curve/of_100_samples/fd_classifier_mean" in curves[40.0]
    assert "curve/fd_classifier_mean" in curves[60.0]
    assert not curves[40.0].keys() & curves[60.0].keys()


def test_a_warm_start_takes_no_bias_for_a_broken_constraint():
    """A limit holds for scores of all samples: a stopped trial that is above it only by the bias does not break it."""
    space = make_space(budget={"rungs_kimg": [10, 60]} | FEWER, constraints={"kd_classifier": {"max": 1.0}})
    trials = []
    for number, share in enumerate(np.linspace(0, 1, 12)):
        rungs = {10.0: make_row(rung=10.0, fd_classifier=20 + 10 * share, kd_classifier=3 + 0.2 * share)}
        status = "pruned"
        if number % 2 == 0:
            rungs[60.0] = make_row(rung=60.0, fd_classifier=10 + 10 * share, kd_classifier=0.5 + 0.2 * share)
            status = "complete"
        params = {"optimizer.lr": 1e-3, "network.channels": 16, "ema.halflife_kimg": 1.0}
        repeat = Repeat(number, 0, number, "search", "stopped" if status == "pruned" else "finished", rungs=rungs)
        trials.append(Trial(number, params | {"network.dropout": 0.3 * share}, status, [repeat]))
    ranked = [trial.number for trial in warm_start.ranking(trials, space)]
    # In the order of what they are worth, stopped or not.
    assert np.corrcoef(ranked, range(12))[0, 1] > 0.95
    assert all(order.total_excess(trial.repeats[0].rungs[10.0], space) > 0 for trial in trials)


def test_other_spaces_are_as_they_were():
    assert TREE["budget"].get("rung_samples") is None
    assert all(map(make_space().is_scored_in_full, (10, 20, 40, 60)))
    assert math.isclose(halving.search_work(14, make_space())[1], 14 + 7 + 3 + 3)
