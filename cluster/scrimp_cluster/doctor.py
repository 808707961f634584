"""The doctor asks every node of the joined cluster what it is fit for, and compares it with the head.

START READING HERE: `examine`. What a node tells is in facts.py, what is made of it in judge.py.
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
from scrimp_cluster import judge, nccl, nodes, ports
from scrimp_cluster.facts import Facts
from scrimp_cluster.judge import Fault, Head
from scrimp_cluster.nodes import Node

ANSWER = 150.0  # seconds until a node that tells nothing is given up; its own checks end after 90
PING = 10.0  # seconds
PINGS = 3
PORTS_START = 15.0  # seconds until the nodes' processes are there
NCCL_START = 15.0  # seconds until GPUs that are not free for the sum are taken for busy


@dataclass(frozen=True)
class Visit:
    """A node with what it told, if it did, and what is wrong with it."""

    node: Node
    facts: Facts | None
    faults: list[Fault]

    @property
    def sick(self) -> bool:
        """Whether it can train nothing."""
        return any(fault.stops for fault in self.faults)


@dataclass(frozen=True)
class Report:
    """What is wrong with the head, and with each node."""

    head: list[Fault]
    visits: list[Visit]

    @property
    def faults(self) -> list[Fault]:
        """All of them, those that stop something first."""
        every = self.head + [fault for visit in self.visits for fault in visit.faults]
        return sorted(every, key=lambda fault: not fault.stops)


Told = dict[Node, Facts | str]
"""The facts of each node, or in a line why there are none."""


def examine(cluster: Sequence[Node], storage: Path, data: Path | None = None, together: bool = True) -> Report:
    """Examine nodes of the cluster that this process has joined.

    Parameters
    ----------
    cluster : sequence of Node
        The nodes to visit, all at once.
    storage : Path
        The storage folder, absolute; where it is missing it is made for as long as this takes.
    data : Path, optional
        A dataset's folder, absolute.
    together : bool
        Whether a node's GPUs are to train a repeat together, and so have to reach each other.
    """
    nodes.send(facts_module, nccl, ports)
    with _probe(storage) as probe:
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
        told = _ask(cluster, probe, head)
    for ask_more in (_compare_clocks, _try_ports, *([_sum_over_gpus] if together else [])):
        told |= ask_more({node: facts for node, facts in told.items() if isinstance(facts, Facts)})
    return Report(judge.of_head(head), [_visit(node, told[node], head) for node in cluster])


def awaited(cluster: Sequence[Node]) -> list[Fault]:
    """Name the nodes of cluster.yaml that are not there; these are all that are."""
    return [judge.awaited(address) for address in nodes.awaited(cluster)]


def _visit(node: Node, facts: Facts | str, head: Head) -> Visit:
    if isinstance(facts, str):
        return Visit(node, None, [judge.no_answer(node, facts)])
    return Visit(node, facts, judge.of_node(node, facts, head))


@dataclass(frozen=True)
class Probe:
    """A folder in the storage folder where the head has written a word to the file `head`, or why it could not."""

    folder: Path
    word: str
    error: str = ""


@contextlib.contextmanager
def _probe(storage: Path) -> Iterator[Probe]:
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


def _ask(cluster: Sequence[Node], probe: Probe, head: Head) -> Told:
    folder = None if probe.error else str(probe.folder)
    asked = {
        node: nodes.start(node, facts_module.gather, folder, probe.word, node.id, head.data or None) for node in cluster
    }
    told: Told = {}
    for node, answer in nodes.wait_for(asked, ANSWER).items():
        if answer.error:
            told[node] = answer.error
            continue
        facts = Facts.of(answer.value)
        arrived = probe.error or facts.storage_error or _read(probe.folder / node.id) == probe.word
        told[node] = facts if arrived else replace(facts, storage_error="what it writes does not reach the head")
    return told


def _compare_clocks(healthy: dict[Node, Facts]) -> Told:
    """Ask each node for its time, a few times: the quickest answer says most."""
    told: Told = {}
    for node, facts in healthy.items():
        rounds = []
        for _ in range(PINGS):
            before = time.time()
            answer = nodes.wait_for({node: nodes.start(node, facts_module.clock)}, PING)[node]
            after = time.time()
            if answer.error:
                told[node] = answer.error
                break
            rounds.append(((after - before) / 2, answer.value - (before + after) / 2))
        else:
            doubt, ahead = min(rounds)
            told[node] = replace(facts, clock=ahead, clock_doubt=doubt)
    return told


def _try_ports(healthy: dict[Node, Facts]) -> Told:
    """Let each node listen as Ray's workers do, and connect to all others there, at their raylets and their objects."""
    listening = {node: (node.address, ports.some(*facts.worker_ports)) for node, facts in healthy.items()}
    asked, doors = {}, {}
    for node in healthy:
        doors[node] = [
            door for other in healthy if other != node for door in _doors(other, healthy[other], listening[other])
        ]
        knocks = [door for _, _, door in doors[node]]
        asked[node] = nodes.start(node, ports.meet, listening[node], knocks, len(healthy) - 1)
    told: Told = {}
    shut: dict[tuple[Node, str], list[Node]] = {}
    for node, answer in nodes.wait_for(asked, PORTS_START + ports.LIMIT).items():
        if answer.error:
            told[node] = answer.error
        for number in answer.value or ():
            other, what, _ = doors[node][number]
            shut.setdefault((other, what), []).append(node)
    return _blame(shut, healthy) | told


def _doors(node: Node, facts: Facts, listening: ports.Door) -> list[tuple[Node, str, ports.Door]]:
    """Return what of a node the others have to reach, in words and as addresses."""
    first, last = facts.worker_ports
    return [
        (node, f"worker ports {first}-{last}" if first else "worker ports", listening),
        (node, f"raylet, port {node.raylet}", (node.address, [node.raylet])),
        (node, f"object manager, port {node.objects}", (node.address, [node.objects])),
    ]


def _blame(shut: dict[tuple[Node, str], list[Node]], healthy: dict[Node, Facts]) -> Told:
    """Charge a connection that fails to the node that is not reached; if that is the head, to the other one."""
    blocked: dict[Node, dict[str, bool]] = {}
    for (node, what), others in shut.items():
        if node.head:
            for other in others:
                blocked.setdefault(other, {})[f"cannot reach the head's {what}"] = True
        else:
            line = f"not reached by {', '.join(other.name for other in others)}: its {what}"
            blocked.setdefault(node, {})[line] = any(other.head for other in others)
    return {node: replace(healthy[node], blocked=lines) for node, lines in blocked.items()}


def _sum_over_gpus(healthy: dict[Node, Facts]) -> Told:
    """Let the GPUs of each node with several of them sum over NCCL, where no repeat has them."""
    asked = {}
    for node, facts in healthy.items():
        gpus = min(node.gpus, len(facts.gpus))
        if gpus > 1 and not facts.cuda_error:
            asked[node] = nodes.start(node, nccl.all_reduce, gpus, gpus=gpus)
    told: Told = {}
    for node, answer in nodes.wait_for(asked, NCCL_START + nccl.LIMIT).items():
        error = "" if answer.late else answer.value or answer.error
        told[node] = replace(healthy[node], nccl="GPUs in use" if answer.late else "tried", nccl_error=error)
    return told


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
