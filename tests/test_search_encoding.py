"""Recipes as points: what two ways of giving a recipe have in common, and what distances mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_sweep import make_space

from scrimp_platform.search.encoding import Encoding

SEARCH = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "network.channels": {"int": [8, 64], "step": 8},
    "training.batch_size": {"int": [16, 512], "log": True},
    "network.attention": {"choice": [[8], [4, 8], []]},
    "mafp.p1": {"choice": [0.0, 0.1, 0.2]},
    "mafp.p2": {"uniform": [0.0, 0.5], "when": {"mafp.p1": [0.1, 0.2]}},
}


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return Encoding(make_space(search=SEARCH))


@given(shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_shares_give_values_in_their_ranges_that_lead_back_to_the_same_point(encoding, shares):
    space = make_space(search=SEARCH)
    values = encoding.values(shares)
    assert all(space.search[path].allows(value) for path, value in values.items())
    assert list(values) == space.active(values)

    row = np.array([shares])
    back = encoding.shares([values])
    np.testing.assert_allclose(encoding.points(back), encoding.points(row), atol=1e-9)


def distance(encoding: Encoding, one: dict, other: dict) -> float:
    base = {
        "optimizer.lr": 1e-3,
        "network.channels": 32,
        "training.batch_size": 64,
        "network.attention": [8],
        "mafp.p1": 0.1,
    }
    points = encoding.points(encoding.shares([base | one, base | other]))
    return float(np.linalg.norm(points[0] - points[1]))


def test_distances_mean_difference(encoding):
    whole = distance(encoding, {"optimizer.lr": 1e-4}, {"optimizer.lr": 1e-2})
    half = distance(encoding, {"optimizer.lr": 1e-4}, {"optimizer.lr": 1e-3})
    assert (whole, half) == pytest.approx((1, 0.5))
    assert distance(encoding, {"network.attention": [8]}, {"network.attention": []}) == pytest.approx(1)
    assert distance(encoding, {"mafp.p1": 0.1, "mafp.p2": 0.2}, {"mafp.p1": 0.2, "mafp.p2": 0.2}) == pytest.approx(0.5)


def test_the_absence_of_a_number_is_equally_far_from_all_of_its_values(encoding):
    absent = encoding.shares([{"mafp.p1": 0.0}])
    present = encoding.shares([{"mafp.p1": 0.1, "mafp.p2": value} for value in (0.0, 0.2, 0.5)])
    arcs = encoding.columns == 5
    gaps = encoding.points(present)[:, arcs] - encoding.points(absent)[:, arcs]
    assert np.linalg.norm(gaps, axis=1) == pytest.approx(1)
