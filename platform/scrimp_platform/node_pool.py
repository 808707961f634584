"""The nodes that train, as they come and go while a sweep runs; one that joins is examined first.

A node on which repeats fail is free again at once, and would be given the next, and the next. So it rests.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

from scrimp_cluster import nodes as cluster_nodes
from scrimp_cluster.doctor import ClusterReport
from scrimp_cluster.nodes import Node
from scrimp_platform.cluster import Placement

LOOK = 10.0  # seconds between two looks at the cluster
AGAIN = 3600.0  # seconds within which a second failure on a node is one too many
REST = 600.0  # seconds that it rests then, and twice as long each further time


class NodePool:
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
        self, placement: Placement, examine: Callable[[Sequence[Node]], ClusterReport], say: Callable[[str], None]
    ) -> None:
        self._gpus = placement.gpus_per_repeat
        self._fit = {node.id: node for node in placement.nodes}
        self._unfit = {node.id: node for node in placement.avoided}
        self._places = placement.places
        self._examine = examine
        self._say = say
        self._noted: set[str] = set()
        self._failed: dict[str, float] = {}
        self._resting: dict[str, float] = {}
        self._rests: Counter[str] = Counter()
        self._due = time.monotonic() + LOOK

    def places(self) -> int:
        """Return how many repeats may be under way at once."""
        self._look_if_due()
        # One repeat more than there are places waits for a process to become free: Tune then keeps the process, and
        # with it some 15 s of imports. A Train run brings processes of its own.
        return self._places if self._gpus else self._places + 1

    def fit_nodes(self) -> list[str]:
        """Return the ids of the nodes that may train: those that the doctor found fit and that do not rest.

        A node that is gone stays among them. There is always one, since the last one that is alive never rests.
        """
        self._look_if_due()
        return sorted(self._fit)

    def blame(self, failed: str) -> None:
        """Take note that a repeat has failed on the node with this id, and that it may not be the recipe's fault."""
        now = time.monotonic()
        last, self._failed[failed] = self._failed.get(failed, -math.inf), now
        others = [node for node in cluster_nodes.alive() if node.id in self._fit and node.id != failed]
        if now - last > AGAIN or failed not in self._fit or not others:
            return
        rest = REST * 2 ** self._rests[failed]
        self._rests[failed] += 1
        self._resting[failed] = now + rest
        self._say(
            f"{self._fit.pop(failed).name}: repeats have failed there twice within an hour; it rests for "
            f"{rest / 60:.0f} minutes, and is examined then"
        )
        self._due = now

    def _at_rest(self) -> set[str]:
        now = time.monotonic()
        return {node for node, until in self._resting.items() if until > now}

    def _look_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._look()
            self._due = time.monotonic() + LOOK

    def _look(self) -> None:
        nodes = cluster_nodes.alive()
        known = self._fit.keys() | self._unfit.keys() | self._at_rest()
        if new := [node for node in nodes if node.id not in known]:
            report = self._examine(new)
            for node_report in report.nodes:
                (self._unfit if node_report.unfit else self._fit)[node_report.node.id] = node_report.node
            for fault in report.faults:
                # A node that comes back still has what is worth knowing, with other figures.
                kind = re.sub(r"\d+(\.\d+)?", "#", str(fault))
                if fault.stops or kind not in self._noted:
                    self._say(str(fault))
                self._noted.add(kind)
        places = sum(node.places(self._gpus) for node in nodes if node.id in self._fit)
        if places != self._places:
            self._say(f"{len(nodes)} nodes: {places} repeats at once from now on")
            self._places = places
