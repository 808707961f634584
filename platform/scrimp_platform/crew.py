"""The nodes that train, as they come and go while a sweep runs; one that joins is examined first."""

import time
from collections.abc import Callable, Sequence

from scrimp_cluster import nodes as cluster_nodes
from scrimp_cluster.doctor import Report
from scrimp_cluster.judge import Fault
from scrimp_cluster.nodes import Node
from scrimp_platform.cluster import Placement

LOOK = 10.0  # seconds between two looks at the cluster


class Crew:
    """Counts the repeats that fit on the cluster's nodes.

    Parameters
    ----------
    placement : Placement
        What was found at the start.
    examine : Callable
        Asks the doctor about nodes that have joined since. Training does not wait for it, decisions do.
    say : Callable
        Takes a line for people.
    """

    def __init__(
        self, placement: Placement, examine: Callable[[Sequence[Node]], Report], say: Callable[[str], None]
    ) -> None:
        self._gpus = placement.gpus_per_repeat
        self._fit = {node.id: node for node in placement.nodes}
        self._sick = {node.id: node for node in placement.avoided}
        self._places = placement.places
        self._examine = examine
        self._say = say
        self._noted: set[Fault] = set()
        self._due = time.monotonic() + LOOK

    def places(self) -> int:
        """Return how many repeats may be under way at once."""
        if time.monotonic() >= self._due:
            self._look()
            self._due = time.monotonic() + LOOK
        # One repeat more than there are places waits for a process to become free: Tune then keeps the process, and
        # with it some 15 s of imports. A Train run brings processes of its own.
        return self._places if self._gpus else self._places + 1

    def avoided(self) -> list[str]:
        """Return the ids of the nodes on which nothing can train."""
        return sorted(self._sick)

    def _look(self) -> None:
        nodes = cluster_nodes.alive()
        if new := [node for node in nodes if node.id not in self._fit.keys() | self._sick.keys()]:
            report = self._examine(new)
            for visit in report.visits:
                (self._sick if visit.sick else self._fit)[visit.node.id] = visit.node
            for fault in report.faults:
                if fault.stops or fault not in self._noted:  # a node that comes back still has what is worth knowing
                    self._say(str(fault))
            self._noted.update(report.faults)
        places = sum(node.places(self._gpus) for node in nodes if node.id in self._fit)
        if places != self._places:
            self._say(f"{len(nodes)} nodes: {places} repeats at once from now on")
            self._places = places
