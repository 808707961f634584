"""Where the device-hours of a sweep went: by phase, between training and scoring, and by node over time."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scrimp_platform.search.records import Preparation, Records, Repeat

BINS = 96
"""Steps of time in which the work of nodes is shown."""
MAX_NODES = 60
"""Nodes that are shown, those that have worked longest."""


@dataclass
class PhaseHours:
    """The device-hours of one phase of a sweep."""

    phase: str
    training: float = 0.0
    scoring: float = 0.0
    """Drawing samples and scoring them."""
    other: float = 0.0
    """The rest: starting, loading, and what was lost or has not reached a rung."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.training + self.scoring + self.other


@dataclass(frozen=True)
class NodeWork:
    """What nodes have worked over the time of a sweep."""

    nodes: list[str]
    hours: list[float]
    """Middle of each step of time, in hours since the first start."""
    repeats: list[list[float]]
    """Repeats at work by node and step, averaged over the step."""
    share: float
    """Share of the time for which a node has worked, averaged over the nodes."""


def by_phase(known: Records) -> list[PhaseHours]:
    """Return the device-hours of the search, the race, and of references and proxies, as far as there are some."""
    phases = {name: PhaseHours(name) for name in ("search", "race", "preparations")}
    for repeat in known.repeats:
        own = phases[repeat.phase]
        training, scoring = _measured(repeat)
        own.training += training
        own.scoring += scoring
        own.other += max(0.0, repeat.device_hours - training - scoring)
    for preparation in known.preparations:
        phases["preparations"].training += preparation.device_hours
    return [own for own in phases.values() if own.total]


def _measured(repeat: Repeat) -> tuple[float, float]:
    """Split the device-hours up to a repeat's last rung: training, by its speed just before each rung, and scoring."""
    if not repeat.last:
        return 0.0, 0.0
    training = 0.0
    before = 0.0
    for kimg in sorted(repeat.rungs):
        row = repeat.rungs[kimg]
        if row.images_per_second > 0:
            training += 1000 * (row.kimg - before) / row.images_per_second
        before = row.kimg
    training = min(training, repeat.last.seconds)
    return training * repeat.devices / 3600, (repeat.last.seconds - training) * repeat.devices / 3600


def by_node(works: Iterable[Repeat | Preparation]) -> NodeWork | None:
    """Return how many repeats each node has worked at over time; None if no stint is on record."""
    stints: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for node, began, ended in (stint for work in works for stint in work.stints):
        if node:
            stints[node].append((began, ended))
    if not stints:
        return None

    first = min(began for own in stints.values() for began, _ in own)
    last = max(ended for own in stints.values() for _, ended in own)
    step = (last - first) / BINS or 1.0
    shares = [_covered(own) / (step * BINS) for own in stints.values()]
    longest = sorted(stints, key=lambda node: -sum(ended - began for began, ended in stints[node]))[:MAX_NODES]
    nodes = sorted(longest)
    return NodeWork(
        nodes=nodes,
        hours=[(place + 0.5) * step / 3600 for place in range(BINS)],
        repeats=[_binned(stints[node], first, step) for node in nodes],
        share=sum(shares) / len(shares),
    )


def _binned(stints: Sequence[tuple[float, float]], first: float, step: float) -> list[float]:
    """Return the stints that go on in each step of time, averaged over the step."""
    counts = [0.0] * BINS
    for began, ended in stints:
        begin = (began - first) / step
        end = (ended - first) / step
        for place in range(math.floor(begin), min(BINS, math.ceil(end))):
            counts[place] += min(end, place + 1) - max(begin, place)
    return counts


def _covered(stints: Sequence[tuple[float, float]]) -> float:
    """Return the seconds in which at least one of the stints goes on."""
    covered = 0.0
    until = -math.inf
    for began, ended in sorted(stints):
        covered += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return covered
