"""Successive halving and the race, on scores made up so that the right answer is known."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import make_row

from scrimp_platform.search import race, records
from scrimp_platform.search.order import order
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Budget, Space

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
    return Trial(number, {"optimizer.lr": 1e-3 * (1 + number)}, "complete", repeats)


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


def test_the_race_gives_the_next_repeat_to_whom_has_fewest():
    field = [finished(0, 1.0, 1.1), finished(1, 1.2), finished(2, 1.3, 1.2)]
    trial = race.next_trial(field, make_space())
    assert trial is field[1]


def test_a_trial_that_can_no_longer_win_gets_no_further_repeat():
    field = [finished(0, 1.0, 1.1, 1.05), finished(1, 5.0, 5.1, 5.2), finished(2, 1.02, 1.2, 1.1)]
    assert len(field[1].repeats) < make_space().budget.repeats
    assert list(race.contenders(field, field, make_space())) == [field[0], field[2]]
    assert race.next_trial(field, make_space()) in (field[0], field[2])


def test_nobody_is_dropped_before_the_second_fresh_seed():
    field = [finished(0, 1.0, 1.1, 1.05), finished(1, 5.0, 5.1)]
    assert race.next_trial(field, make_space()) is field[1]


def test_elimination_can_happen_before_the_default_number_of_repeats_is_used_up():
    assert Budget().repeats - 1 > race.MIN_REPEATS_BEFORE_ELIMINATION


def test_the_score_by_which_a_trial_was_chosen_does_not_keep_it_in_the_race():
    field = [finished(0, 2.0, 1.0, 1.1), finished(1, 0.1, 5.0, 5.1)]
    assert list(race.contenders(field, field, make_space())) == [field[0]]
    fresh = records.unbiased_repeats(field[1], make_space(), RUNG)
    assert records.finite_scores(fresh, "fd_classifier", RUNG) == [
        5.0,
        5.1,
    ]


def test_equality_in_one_objective_does_not_protect_who_is_worse_in_the_other():
    space = make_space(objectives={"fd_classifier": "minimize", "train_flops": "minimize"})
    field = [finished(0, 1.0, 1.1, 1.05, train_flops=7.0), finished(1, 5.0, 5.1, 5.2, train_flops=7.0)]
    assert list(race.contenders(field, field, space)) == [field[0]]


def test_of_two_trials_that_are_equal_in_everything_both_stay():
    space = make_space(objectives={"train_flops": "minimize"})
    field = [finished(n, 7.0, 7.0, 7.0, objective="train_flops") for n in range(2)]
    assert list(race.contenders(field, field, space)) == field


def test_close_trials_all_reach_the_full_number_and_then_the_race_ends():
    field = [finished(n, 1.0 + n / 100, 1.2, 0.9 + n / 50, 1.1) for n in range(3)]
    assert race.next_trial(field, make_space()) is None


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
    field = [best, cheap, beaten]
    assert list(race.contenders(field, field, space)) == [best, cheap]


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=5), min_size=1, max_size=6))
def test_the_one_with_the_best_mean_is_never_out(samples):
    field = [finished(n, *values) for n, values in enumerate(samples)]
    means = [
        sum(values) / len(values) if values else math.inf
        for trial in field
        for values in [
            records.finite_scores(records.unbiased_repeats(trial, make_space(), RUNG), "fd_classifier", RUNG)
        ]
    ]
    best = field[means.index(min(means))]
    assert best in race.contenders(field, field, make_space())


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0]])
def test_nobody_is_out_before_the_spread_is_known(values):
    field = [finished(0, *values[:1]), finished(1, 1000.0)]
    assert list(race.contenders(field[1:], field, make_space())) == field[1:]
