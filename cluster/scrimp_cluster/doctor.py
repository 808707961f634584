"""The doctor asks every node of the joined cluster whether it can train, and compares it with the head.

START READING HERE: `examine`. What a node reports is in facts.py, how that is judged in faults.py.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scrimp_cluster import facts as facts_module
from scrimp_cluster import faults, nccl, nodes, ports
from scrimp_cluster.facts import Facts
from scrimp_cluster.faults import Fault, Head
from scrimp_cluster.nodes import Node

FACTS_TIMEOUT_S = 150.0  # a node's own checks end after 90 s
CLOCK_TIMEOUT_S = 10.0
CLOCK_READINGS = 3
PORTS_START_S = 15.0  # until the processes that exchange connections run on all nodes
NCCL_START_S = 15.0  # after which GPUs that Ray has not handed out count as in use


@dataclass(frozen=True)
class NodeReport:
    """A node with its facts, if it answered, and its faults."""

    node: Node
    facts: Facts | None
    faults: list[Fault]

    @property
    def unfit(self) -> bool:
        """Whether it cannot train anything."""
        return any(fault.stops for fault in self.faults)


@dataclass(frozen=True)
class ClusterReport:
    """The faults of the head, and the report of each node."""

    head: list[Fault]
    nodes: list[NodeReport]

    @property
    def faults(self) -> list[Fault]:
        """All faults, those that stop something first."""
        every = list(self.head)
        for report in self.nodes:
            every += report.faults
        return sorted(every, key=lambda fault: not fault.stops)


Answers = dict[Node, Facts | str]
"""The facts of each node, or an error message of one line."""


def examine(cluster: Sequence[Node], storage: Path, data: Path | None = None, together: bool = True) -> ClusterReport:
    """Examine nodes of the cluster that this process has joined.

    Parameters
    ----------
    cluster : sequence of Node
        The nodes, which are examined at the same time.
    storage : Path
        The storage folder, absolute; a missing one is created and removed again.
    data : Path, optional
        A dataset's folder, absolute.
    together : bool
        Whether a repeat trains on several GPUs of a node, which then have to reach each other.
    """
    nodes.send(facts_module, nccl, ports)
    with _write_probe(storage) as probe:
        head = Head(
            os.uname().nodename,
            facts_module.versions(),
            facts_module.code(),
            str(storage),
            storage_error=probe.error,
            storage_free=0 if probe.error else shutil.disk_usage(probe.folder).free,
            data=str(data or ""),
            dataset=facts_module.dataset(str(data)) if data else None,
            token=facts_module.token(probe.word),
        )
        answers = _gather_facts(cluster, probe, head)

    checks = [_compare_clocks, _try_ports]
    if together:
        checks.append(_sum_over_gpus)
    for check in checks:
        # A node that has failed one check is not asked again.
        healthy = {node: facts for node, facts in answers.items() if isinstance(facts, Facts)}
        answers |= check(healthy)
    return ClusterReport(faults.of_head(head), [_report(node, answers[node], head) for node in cluster])


def missing_nodes(cluster: Sequence[Node]) -> list[Fault]:
    """Return a fault for each node of cluster.yaml that is not among these, which are all that are alive."""
    return [faults.not_joined(address) for address in nodes.missing_addresses(cluster)]


def _report(node: Node, facts: Facts | str, head: Head) -> NodeReport:
    if isinstance(facts, str):
        return NodeReport(node, None, [faults.no_answer(node, facts)])
    return NodeReport(node, facts, faults.of_node(node, facts, head))


@dataclass(frozen=True)
class Probe:
    """A folder in the storage folder where the head has written a word to the file `head`, or why it could not."""

    folder: Path
    word: str
    error: str = ""


@contextlib.contextmanager
def _write_probe(storage: Path) -> Iterator[Probe]:
    missing: list[Path] = []
    word = secrets.token_hex(16)
    probe = Probe(storage / f".doctor-{word[:8]}", word)
    try:
        try:
            missing = [folder for folder in (storage, *storage.parents) if not folder.exists()]
            probe.folder.mkdir(parents=True)
            (probe.folder / "head").write_text(word)
        except OSError as error:
            probe = replace(probe, error=error.strerror)
        yield probe
    finally:
        shutil.rmtree(probe.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _gather_facts(cluster: Sequence[Node], probe: Probe, head: Head) -> Answers:
    folder = None if probe.error else str(probe.folder)
    started = {}
    for node in cluster:
        started[node] = nodes.start(node, facts_module.collect_facts, folder, probe.word, node.id, head.data or None)

    answers: Answers = {}
    for node, answer in nodes.wait_for(started, FACTS_TIMEOUT_S).items():
        if answer.error:
            answers[node] = answer.error
            continue
        facts = Facts.of(answer.value)
        # The node may write to another folder of the same name: the head must see what it wrote.
        if not probe.error and not facts.storage_error and _read(probe.folder / node.id) != probe.word:
            facts = replace(facts, storage_error="what it writes does not reach the head")
        answers[node] = facts
    return answers


def _compare_clocks(healthy: dict[Node, Facts]) -> Answers:
    """Ask each node for its time, a few times: the shortest round trip bounds the difference best."""
    answers: Answers = {}
    for node, facts in healthy.items():
        readings = []
        for _ in range(CLOCK_READINGS):
            before = time.time()
            answer = nodes.wait_for({node: nodes.start(node, facts_module.clock)}, CLOCK_TIMEOUT_S)[node]
            after = time.time()
            if answer.error:
                answers[node] = answer.error
                break
            doubt = (after - before) / 2
            ahead = answer.value - (before + after) / 2
            readings.append((doubt, ahead))
        else:
            doubt, ahead = min(readings)
            answers[node] = replace(facts, clock=ahead, clock_doubt=doubt)
    return answers


def _try_ports(healthy: dict[Node, Facts]) -> Answers:
    """Let each node listen as Ray's workers do, and connect to the workers, raylet and object manager of the others."""
    listening = {node: (node.address, ports.some(*facts.worker_ports)) for node, facts in healthy.items()}
    started = {}
    targets: dict[Node, list[Target]] = {}
    for node in healthy:
        targets[node] = []
        for other in healthy:
            if other != node:
                targets[node] += _targets(other, healthy[other], listening[other])
        endpoints = [endpoint for _, _, endpoint in targets[node]]
        started[node] = nodes.start(node, ports.exchange, listening[node], endpoints, len(healthy) - 1)

    answers: Answers = {}
    unreachable: dict[tuple[Node, str], list[Node]] = {}
    for node, answer in nodes.wait_for(started, PORTS_START_S + ports.EXCHANGE_TIMEOUT_S).items():
        if answer.error:
            answers[node] = answer.error
        for number in answer.value or ():
            other, what, _ = targets[node][number]
            unreachable.setdefault((other, what), []).append(node)
    return _attribute(unreachable, healthy) | answers


Target = tuple[Node, str, ports.Endpoint]
"""A node, what of it is to be reached in words, and where that is."""


def _targets(node: Node, facts: Facts, listening: ports.Endpoint) -> list[Target]:
    """Return what of a node the others have to reach."""
    first, last = facts.worker_ports
    return [
        (node, f"worker ports {first}-{last}" if first else "worker ports", listening),
        (node, f"raylet, port {node.raylet}", (node.address, [node.raylet])),
        (node, f"object manager, port {node.objects}", (node.address, [node.objects])),
    ]


def _attribute(unreachable: dict[tuple[Node, str], list[Node]], healthy: dict[Node, Facts]) -> Answers:
    """Charge a failed connection to the node that is not reached; if that is the head, to the other node."""
    blocked: dict[Node, dict[str, bool]] = {}
    for (node, what), others in unreachable.items():
        if node.head:
            for other in others:
                blocked.setdefault(other, {})[f"cannot reach the head's {what}"] = True
        else:
            line = f"not reached by {', '.join(other.name for other in others)}: its {what}"
            blocked.setdefault(node, {})[line] = any(other.head for other in others)
    return {node: replace(healthy[node], blocked=lines) for node, lines in blocked.items()}


def _sum_over_gpus(healthy: dict[Node, Facts]) -> Answers:
    """Run an all-reduce over NCCL on each node with several GPUs, unless a repeat uses them."""
    started = {}
    for node, facts in healthy.items():
        gpus = min(node.gpus, len(facts.gpus))
        if gpus > 1 and not facts.cuda_error:
            started[node] = nodes.start(node, nccl.all_reduce, gpus, gpus=gpus)

    answers: Answers = {}
    for node, answer in nodes.wait_for(started, NCCL_START_S + nccl.ALL_REDUCE_TIMEOUT_S).items():
        if answer.late:
            answers[node] = replace(healthy[node], nccl="GPUs in use", nccl_error="")
        else:
            answers[node] = replace(healthy[node], nccl="tried", nccl_error=answer.value or answer.error)
    return answers


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
