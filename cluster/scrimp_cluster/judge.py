"""What is wrong with a node, judged from its facts alone: each fault is one line, with what mends it."""

from dataclasses import dataclass

from scrimp_cluster.facts import TMP, Dataset, Facts
from scrimp_cluster.nodes import Node

GIB = 2**30
MEMORY_LEAST = 1 * GIB  # a repeat's processes take about 2 GiB; below this not even one starts
MEMORY_ENOUGH = 4 * GIB
TMP_LEAST = 1 * GIB
TMP_ENOUGH = 5 * GIB
TMP_SHARE = 0.95  # of /tmp in use: there Ray stops to place objects
STORAGE_LEAST = 1 * GIB
STORAGE_ENOUGH = 10 * GIB
CLOCK = 2.0  # seconds
GPU_FREE = 0.8  # of a GPU's memory


@dataclass(frozen=True)
class Fault:
    """Something to mend on a node."""

    node: str
    what: str
    mend: str
    stops: bool
    """Whether the node can train nothing with it; otherwise it is worth knowing."""

    def __str__(self) -> str:
        return f"{self.node}: {self.what}; {self.mend}"


Found = list[tuple[str, str, bool]]
"""Faults without their node: what, mend, stops."""


@dataclass(frozen=True)
class Head:
    """What every node is compared with: the process that runs the sweep."""

    name: str
    versions: dict[str, str]
    code: str
    """The hash of Scrimp's own files."""
    storage: str
    """The storage folder."""
    storage_error: str = ""
    """Why nothing can be written there."""
    storage_free: int = 0
    """Bytes free there."""
    data: str = ""
    """The dataset's folder, if there is one to look for."""
    dataset: Dataset | None = None
    token: str = ""
    """The hash of Ray's token, if it asks for one."""


def of_head(head: Head) -> list[Fault]:
    """Judge what is the same for every node: whether there is storage to share, room in it, and a whole dataset."""
    found: Found = []
    if head.dataset and head.dataset.missing:
        what = f"dataset {head.data} lacks {head.dataset.missing} shards"
        found.append((what, "copy or prepare it again", True))
    if head.storage_error:
        mend = "make the folder writable, or name another with --storage"
        found.append((f"storage {head.storage}: {head.storage_error}", mend, True))
    else:
        what = f"storage {head.storage}: {_size(head.storage_free)} free"
        found += _short(what, "make room there", head.storage_free, STORAGE_LEAST, STORAGE_ENOUGH)
    return [Fault(head.name, *each) for each in found]


def of_node(node: Node, facts: Facts, head: Head) -> list[Fault]:
    """Judge a node by its facts."""
    found = [*_versions(facts, head), *_gpus(node, facts), *_files(facts, head), *_room(facts)]
    if abs(facts.clock) - facts.clock_doubt > CLOCK:
        side = "ahead of" if facts.clock > 0 else "behind"
        found.append((f"clock {abs(facts.clock):.0f} s {side} the head's", "`timedatectl set-ntp true` there", False))
    if facts.token_mode & 0o077:
        what = f"token {facts.token_file} is open to others ({facts.token_mode:04o})"
        found.append((what, f"`chmod 600 {facts.token_file}`", False))
    if head.token and facts.token != head.token:
        what = "Ray's token is another than the head's" if facts.token else "Ray's token is missing"
        found.append((what, "`ray up cluster.yaml` brings it; without it Ray cannot start there again", False))
    mend = "open these ports between the nodes (firewall, routes)"
    found += [(what, mend, stops) for what, stops in facts.blocked.items()]
    return [Fault(node.name, *each) for each in found]


def no_answer(node: Node, why: str) -> Fault:
    """Judge a node that told nothing."""
    return Fault(node.name, why, "look at `ray status` and at the node, and start Ray there again", stops=True)


def awaited(address: str) -> Fault:
    """Judge a node of cluster.yaml that is not in the cluster."""
    mend = "sweeps take it in when it joins; `ray status` on the head tells what Ray knows of it"
    return Fault(address, "is not in the cluster yet", mend, stops=False)


def _versions(facts: Facts, head: Head) -> Found:
    # What follows a + is the build, such as cu126 or cpu, in which a head without GPUs may differ.
    others = [
        f"{name} {facts.versions[name] or 'missing'} (head: {version or 'missing'})"
        for name, version in head.versions.items()
        if facts.versions[name].partition("+")[0] != version.partition("+")[0]
    ]
    if others:
        return [(f"other versions: {', '.join(others)}", "install requirements.lock there, and start Ray again", True)]
    if facts.code != head.code:
        what = f"other code than the head's ({facts.code[:8] or 'none'} there, {head.code[:8]} on the head)"
        return [(what, "`ray up cluster.yaml` brings it up to date", True)]
    return []


def _gpus(node: Node, facts: Facts) -> Found:
    seen = len(facts.gpus)
    if not facts.nvidia_smi:
        # Logical slots stand for GPUs in trials of a cluster without any.
        mend = "repeats train on its CPU; install NVIDIA's driver if it has GPUs"
        return [(f"Ray counts {node.gpus} GPUs, but there is no nvidia-smi", mend, False)] if node.gpus else []
    if facts.gpu_error:
        mend = "load the driver anew (`nvidia-smi` there says more), often by a reboot"
        return [(f"nvidia-smi: {facts.gpu_error}", mend, node.gpus > 0)]
    found: Found = []
    if seen < node.gpus:
        mend = "look for Xid in `dmesg` there, and start Ray again once all are back"
        found.append((f"Ray counts {node.gpus} GPUs, nvidia-smi shows {seen}", mend, True))
    elif seen > node.gpus:
        found.append(
            (f"Ray uses {node.gpus} of {seen} GPUs", "start Ray there with --num-gpus if it may use all", False)
        )
    if facts.cuda_error:
        mend, full = "install a torch that fits the driver", "out of memory" in facts.cuda_error
        mend = "`nvidia-smi` there shows who uses them" if full else mend
        found.append((f"torch cannot use the GPUs: {facts.cuda_error}", mend, node.gpus > 0 and not full))
    for number, gpu in enumerate(facts.gpus):
        if gpu.free < GPU_FREE * gpu.total:
            what = f"GPU {number} ({gpu.name}): {gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
            found.append((what, "`nvidia-smi` there shows who uses it", False))
    if facts.nccl_error:
        mend = "train with --gpus-per-repeat 1, or see what `NCCL_DEBUG=INFO` and `nvidia-smi topo -m` say"
        found.append((f"NCCL between its GPUs: {facts.nccl_error}", mend, True))
    return found


def _files(facts: Facts, head: Head) -> Found:
    found: Found = []
    if facts.storage_error:
        mend = "mount it there as on the head, writable, under the same path"
        found.append((f"storage {head.storage}: {facts.storage_error}", mend, True))
    if head.dataset and facts.dataset != head.dataset:
        seen = facts.dataset or Dataset("")
        what = "is not there" if not seen.sha256 else "is another one" if seen.sha256 != head.dataset.sha256 else ""
        what = what or f"lacks {seen.missing} shards"
        found.append((f"dataset {head.data} {what}", "share or copy it to the same path there", True))
    return found


def _room(facts: Facts) -> Found:
    what, mend = f"{_size(facts.memory)} of memory available", "end what else runs there"
    memory = _short(what, mend, facts.memory, MEMORY_LEAST, MEMORY_ENOUGH)
    tmp = _short(f"{TMP}: {_size(facts.tmp)} free", "make room there", facts.tmp, TMP_LEAST, TMP_ENOUGH)
    if not tmp and facts.tmp_share > TMP_SHARE:
        tmp = [(f"{TMP} is {facts.tmp_share:.0%} full", f"make room there: Ray wants {1 - TMP_SHARE:.0%} free", False)]
    return memory + tmp


def _short(what: str, mend: str, size: int, least: int, enough: int) -> Found:
    return [(what, f"{mend}: {_size(enough)} are enough", size < least)] if size < enough else []


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
