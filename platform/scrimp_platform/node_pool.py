"""The nodes that train, as they join and leave while a sweep runs; a node that joins is examined first.

A node on which repeats fail becomes free at once and would be given one repeat after another. So it is suspended.
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

UPDATE_INTERVAL_S = 10.0
FAILURE_WINDOW_S = 3600.0
"""Two failures on a node within this time suspend it."""
SUSPENSION_S = 600.0
"""Doubled at each further suspension of the same node."""


class NodePool:
    """Counts the repeats that fit on the cluster's nodes.

    Parameters
    ----------
    placement : Placement
        The nodes at the start of the sweep.
    examine : Callable
        Asks the doctor about nodes that have joined since. The driver waits for the answer, training does not.
    say : Callable
        Called with each line for the user.
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
        self._reported: set[str] = set()
        self._failed_at: dict[str, float] = {}
        self._suspended_until: dict[str, float] = {}
        self._suspensions: Counter[str] = Counter()
        self._update_due = time.monotonic() + UPDATE_INTERVAL_S

    def places(self) -> int:
        """Return how many repeats may be running or waiting for a place now."""
        self._update_if_due()
        if self._gpus:
            return self._places
        # One repeat more than fits waits for a process to become free: Tune then reuses the process, which saves about
        # 15 s of imports. A Train run starts its own processes.
        return self._places + 1

    def fit_nodes(self) -> list[str]:
        """Return the ids of the nodes that may train: those that the doctor found fit and that are not suspended.

        A node that has left stays among them. There is always one, since the last one alive is never suspended.
        """
        self._update_if_due()
        return sorted(self._fit)

    def record_failure(self, node_id: str) -> None:
        """Record that a repeat has failed on a node, and that the recipe may not be the cause."""
        now = time.monotonic()
        previous = self._failed_at.get(node_id, -math.inf)
        self._failed_at[node_id] = now

        others = [node for node in cluster_nodes.alive() if node.id in self._fit and node.id != node_id]
        if now - previous > FAILURE_WINDOW_S or node_id not in self._fit or not others:
            return

        duration = SUSPENSION_S * 2 ** self._suspensions[node_id]
        self._suspensions[node_id] += 1
        self._suspended_until[node_id] = now + duration
        node = self._fit.pop(node_id)
        self._say(
            f"{node.name}: two repeats failed there within an hour; suspended for {duration / 60:.0f} minutes, "
            "then examined again"
        )
        self._update_due = now

    def _suspended(self) -> set[str]:
        now = time.monotonic()
        return {node_id for node_id, until in self._suspended_until.items() if until > now}

    def _update_if_due(self) -> None:
        if time.monotonic() >= self._update_due:
            self._update()
            self._update_due = time.monotonic() + UPDATE_INTERVAL_S

    def _update(self) -> None:
        """Examine the nodes that have joined, and count the places again."""
        nodes = cluster_nodes.alive()
        known = self._fit.keys() | self._unfit.keys() | self._suspended()
        new = [node for node in nodes if node.id not in known]
        if new:
            self._add(self._examine(new))

        places = sum(node.places(self._gpus) for node in nodes if node.id in self._fit)
        if places != self._places:
            self._say(f"{len(nodes)} nodes in the cluster: up to {places} repeats at once")
            self._places = places

    def _add(self, report: ClusterReport) -> None:
        for node_report in report.nodes:
            group = self._unfit if node_report.unfit else self._fit
            group[node_report.node.id] = node_report.node

        for fault in report.faults:
            # A node that rejoins may have the same harmless fault with other figures: it is reported once.
            kind = re.sub(r"\d+(\.\d+)?", "#", str(fault))
            if fault.stops or kind not in self._reported:
                self._say(str(fault))
            self._reported.add(kind)
