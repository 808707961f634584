"""What the benchmark of post-hoc EMA counts: hours, what is found, and what it prints."""

import itertools
import json
import math

import pytest

from benchmarks import posthoc
from benchmarks.posthoc import GUIDANCE, STEPS, UNSEARCHED, WIDTHS, Extent
from scrimp_platform.search import recording

SETTINGS = list(itertools.product(WIDTHS, GUIDANCE, STEPS))
EXTENT = Extent(spaces=("ld-diffusion-small",), recipes=4, pairs=3)
RUNGS = ("10", "30")


def record(number, chosen_by, truth):
    """Return a recipe that took 60 and 180 seconds of training, and 2 of each scoring."""
    own = [
        {
            "setting": list(setting),
            "scores": {"10": 50.0 + number, "30": chosen_by[place]},
            "seconds": dict.fromkeys(RUNGS, 2.0),
            "truth": truth[place],
        }
        for place, setting in enumerate(SETTINGS)
    ]
    values = {"mafp.p1": 0.1 * number, "mafp.p2": 0.1, "patches.real_p": 1.0, "ood.weight": 0.0}
    return {
        "values": values,
        "ending": "finished",
        "train_seconds": {"10": 60.0, "30": 180.0},
        "trained_seconds": 180.0,
        "settings": own,
    }


def flat(best, place=3):
    """Return scores of all settings that are 30, except for one of them."""
    return [best if number == place else 30.0 for number in range(len(SETTINGS))]


@pytest.fixture
def records():
    """Four recipes: a good one, one whose choice was lucky, one that is bad, and one that diverged."""
    diverged = record(3, flat(1.0), flat(1.0)) | {
        "ending": "diverged: loss is nan",
        "settings": [],
        "train_seconds": {},
    }
    return [
        record(0, flat(10.0), flat(10.4)),
        record(1, flat(9.0), flat(10.0, place=4)),
        record(2, flat(28.0), flat(28.0)),
        diverged,
    ]


def test_inside_every_setting_is_a_training_of_its_own(records):
    inside = posthoc.inside(EXTENT.space(EXTENT.spaces[0]), records)
    assert len(inside.trials) == 4 * len(SETTINGS)
    # The true best is 10: that one, and the one of 10.4, are within 5% of it.
    assert inside.good == {3, len(SETTINGS) + 4}
    params = inside.trials[3].params
    assert (params["ema.halflife_kimg"], params["sampler.guidance"], params["sampler.steps"]) == SETTINGS[3]

    first = inside.trials[3].repeats[0]
    assert recording.hours(first, 10.0) == pytest.approx(62 / 3600)
    assert recording.hours(first, 30.0) == pytest.approx(184 / 3600)


def test_outside_all_settings_are_scored_at_the_end_and_the_lucky_choice_is_not_good(records):
    outside = posthoc.outside(EXTENT.space(EXTENT.spaces[0]), records)
    assert len(outside.trials) == 4
    assert outside.good == {0}  # the second would be chosen by 9.0, but is 30 by other samples

    first = outside.trials[0].repeats[0]
    assert recording.hours(first, 10.0) == pytest.approx(62 / 3600)
    assert recording.hours(first, 30.0) == pytest.approx((180 + 2 + 2 * len(SETTINGS)) / 3600)
    assert first.score(posthoc.OBJECTIVE, 30.0) == 10.0
    assert outside.trials[3].status == "failed"
    assert recording.hours(outside.trials[3].repeats[0], 30.0) == pytest.approx(180 / 3600)


def test_pairs_are_replayed_once_and_the_table_has_their_medians(records, tmp_path, monkeypatch):
    monkeypatch.setattr(posthoc, "METHOD", "random")
    name = EXTENT.spaces[0]
    for number, own in enumerate(records):
        file = posthoc._record_file(tmp_path, name, number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(own))
    posthoc.replay_missing(name, EXTENT, tmp_path)
    files = sorted((tmp_path / name).glob("pair-*.json"))
    assert len(files) == 3
    hours = [json.loads(file.read_text())["hours"] for file in files]
    # Without halving every recipe is trained to the end at once: whole trainings up to the good one.
    whole = (180 + 2 + 2 * len(SETTINGS)) / 3600
    for pair in hours:
        begun = [count * whole + failed * 180 / 3600 for count in (1, 2, 3) for failed in (0, 1)]
        assert min(abs(pair["outside"] - spent) for spent in begun) < 1e-3

    files[0].write_text(json.dumps(json.loads(files[0].read_text()) | {"hours": {"inside": 2.0, "outside": 1.0}}))
    posthoc.replay_missing(name, EXTENT, tmp_path)
    assert json.loads(files[0].read_text())["hours"]["inside"] == 2.0  # it was not replayed again

    for file in files:
        file.write_text(json.dumps({"of": "", "hours": {"inside": 2.0, "outside": 1.0}}))
    *_, line = posthoc.table_lines(EXTENT, tmp_path)
    assert line.split() == [name, "4", "2.000", "1.000", "0.50"]


def test_the_usual_setting_is_one_of_those_that_are_scored():
    assert UNSEARCHED in SETTINGS
    assert math.isclose(posthoc.NEAR, 0.05)


@pytest.mark.slow
def test_a_rehearsal_trains_scores_and_replays(tmp_path, capsys):
    posthoc.main(posthoc.BRIEF, tmp_path)
    assert len(list(tmp_path.glob("*/recipe-*.json"))) == posthoc.BRIEF.recipes
    assert len(list(tmp_path.glob("*/pair-*.json"))) == posthoc.BRIEF.pairs
    said = capsys.readouterr().out
    assert posthoc.BRIEF.spaces[0] in said
    posthoc.main(posthoc.BRIEF, tmp_path)  # nothing is left to do
    assert "s of one core" not in capsys.readouterr().out
