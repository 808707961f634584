"""Nodes that come and go while a sweep runs: what changes, with a cluster and a doctor that are told what to say."""

import dataclasses
import math

import pytest

from scrimp_cluster.doctor import ClusterReport, NodeReport
from scrimp_cluster.faults import Fault
from scrimp_cluster.nodes import Node
from scrimp_platform import node_pool
from scrimp_platform.cluster import place
from scrimp_platform.node_pool import NodePool

FIRST, SECOND, THIRD = (Node(f"ws{i}", 16, 2, f"id{i}", f"10.0.0.{i}") for i in range(3))
BOTH = [FIRST.id, SECOND.id]


@pytest.fixture
def cluster(monkeypatch):
    """The nodes that are alive; a sweep looks at them whenever it asks for its places."""
    alive = [FIRST, SECOND]
    monkeypatch.setattr(node_pool, "UPDATE_INTERVAL_S", 0.0)
    monkeypatch.setattr(node_pool.cluster_nodes, "alive", lambda: tuple(alive))
    return alive


@pytest.fixture
def gather(cluster):
    """Make the pool of a sweep that began on the first two nodes; these have a fault if they join."""

    def gather(
        unfit: tuple[Node, ...] = (), gpus: int | None = None, stops: bool = True
    ) -> tuple[NodePool, list, list[str]]:
        asked: list[list[Node]] = []
        said: list[str] = []

        def examine(nodes):
            asked.append(list(nodes))
            faults = {node: [Fault(node.name, "no storage", "mount it", stops)] for node in unfit}
            return ClusterReport([], [NodeReport(node, None, faults.get(node, [])) for node in nodes])

        return NodePool(place((FIRST, SECOND), gpus), examine, said.append), asked, said

    return gather


def test_nodes_that_were_there_are_not_examined_again(gather):
    pool, asked, said = gather()
    assert (pool.places(), pool.fit_nodes(), asked, said) == (2, BOTH, [], [])


def test_a_node_that_joins_is_examined_once_and_gets_repeats(gather, cluster):
    pool, asked, said = gather()
    cluster.append(THIRD)
    assert [pool.places(), pool.places()] == [3, 3]
    assert asked == [[THIRD]]
    assert said == ["3 nodes in the cluster: up to 3 repeats at once"]


def test_a_unfit_node_that_joins_gets_none_and_is_named(gather, cluster):
    pool, asked, said = gather(unfit=(THIRD,))
    cluster.append(THIRD)
    assert [pool.places(), pool.places()] == [2, 2]
    assert pool.fit_nodes() == BOTH
    assert len(asked) == 1
    assert said == ["ws2: no storage; mount it"]


@pytest.mark.parametrize(("stops", "times"), [(False, 1), (True, 2)])
def test_a_node_that_comes_back_is_named_again_only_if_it_is_unfit(gather, cluster, stops, times):
    back = dataclasses.replace(THIRD, id="another")
    pool, _, said = gather(unfit=(THIRD, back), stops=stops)
    for alive in ([FIRST, SECOND, THIRD], [FIRST, SECOND], [FIRST, SECOND, back]):
        cluster[:] = alive
        pool.places()
    assert said.count("ws2: no storage; mount it") == times


def test_a_node_that_is_gone_holds_no_place_and_has_it_again_when_it_is_back(gather, cluster):
    pool, _, _ = gather(gpus=1)
    cluster.remove(SECOND)
    assert pool.places() == 2
    cluster.append(SECOND)
    assert pool.places() == 4


def test_a_node_on_which_repeats_fail_rests_and_is_examined_then(gather, monkeypatch):
    pool, asked, said = gather()
    now = [1000.0]
    monkeypatch.setattr(node_pool.time, "monotonic", lambda: now[0])
    pool.record_failure(FIRST.id)
    assert (pool.places(), pool.fit_nodes(), said) == (2, BOTH, [])  # that may happen
    for minutes in (10, 20):
        pool.record_failure(FIRST.id)
        assert (pool.places(), pool.fit_nodes()) == (1, [SECOND.id])
        assert f"suspended for {minutes} minutes" in said[-2]
        now[0] += 60 * minutes
        examined = len(asked)
        assert (pool.places(), pool.fit_nodes()) == (2, BOTH)
        assert asked[examined:] == [[FIRST]]


def test_two_failures_far_apart_are_no_reason_to_rest(gather, monkeypatch):
    pool, _, _ = gather()
    now = [1000.0]
    monkeypatch.setattr(node_pool.time, "monotonic", lambda: now[0])
    for _ in range(3):
        pool.record_failure(FIRST.id)
        now[0] += node_pool.FAILURE_WINDOW_S + 1
    assert pool.fit_nodes() == BOTH


def test_the_last_node_that_is_fit_never_rests(gather, cluster):
    pool, _, _ = gather()
    for _ in range(3):
        pool.record_failure(FIRST.id)
        pool.record_failure(SECOND.id)
    assert pool.fit_nodes() == [SECOND.id]
    assert pool.places() == 1


def test_cpu_workers_have_one_repeat_waiting(gather):
    pool, _, _ = gather(gpus=0)
    assert pool.places() == 33


def test_a_node_that_has_joined_gets_nothing_before_the_doctor_has_seen_it(gather, cluster, monkeypatch):
    pool, asked, _ = gather()
    cluster.append(THIRD)
    monkeypatch.setattr(pool, "_update_due", math.inf)
    assert (pool.fit_nodes(), asked) == (BOTH, [])
    monkeypatch.setattr(pool, "_update_due", 0.0)
    assert (pool.fit_nodes(), asked) == ([*BOTH, THIRD.id], [[THIRD]])  # also while no place is asked for


def test_a_node_that_is_gone_changes_nothing_for_what_waits(gather, cluster):
    """It might wait for another of its nodes, and what has the same nodes has the same processes."""
    pool, _, _ = gather()
    cluster.remove(SECOND)
    assert pool.fit_nodes() == BOTH
    cluster.remove(FIRST)
    assert pool.fit_nodes() == BOTH


def test_a_note_with_other_figures_is_not_repeated_when_a_node_returns(cluster):
    said: list[str] = []
    free = iter(["3.1 GiB", "2.9 GiB"])

    def examine(nodes):
        fault = Fault(THIRD.name, f"only {next(free)} are free", "make room", stops=False)
        return ClusterReport([], [NodeReport(node, None, [fault]) for node in nodes])

    pool = NodePool(place((FIRST, SECOND), None), examine, said.append)
    for node in (THIRD, dataclasses.replace(THIRD, id="again")):
        cluster[2:] = [node]
        pool.places()
    assert [line for line in said if "free" in line] == [f"{THIRD.name}: only 3.1 GiB are free; make room"]
