"""Which differences a race can tell, before it is run."""

import math

import numpy as np
import pytest
from made_up_sweep import make_space as made_up_space
from made_up_sweep import write_sweep
from test_platform_race import finished, make_space

from scrimp_platform.search import records, resolution, verdict
from scrimp_platform.store import Storage


@pytest.mark.parametrize(("repeats", "trials"), [(5, 3), (5, 5), (9, 3)])
def test_four_in_five_races_tell_the_difference_that_is_stated(repeats, trials):
    """The second trial is worse than the first by that much, the others by far."""
    space = make_space(budget={"trials": 8, "rungs_kimg": [20, 60], "leaders": trials, "repeats": repeats})
    chance = np.random.default_rng(0)
    noise = 0.05
    means = np.array([0.0, resolution.smallest_gap(space) * noise, *[1.0] * (trials - 2)])
    told_apart = 0
    for _ in range(200):
        scores = np.exp(means[:, None] + noise * chance.normal(size=(trials, repeats)))
        judged = verdict.judge([finished(i, *row) for i, row in enumerate(scores.tolist())], space)
        assert judged
        told_apart += judged.tied == [0]
    assert 0.68 < told_apart / 200 < 0.92


def test_of_arms_all_seeds_count_and_without_fresh_seeds_nothing_is_told():
    assert resolution.smallest_gap(make_space(budget={"rungs_kimg": [60], "repeats": 3})) == pytest.approx(2.487)
    assert resolution.smallest_gap(make_space(budget={"rungs_kimg": [60], "repeats": 1})) == math.inf


def test_the_noise_is_that_of_the_last_sweep_of_the_same_goal_and_data(tmp_path):
    storage = Storage(tmp_path / "runs")
    folder = write_sweep(storage.sweep("one").path, made_up_space())
    description = records.sweep_description(folder)
    content = description["dataset"]["content_hash"]
    space = records.space_of(folder)

    noise = resolution.seed_noise(storage.sweeps(), space, content)
    assert noise
    assert noise.sweep == "one"
    name = next(iter(space.objectives))
    spreads = []
    for trial in records.read_records(folder).trials:
        repeats = records.unbiased_repeats(trial, space, space.budget.rungs_kimg[-1])
        spreads += [np.log([repeat.score(name, space.budget.rungs_kimg[-1]) for repeat in repeats])]
    squares = sum(((own - own.mean()) ** 2).sum() for own in spreads if len(own))
    assert noise.share == pytest.approx(math.sqrt(squares / sum(len(own) - 1 for own in spreads if len(own))))

    assert resolution.seed_noise(storage.sweeps(), space, "another dataset") is None
    other = space.model_copy(update={"scoring": space.scoring.model_copy(update={"samples": 7})})
    assert resolution.seed_noise(storage.sweeps(), other, content) is None

    folder.description.write_text("damaged")
    assert resolution.seed_noise(storage.sweeps(), space, content) is None
