"""What more trials are expected to gain: by the model, and the end of a search from which too little is to be had."""

from pathlib import Path

import numpy as np
import pytest
from made_up_rows import make_row
from test_platform_ledger import open_ledger, run_all
from test_platform_proposals import Search
from test_platform_race import make_space

from scrimp_platform.plan import SweepOptions, resolve_space
from scrimp_platform.search import gain
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError


def trials_scored(score, count: int = 14, **fields) -> tuple[list[Trial], Space]:
    """Return trials at learning rates from 1e-4 to 1e-2 with a score that depends on them, and their space."""
    space = make_space(search={"optimizer.lr": {"loguniform": [1e-4, 1e-2]}}, **fields)
    trials = []
    for number, rate in enumerate(np.geomspace(1e-4, 1e-2, count).tolist()):
        row = make_row(fd_classifier=score(rate), seconds=360.0)
        repeat = Repeat(number, 0, 0, "search", "finished", rungs={60.0: row}, spent=0.5)
        trials.append(Trial(number, {"optimizer.lr": rate}, "complete", [repeat]))
    return trials, space


def gain_of(trials: list[Trial], space: Space) -> gain.Gain | None:
    """The gain of a sweep without earlier ones."""
    return gain.of_more_trials(trials, space, SweepFolder(Path("no such folder")))


def bowl(rate: float) -> float:
    return 5.0 * float(np.exp(abs(np.log10(rate) + 3)))


def test_nothing_is_said_of_a_few_trials_or_without_the_curve_model():
    trials, space = trials_scored(bowl)
    assert gain_of(trials, space)
    assert gain_of(trials[:9], space) is None
    assert gain_of(*trials_scored(bowl, proposals="tpe")) is None


def test_a_gain_is_a_share_whatever_the_unit_of_the_score():
    one = gain_of(*trials_scored(bowl))
    other = gain_of(*trials_scored(lambda rate: 1000 * bowl(rate)))
    assert one
    assert other
    assert other.share == pytest.approx(one.share, rel=0.05)
    assert other.probability == pytest.approx(one.probability, abs=0.01)


def test_ten_more_trials_take_ten_times_the_mean_device_hours():
    trials, space = trials_scored(bowl)
    stated = gain_of(trials, space)
    assert stated
    assert stated.hours == pytest.approx(10 * np.mean([trial.repeats[0].device_hours for trial in trials]))


def test_less_is_expected_the_better_a_space_is_known():
    """Halves of a smooth bowl: where its bottom has not been tried, more is to gain than where it has."""
    trials, space = trials_scored(lambda rate: 5.0 + (np.log10(rate) + 3) ** 2, count=30)
    with_bottom = gain_of(trials, space)
    without = gain_of([trial for trial in trials if trial.params["optimizer.lr"] < 5e-4], space)
    assert with_bottom
    assert without
    assert with_bottom.share < 0.002
    assert without.share > 5 * with_bottom.share
    assert without.probability > with_bottom.probability


def test_a_search_ends_when_too_little_is_to_gain_and_the_race_follows(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    budget = {"trials": 60, "rungs_kimg": [20, 60], "leaders": 2, "repeats": 3, "until_gain": "3%"}
    space = make_space(budget=budget)
    decisions: list[str] = []
    run_all(folder, open_ledger(folder, space, say=decisions.append))

    ledger = open_ledger(folder, space)
    assert gain.LEAST_TRIALS <= len(ledger.trials) < 60
    assert sum("ending the search: 10 more trials" in decision for decision in decisions) == 1
    assert any(repeat.phase == "race" for repeat in ledger.repeats)
    assert not any(trial.unfinished for trial in ledger.trials)
    assert ledger.propose() is None  # a resumed sweep finds it complete

    stated = gain.of_more_trials(ledger.trials, space, folder)
    assert stated
    assert stated.share < 0.03


def test_the_share_is_a_percentage_or_a_number_and_needs_the_curve_model():
    assert resolve_space(SweepOptions("quickstart", until_gain="0.5%")).budget.until_gain == pytest.approx(0.005)
    assert resolve_space(SweepOptions("quickstart", until_gain=0.02)).budget.until_gain == 0.02
    for wrong in ("half", "0", "-1%", "100%", "nan", "%"):
        with pytest.raises(UserError, match="until_gain"):
            resolve_space(SweepOptions("quickstart", until_gain=wrong))
    with pytest.raises(UserError, match="only proposals: curves"):
        make_space(proposals="tpe", budget={"until_gain": 0.01})


def test_a_proposal_is_what_search_and_outlook_agree_on():
    """The first of the next trials is the one that the search would propose: one rule for both."""
    from scrimp_platform.search import curve_proposals, curves

    search = Search("curves")
    for _ in range(12):
        search.propose()
    learned = curves.learn(search.trials, search.space)
    assert learned
    _, coming = curve_proposals.next_points(learned, 3, seed=7)
    values = curve_proposals.propose(learned, 7)
    np.testing.assert_allclose(coming[0], learned.encoding.points(learned.encoding.shares([values]))[0], atol=0.02)
    assert len(np.unique(coming, axis=0)) == 3
