"""Nodes that come and go while a sweep runs: what changes, with a cluster and a doctor that are told what to say."""

import dataclasses
import math

import pytest

from scrimp_cluster.doctor import Report, Visit
from scrimp_cluster.judge import Fault
from scrimp_cluster.nodes import Node
from scrimp_platform import crew as crew_module
from scrimp_platform.cluster import place
from scrimp_platform.crew import Crew

FIRST, SECOND, THIRD = (Node(f"ws{i}", 16, 2, f"id{i}", f"10.0.0.{i}") for i in range(3))
BOTH = [FIRST.id, SECOND.id]


@pytest.fixture
def cluster(monkeypatch):
    """The nodes that are alive; a sweep looks at them whenever it asks for its places."""
    alive = [FIRST, SECOND]
    monkeypatch.setattr(crew_module, "LOOK", 0.0)
    monkeypatch.setattr(crew_module.cluster_nodes, "alive", lambda: tuple(alive))
    return alive


@pytest.fixture
def gather(cluster):
    """Make the crew of a sweep that began on the first two nodes; these have a fault if they join."""

    def gather(
        sick: tuple[Node, ...] = (), gpus: int | None = None, stops: bool = True
    ) -> tuple[Crew, list, list[str]]:
        asked: list[list[Node]] = []
        said: list[str] = []

        def examine(nodes):
            asked.append(list(nodes))
            faults = {node: [Fault(node.name, "no storage", "mount it", stops)] for node in sick}
            return Report([], [Visit(node, None, faults.get(node, [])) for node in nodes])

        return Crew(place((FIRST, SECOND), gpus), examine, said.append), asked, said

    return gather


def test_nodes_that_were_there_are_not_examined_again(gather):
    crew, asked, said = gather()
    assert (crew.places(), crew.fit_nodes(), asked, said) == (2, BOTH, [], [])


def test_a_node_that_joins_is_examined_once_and_gets_repeats(gather, cluster):
    crew, asked, said = gather()
    cluster.append(THIRD)
    assert [crew.places(), crew.places()] == [3, 3]
    assert asked == [[THIRD]]
    assert said == ["3 nodes: 3 repeats at once from now on"]


def test_a_sick_node_that_joins_gets_none_and_is_named(gather, cluster):
    crew, asked, said = gather(sick=(THIRD,))
    cluster.append(THIRD)
    assert [crew.places(), crew.places()] == [2, 2]
    assert crew.fit_nodes() == BOTH
    assert len(asked) == 1
    assert said == ["ws2: no storage; mount it"]


@pytest.mark.parametrize(("stops", "times"), [(False, 1), (True, 2)])
def test_a_node_that_comes_back_is_named_again_only_if_it_is_sick(gather, cluster, stops, times):
    back = dataclasses.replace(THIRD, id="another")
    crew, _, said = gather(sick=(THIRD, back), stops=stops)
    for alive in ([FIRST, SECOND, THIRD], [FIRST, SECOND], [FIRST, SECOND, back]):
        cluster[:] = alive
        crew.places()
    assert said.count("ws2: no storage; mount it") == times


def test_a_node_that_is_gone_holds_no_place_and_has_it_again_when_it_is_back(gather, cluster):
    crew, _, _ = gather(gpus=1)
    cluster.remove(SECOND)
    assert crew.places() == 2
    cluster.append(SECOND)
    assert crew.places() == 4


def test_a_node_on_which_repeats_fail_rests_and_is_examined_then(gather, monkeypatch):
    crew, asked, said = gather()
    now = [1000.0]
    monkeypatch.setattr(crew_module.time, "monotonic", lambda: now[0])
    crew.blame(FIRST.id)
    assert (crew.places(), crew.fit_nodes(), said) == (2, BOTH, [])  # that may happen
    for minutes in (10, 20):
        crew.blame(FIRST.id)
        assert (crew.places(), crew.fit_nodes()) == (1, [SECOND.id])
        assert f"rests for {minutes} minutes" in said[-2]
        now[0] += 60 * minutes
        examined = len(asked)
        assert (crew.places(), crew.fit_nodes()) == (2, BOTH)
        assert asked[examined:] == [[FIRST]]


def test_two_failures_far_apart_are_no_reason_to_rest(gather, monkeypatch):
    crew, _, _ = gather()
    now = [1000.0]
    monkeypatch.setattr(crew_module.time, "monotonic", lambda: now[0])
    for _ in range(3):
        crew.blame(FIRST.id)
        now[0] += crew_module.AGAIN + 1
    assert crew.fit_nodes() == BOTH


def test_the_last_node_that_is_fit_never_rests(gather, cluster):
    crew, _, _ = gather()
    for _ in range(3):
        crew.blame(FIRST.id)
        crew.blame(SECOND.id)
    assert crew.fit_nodes() == [SECOND.id]
    assert crew.places() == 1


def test_cpu_workers_have_one_repeat_waiting(gather):
    crew, _, _ = gather(gpus=0)
    assert crew.places() == 33


def test_a_node_that_has_joined_gets_nothing_before_the_doctor_has_seen_it(gather, cluster, monkeypatch):
    crew, asked, _ = gather()
    cluster.append(THIRD)
    monkeypatch.setattr(crew, "_due", math.inf)
    assert (crew.fit_nodes(), asked) == (BOTH, [])
    monkeypatch.setattr(crew, "_due", 0.0)
    assert (crew.fit_nodes(), asked) == ([*BOTH, THIRD.id], [[THIRD]])  # also while no place is asked for


def test_a_node_that_is_gone_changes_nothing_for_what_waits(gather, cluster):
    """It might wait for another of its nodes, and what has the same nodes has the same processes."""
    crew, _, _ = gather()
    cluster.remove(SECOND)
    assert crew.fit_nodes() == BOTH
    cluster.remove(FIRST)
    assert crew.fit_nodes() == BOTH


def test_a_note_with_other_figures_is_not_repeated_when_a_node_returns(cluster):
    said: list[str] = []
    free = iter(["3.1 GiB", "2.9 GiB"])

    def examine(nodes):
        fault = Fault(THIRD.name, f"only {next(free)} are free", "make room", stops=False)
        return Report([], [Visit(node, None, [fault]) for node in nodes])

    crew = Crew(place((FIRST, SECOND), None), examine, said.append)
    for node in (THIRD, dataclasses.replace(THIRD, id="again")):
        cluster[2:] = [node]
        crew.places()
    assert [line for line in said if "free" in line] == [f"{THIRD.name}: only 3.1 GiB are free; make room"]
