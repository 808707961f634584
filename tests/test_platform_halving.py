"""Successive halving: who continues after a rung, on scores made up so that the right answer is known."""

from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import make_row
from test_platform_race import make_space

from scrimp_platform.search import halving
from scrimp_platform.search.records import Repeat, Trial

RUNGS = [10.0, 20.0, 60.0]


def space_of(trials: int, reduction: float = 3, leaders: int = 1):
    budget = {"trials": trials, "rungs_kimg": RUNGS, "reduction": reduction, "leaders": leaders, "repeats": 4}
    return make_space(budget=budget)


def paused(number: int, *scores: float, passed: float = 0.0) -> Trial:
    rungs = {kimg: make_row(fd_classifier=score) for kimg, score in zip(RUNGS, scores, strict=False)}
    return Trial(number, {}, "paused", [Repeat(number, 0, 0, "search", "paused", rungs=rungs, passed=passed)])


def first_rung(trials, space, to_come=0, expected=None):
    return halving.rungs(trials, space, to_come, expected)[0]


def promote_all(trials, space, to_come=0):
    """Promote until nothing may continue; return the numbers."""
    promoted = []
    while trial := first_rung(trials, space, to_come).promotable():
        trial.repeats[0].passed = RUNGS[0]
        promoted.append(trial.number)
    return promoted


scores_lists = st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True)


@given(scores_lists)
def test_when_all_have_come_the_best_third_continues_in_order(scores):
    trials = [paused(number, score) for number, score in enumerate(scores)]
    promoted = promote_all(trials, space_of(len(scores)))
    best = sorted(range(len(scores)), key=scores.__getitem__)
    assert promoted == best[: max(1, len(scores) // 3)]


@given(scores_lists, st.integers(1, 4))
def test_never_more_than_a_third_continue_however_they_arrive(scores, leaders):
    """Each newcomer may be better than all before, as with proposals that learn: the share holds all the same."""
    space = space_of(len(scores), leaders=leaders)
    trials = []
    for number, score in enumerate(sorted(scores, reverse=True)):
        trials.append(paused(number, score))
        promote_all(trials, space, to_come=len(scores) - len(trials))
        allowed = halving.promoted_places(len(scores), space.budget) * len(trials) // len(scores)
        assert sum(trial.repeats[0].passed > 0 for trial in trials) <= allowed
    assert sum(trial.repeats[0].passed > 0 for trial in trials) == halving.promoted_places(len(scores), space.budget)


def test_at_least_as_many_continue_as_enter_the_race():
    trials = [paused(number, float(number)) for number in range(8)]
    assert promote_all(trials, space_of(8, leaders=3)) == [0, 1, 2]
    assert len(promote_all([paused(0, 1.0), paused(1, 2.0)], space_of(2, leaders=3))) == 2


def test_a_reduction_of_one_stops_nobody():
    trials = [paused(0, 5.0)]
    assert promote_all(trials, space_of(9, reduction=1), to_come=8) == [0]


def test_nothing_continues_before_enough_are_known():
    assert not promote_all([paused(0, 5.0), paused(1, 4.0)], space_of(9), to_come=7)
    assert promote_all([paused(0, 5.0), paused(1, 4.0), paused(2, 6.0)], space_of(9), to_come=6) == [1]


def test_only_those_whose_places_better_ones_will_take_are_hopeless():
    """Three of nine will continue. Of the seven that wait, one of which was promoted, the best two may still be."""
    trials = [paused(0, 1.0, passed=10.0)] + [paused(number, 1.0 + number) for number in range(1, 7)]
    rung = first_rung(trials, space_of(9), to_come=2)
    assert [trial.number for trial in rung.hopeless(rung.places)] == [3, 4, 5, 6]


def test_what_was_stopped_takes_no_place_if_the_model_comes_to_think_better_of_it():
    trials = [paused(number, float(number)) for number in range(6)]
    trials[5].status = "pruned"
    trials[5].repeats[0].status = "stopped"
    expected = {number: abs(number - 5.0) for number in range(6)}
    space = space_of(6)
    promoted = []
    while trial := first_rung(trials, space, expected=expected).promotable():
        trial.repeats[0].passed = RUNGS[0]
        promoted.append(trial.number)
    assert promoted == [4, 3]
    rung = first_rung(trials, space, expected=expected)
    assert sorted(trial.number for trial in rung.hopeless(rung.places)) == [0, 1, 2]


def test_what_is_expected_at_the_end_counts_rather_than_the_score_at_the_rung():
    trials = [paused(0, 1.0), paused(1, 2.0), paused(2, 3.0)]
    rung = first_rung(trials, space_of(3), expected={0: 0.5, 1: 0.1, 2: 0.9})
    assert [trial.number for trial in rung.ranking] == [1, 0, 2]


def test_a_limit_that_is_broken_at_the_rung_counts_only_as_far_as_it_will_be_at_the_end():
    trials = [paused(0, 1.0), paused(1, 2.0)]
    for trial, memorized in zip(trials, (0.1, 0.9), strict=True):
        trial.repeats[0].rungs[RUNGS[0]].scores["memorized_fraction"] = memorized
    limited = make_space(constraints={"memorized_fraction": {"max": 0.5}}).constraints
    space = space_of(2).model_copy(update={"constraints": limited})
    rung = first_rung(trials, space, expected={0: (0.9, 0.5), 1: (0.0, 0.7)})
    assert [trial.number for trial in rung.ranking] == [1, 0]


def test_a_failure_on_the_way_leaves_a_place_for_another():
    """Six trials: two continue to the second rung. One of them fails there, so that a third may be promoted."""
    trials = [paused(number, float(number)) for number in range(6)]
    space = space_of(6)
    assert promote_all(trials, space) == [0, 1]
    trials[0].status = "failed"
    first, second = halving.rungs(trials, space, 0, None)
    assert (first.places, first.promoted, second.most) == (2, 2, 0)
