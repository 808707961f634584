"""Successive halving and the race, on scores made up so that the right answer is known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import make_row

from scrimp_platform.search import posterior, race, verdict
from scrimp_platform.search.order import order
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space

RUNG = 60.0


def make_space(**changes) -> Space:
    tree = {
        "recipe": "tiny-edm",
        "search": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        "objectives": {"fd_classifier": "minimize"},
        "scoring": {"extractor": "classifier"},
        "budget": {"trials": 8, "rungs_kimg": [20, RUNG], "reduction": 3, "leaders": 3, "repeats": 4},
    }
    return spaces.parse_space(tree | changes, "space")


def finished(number: int, *values: float, objective: str = "fd_classifier", **more: float) -> Trial:
    repeats = []
    for i, value in enumerate(values):
        row = make_row(**{objective: value, **more})
        repeats.append(Repeat(number, i, i, "race" if i else "search", "finished", rungs={RUNG: row}))
    return Trial(number, {"optimizer.lr": 1e-4 * (number + 1)}, "complete", repeats)


def may_win(field: list[Trial], space: Space) -> list[int]:
    judged = verdict.judge(field, space)
    assert judged is not None
    return [trial.number for trial in field if race.may_win(trial, judged)]


@pytest.mark.parametrize("name", spaces.names())
def test_in_every_shipped_space_a_trial_can_be_dropped_before_it_has_all_repeats(name):
    space = spaces.load_space(name)
    assert space.arms or space.budget.repeats > race.FIRST_SEEDS


def test_a_trial_that_breaks_a_constraint_ranks_behind_all_that_keep_it():
    space = make_space(constraints={"memorized_fraction": {"max": 0.1}})
    points = [
        make_row(fd_classifier=1.0, memorized_fraction=0.5),
        make_row(fd_classifier=9.0, memorized_fraction=0.1),
        make_row(fd_classifier=2.0, memorized_fraction=0.3),
    ]
    assert order(points, space) == [1, 2, 0]


def test_a_missing_constraint_score_counts_as_broken():
    space = make_space(constraints={"memorized_fraction": {"max": 0.1}})
    points = [make_row(fd_classifier=1.0), make_row(fd_classifier=2.0, memorized_fraction=0.0)]
    assert order(points, space) == [1, 0]


def test_maximised_objectives_rank_the_other_way():
    space = make_space(objectives={"precision_classifier": "maximize"})
    assert order([make_row(precision_classifier=value) for value in (0.1, 0.9)], space) == [1, 0]


def test_several_objectives_rank_by_pareto_front():
    space = make_space(objectives={"fd_classifier": "minimize", "train_flops": "minimize"})
    points = [(3, 1), (1, 3), (4, 4), (2, 2), (3, 3)]
    ranking = order([make_row(fd_classifier=a, train_flops=b) for a, b in points], space)
    assert set(ranking[:3]) == {0, 1, 3}
    assert ranking[3:] == [4, 2]


def test_the_leaders_are_the_best_completed_trials_by_their_first_repeat():
    trials = [finished(0, 5.0), finished(1, 1.0, 99.0), finished(2, 3.0), finished(3, 4.0), Trial(4, {}, "pruned")]
    assert [trial.number for trial in race.leaders(trials, make_space())] == [1, 2, 3]


def test_a_recipe_that_was_proposed_twice_races_once():
    trials = [finished(0, 5.0), finished(1, 2.0), finished(2, 1.0), finished(3, 4.0), finished(4, 6.0)]
    trials[2].params = dict(trials[1].params)
    assert [trial.number for trial in race.leaders(trials, make_space())] == [1, 3, 0]
    trials[2].repeats += finished(2, 1.0, 1.5).repeats[1:]
    assert [trial.number for trial in race.leaders(trials, make_space())] == [2, 3, 0]


def test_what_a_model_expects_replaces_the_score_of_the_search():
    trials = [finished(number, value) for number, value in enumerate((0.3, 0.4, 0.5, 0.6))]
    expected = {0: 9.0, 1: -1.0, 2: -3.0, 3: -2.0}
    assert [trial.number for trial in race.leaders(trials, make_space(), expected)] == [2, 3, 1]


def test_each_gets_two_seeds_before_the_posterior_decides():
    field = [finished(0, 1.0, 1.1), finished(1, 1.2), finished(2, 1.3, 1.2)]
    assert race.next_trial(field, make_space()) is field[1]
    field = [finished(0, 1.0, 1.1, 1.05), finished(1, 5.0, 5.1)]
    assert race.next_trial(field, make_space()) is field[1]


def test_a_third_seed_is_all_that_is_handed_out_before_the_first_two_of_all_have_ended():
    field = [finished(0, 1.0, 1.1, 1.2), finished(1, 1.2, 1.1)]
    field[1].repeats.append(Repeat(1, 2, 2, "race", "running"))
    assert race.next_trial(field, make_space()) is field[0]
    for trial in field:
        trial.repeats.append(Repeat(trial.number, 3, 3, "race", "running"))
    assert race.next_trial(field, make_space(budget=budget(repeats=9))) is None
    field[1].repeats[2].status = "failed"
    assert race.next_trial(field, make_space(budget=budget(repeats=9))) is not None


def test_a_repeat_that_runs_counts_as_a_seed():
    field = [finished(0, 1.0, 1.1, 1.2), finished(1, 1.2, 1.1, 1.21)]
    field[1].repeats.append(Repeat(1, 3, 3, "race", "running"))
    assert race.next_trial(field, make_space(budget=budget(repeats=5))) is field[0]


def test_a_trial_that_can_no_longer_win_gets_no_further_repeat():
    field = [finished(0, 1.0, 1.1, 1.05), finished(1, 5.0, 5.1, 5.2), finished(2, 1.02, 1.2, 1.1)]
    assert may_win(field, make_space()) == [0, 2]
    assert race.next_trial(field, make_space()) in (field[0], field[2])


def test_the_seed_goes_to_whom_it_settles_most():
    field = [finished(0, 1.0, 1.0, 1.3), finished(1, 1.0, 1.0, 1.31), finished(2, 1.0, 1.5, 1.7)]
    space = make_space(budget=budget(repeats=9))
    assert may_win(field, space) == [0, 1, 2]
    assert race.next_trial(field, space) in field[:2]
    field[0].repeats += finished(0, 1.0, *[1.0, 1.3] * 2).repeats[3:]
    assert race.next_trial(field, space) is field[1]


def test_once_the_recommended_trial_is_good_enough_only_its_own_repeats_are_completed():
    field = [finished(0, 1.0, 1.0, 1.001), finished(1, 1.0, 1.002, 1.003)]
    assert race.next_trial(field, make_space(prefer="best")) is field[0]
    field[0].repeats += finished(0, 1.0, 1.0, 1.0, 1.001).repeats[3:]
    assert len(field[1].repeats) < make_space().budget.repeats
    assert race.next_trial(field, make_space(prefer="best")) is None


def test_the_score_by_which_a_trial_was_chosen_does_not_keep_it_in_the_race():
    field = [finished(0, 2.0, 1.0, 1.1), finished(1, 0.1, 5.0, 5.1)]
    assert may_win(field, make_space()) == [0]


def test_a_trial_whose_seeds_break_a_constraint_beats_nobody_and_gets_no_more_of_them():
    space = make_space(constraints={"memorized_fraction": {"max": 0.1}})
    field = [
        finished(0, 1.0, 1.0, 1.1, memorized_fraction=0.5),
        finished(1, 2.0, 2.0, 2.3, memorized_fraction=0.0),
        finished(2, 2.0, 2.1, 2.2, memorized_fraction=0.0),
    ]
    assert may_win(field, space) == [1, 2]
    assert race.next_trial(field, space) in field[1:]
    assert race.next_trial(field[:1], space) is field[0]  # perhaps by bad luck


def test_equality_in_one_objective_does_not_protect_who_is_worse_in_the_other():
    space = make_space(objectives={"fd_classifier": "minimize", "train_flops": "minimize"})
    field = [finished(0, 1.0, 1.1, 1.05, train_flops=7.0), finished(1, 5.0, 5.1, 5.2, train_flops=7.0)]
    assert may_win(field, space) == [0]


def test_of_two_trials_that_are_equal_in_everything_both_stay():
    space = make_space(objectives={"train_flops": "minimize"})
    field = [finished(n, 7.0, 7.0, 7.0, objective="train_flops") for n in range(2)]
    assert may_win(field, space) == [0, 1]


def test_close_trials_all_reach_the_full_number_and_then_the_race_ends():
    field = [finished(n, 1.0 + n / 100, 1.2, 0.9 + n / 50, 1.1) for n in range(3)]
    assert race.next_trial(field, make_space()) is None


def test_arms_get_all_repeats():
    tree = {"search": {}, "arms": {"a": {"optimizer.lr": 1e-3}, "b": {"optimizer.lr": 1e-2}}}
    field = [finished(0, 1.0, 1.0, 1.0, 1.001), finished(1, 9.0, 9.0, 9.1)]
    assert race.next_trial(field, make_space(**tree)) is field[1]


def test_with_two_objectives_only_who_is_beaten_in_both_is_out():
    space = make_space(objectives={"fd_classifier": "minimize", "train_flops": "minimize"})

    def trial(number, values, flops):
        result = finished(number, *values)
        for repeat, f in zip(result.repeats, flops, strict=True):
            repeat.rungs[RUNG] = replace(repeat.rungs[RUNG], train_flops=f)
        return result

    best = trial(0, (1.0, 1.1, 1.0), (10.0, 10.1, 10.0))
    cheap = trial(1, (9.0, 9.1, 9.0), (1.0, 1.1, 1.0))
    beaten = trial(2, (9.0, 9.1, 9.0), (90.0, 90.1, 90.0))
    assert may_win([best, cheap, beaten], space) == [0, 1]


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), min_size=1, max_size=6))
def test_the_recommended_trial_is_never_out(samples):
    field = [finished(n, *values) for n, values in enumerate(samples)]
    judged = verdict.judge(field, make_space())
    assert judged is not None
    assert judged.recommended in may_win(field, make_space())


def test_nobody_is_out_before_the_spread_is_known():
    field = [finished(0, 1.0, 1.0), finished(1, 1.0, 1000.0)]
    assert may_win(field, make_space()) == [0, 1]


def budget(**changes) -> dict[str, object]:
    return {"trials": 8, "rungs_kimg": [20, RUNG], "reduction": 3, "leaders": 3, "repeats": 4} | changes


LEADERS = 5
SEEDS = 4
NOISE = 0.1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(posterior, "DRAWS", 1000)


def run_races(draw: Callable[[np.random.Generator], np.ndarray], races: int) -> dict[str, float]:
    """Race trials whose true means, in logarithms, are drawn; each design sees the same seeds of a trial.

    Returns the means of: seeds used; whether the right one was recommended; the same of a design in which each trial
    gets all seeds; and whether the truly best trial was out of the race at any time.
    """
    space = make_space(prefer="best", budget=budget(leaders=LEADERS, repeats=SEEDS + 1))
    chance = np.random.default_rng(1)
    used, right, fixed_right, dropped = [], [], [], []
    for _ in range(races):
        truth = draw(chance)
        best = int(np.argmin(truth))
        scores = np.exp(truth[:, None] + chance.normal(0, NOISE, (LEADERS, SEEDS + 1)))
        field = [finished(n, scores[n, 0]) for n in range(LEADERS)]
        was_out = False
        while trial := race.next_trial(field, space):
            place = len(trial.repeats)
            row = make_row(fd_classifier=scores[trial.number, place])
            trial.repeats.append(Repeat(trial.number, place, place, "race", "finished", rungs={RUNG: row}))
            if all(len(one.repeats) > race.FIRST_SEEDS for one in field):
                was_out |= best not in may_win(field, space)
        judged = verdict.judge(field, space)
        assert judged is not None
        used.append(sum(len(one.repeats) - 1 for one in field))
        right.append(judged.recommended == best)
        fixed_right.append(np.argmin(scores[:, 1:].mean(axis=1)) == best)
        dropped.append(was_out)
    outcomes = {"used": used, "right": right, "fixed_right": fixed_right, "dropped": dropped}
    return {name: float(np.mean(values)) for name, values in outcomes.items()}


def means_of(chance: np.random.Generator) -> np.ndarray:
    """Draw the means of five trials that differ by about as much as seeds, or by much more."""
    ratio = min(abs(np.tan(np.pi * (chance.random() - 0.5))), 20)
    return chance.normal(0, ratio * NOISE, LEADERS)


def apart(chance: np.random.Generator) -> np.ndarray:
    """Draw means of which the best two are at least one seed deviation apart."""
    while True:
        means = means_of(chance)
        low, second = np.sort(means)[:2]
        if second - low >= NOISE:
            return means


def test_where_the_gap_is_a_seed_deviation_the_race_needs_few_seeds_for_the_same_choice(quick):
    result = run_races(apart, 150)
    assert result["used"] <= 0.7 * LEADERS * SEEDS
    assert result["right"] >= result["fixed_right"] - 0.01


@pytest.mark.parametrize("draw", [means_of, lambda chance: chance.normal(0, NOISE, LEADERS)])
def test_the_truly_best_is_seldom_out_of_the_race_at_any_time(quick, draw):
    assert run_races(draw, 150)["dropped"] <= 0.05
