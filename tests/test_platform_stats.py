"""Intervals against scipy.stats, Pareto fronts against their definition."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as reference

from scrimp_platform.search import stats

VALUES = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 4))
SAMPLES = st.lists(VALUES, min_size=2, max_size=8)
DIRECTIONS = st.sampled_from(["minimize", "maximize"])


@given(SAMPLES)
def test_the_interval_is_scipys_student_interval(values):
    assume(np.std(values) > 1e-3)
    summary = stats.summarize(values)
    interval = reference.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=reference.sem(values))
    assert (summary.n, summary.mean, summary.std) == pytest.approx(
        (len(values), np.mean(values), np.std(values, ddof=1))
    )
    assert (summary.low, summary.high) == pytest.approx(interval)


def test_one_value_has_a_mean_and_no_interval_and_none_has_nothing():
    one, none = stats.summarize([3.0]), stats.summarize([])
    assert (one.n, one.mean) == (1, 3.0)
    assert none.n == 0
    assert all(math.isnan(value) for value in (one.std, one.low, one.high, none.mean, none.low, none.high))


def test_summaries_of_the_same_values_are_equal_although_nan_is_not():
    assert stats.Summary(1, 2.0, float("nan"), float("nan"), float("nan")) == stats.summarize([2.0])
    assert stats.summarize([2.0]) != stats.summarize([3.0])
    assert stats.summarize([2.0]) != stats.summarize([2.0, 2.0])


def test_equal_values_have_an_interval_of_no_width():
    summary = stats.summarize([0.1, 0.1, 0.1])
    assert summary.low == summary.high == summary.mean


@given(st.floats(0.01, 0.99), st.integers(1, 200))
def test_the_quantile_is_scipys(probability, freedom):
    assert stats.student_quantile(probability, freedom) == pytest.approx(
        reference.t.ppf(probability, freedom), abs=1e-9
    )


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=14)


@given(POINTS, DIRECTIONS, DIRECTIONS)
def test_a_front_is_dominated_only_by_earlier_ones_and_by_the_one_before_it(pairs, first, second):
    ways: dict[str, stats.Direction] = {"a": first, "b": second}
    points = [{"a": float(a), "b": float(b)} for a, b in pairs]
    ranks = stats.fronts(points, ways)
    for point, rank in zip(points, ranks, strict=True):
        over = {other for p, other in zip(points, ranks, strict=True) if stats.dominates(p, point, ways)}
        assert all(other < rank for other in over)
        assert rank == 0 or rank - 1 in over


@given(POINTS)
def test_turning_an_objective_round_with_its_sign_changes_no_front(pairs):
    points = [{"a": float(a), "b": float(b)} for a, b in pairs]
    turned = [{"a": point["a"], "b": -point["b"]} for point in points]
    assert stats.fronts(points, {"a": "minimize", "b": "minimize"}) == stats.fronts(
        turned, {"a": "minimize", "b": "maximize"}
    )


@given(st.lists(VALUES, min_size=1, max_size=12))
def test_with_one_objective_fronts_are_the_order_of_the_values(values):
    order = sorted(set(values))
    assert stats.fronts([{"a": value} for value in values], {"a": "minimize"}) == [order.index(v) for v in values]
