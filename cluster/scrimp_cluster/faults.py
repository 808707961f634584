"""What is wrong with a node, judged from its facts alone: each fault is one line, with its remedy."""

from dataclasses import dataclass

from scrimp_cluster.facts import TMP, DatasetFacts, Facts
from scrimp_cluster.nodes import Node

GIB = 2**30
MEMORY_LEAST = 1 * GIB  # a repeat's processes take about 2 GiB; below this not even one starts
MEMORY_ENOUGH = 4 * GIB
TMP_LEAST = 1 * GIB
TMP_ENOUGH = 5 * GIB
TMP_SHARE = 0.95  # of /tmp in use: there Ray stops to place objects
STORAGE_LEAST = 1 * GIB
STORAGE_ENOUGH = 10 * GIB
CLOCK_TOLERANCE_S = 2.0
GPU_FREE = 0.8  # of a GPU's memory
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The oldest branch of NVIDIA's driver that CUDA of each major version runs on, as its release notes say."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a node."""

    node: str
    what: str
    remedy: str
    stops: bool
    """Whether the node cannot train because of it; otherwise it is only worth knowing."""

    def __str__(self) -> str:
        return f"{self.node}: {self.what}; {self.remedy}"


Findings = list[tuple[str, str, bool]]
"""Faults without their node: what, remedy, stops."""


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
    dataset: DatasetFacts | None = None
    token: str = ""
    """The hash of Ray's token, if it asks for one."""


def of_head(head: Head) -> list[Fault]:
    """Return the faults that all nodes share: no storage, no space left in it, an incomplete dataset."""
    findings: Findings = []
    if head.dataset and head.dataset.missing:
        what = f"dataset {head.data} lacks {head.dataset.missing} shards"
        findings.append((what, "copy or prepare it again", True))

    if head.storage_error:
        remedy = "make the folder writable, or name another with --storage"
        findings.append((f"storage {head.storage}: {head.storage_error}", remedy, True))
    else:
        what = f"storage {head.storage}: {_size(head.storage_free)} free"
        findings += _short(what, "free some space there", head.storage_free, STORAGE_LEAST, STORAGE_ENOUGH)
    return [Fault(head.name, *finding) for finding in findings]


def of_node(node: Node, facts: Facts, head: Head) -> list[Fault]:
    """Return the faults that a node's facts show."""
    findings = [*_versions(facts, head), *_gpus(node, facts), *_files(facts, head), *_free_space(facts)]
    if abs(facts.clock) - facts.clock_doubt > CLOCK_TOLERANCE_S:
        side = "ahead of" if facts.clock > 0 else "behind"
        what = f"clock {abs(facts.clock):.0f} s {side} the head's"
        findings.append((what, "`timedatectl set-ntp true` there", False))

    if facts.token_mode & 0o077:
        what = f"token {facts.token_file} is open to others ({facts.token_mode:04o})"
        findings.append((what, f"`chmod 600 {facts.token_file}`", False))
    if head.token and facts.token != head.token:
        what = "Ray's token differs from the head's" if facts.token else "Ray's token is missing"
        findings.append((what, "`ray up cluster.yaml` copies it; without it Ray cannot start there again", False))

    remedy = "open these ports between the nodes (firewall, routes)"
    for what, stops in facts.blocked.items():
        findings.append((what, remedy, stops))
    return [Fault(node.name, *finding) for finding in findings]


def no_answer(node: Node, why: str) -> Fault:
    """Return the fault of a node that did not answer."""
    return Fault(node.name, why, "look at `ray status` and at the node, and start Ray there again", stops=True)


def not_joined(address: str) -> Fault:
    """Return the fault of a node of cluster.yaml that has not joined the cluster."""
    remedy = "sweeps use it once it joins; `ray status` on the head shows what Ray knows of it"
    return Fault(address, "is not in the cluster yet", remedy, stops=False)


def _versions(facts: Facts, head: Head) -> Findings:
    # What follows a + is the build, such as cu126 or cpu, in which a head without GPUs may differ.
    different = []
    for name, version in head.versions.items():
        installed = facts.versions[name]
        if installed.partition("+")[0] != version.partition("+")[0]:
            different.append(f"{name} {installed or 'missing'} (head: {version or 'missing'})")
    if different:
        what = f"other versions: {', '.join(different)}"
        python = "" if facts.versions["python"] == head.versions["python"] else " with the head's Python"
        return [(what, f"install requirements.lock there{python}, and start Ray again", True)]
    if facts.code != head.code:
        what = f"other code than the head's ({facts.code[:8] or 'none'} there, {head.code[:8]} on the head)"
        return [(what, "`ray up cluster.yaml` updates it", True)]
    return []


def _gpus(node: Node, facts: Facts) -> Findings:
    if not facts.nvidia_smi:
        if not node.gpus:
            return []
        # To try a cluster out without GPUs, Ray can be told to count some.
        remedy = "repeats train on its CPU; install NVIDIA's driver if it has GPUs"
        return [(f"Ray counts {node.gpus} GPUs, but there is no nvidia-smi", remedy, False)]
    if facts.gpu_error:
        remedy = "reload the driver (`nvidia-smi` there says more), often by a reboot"
        return [(f"nvidia-smi: {facts.gpu_error}", remedy, node.gpus > 0)]

    findings: Findings = []
    visible = len(facts.gpus)
    if visible < node.gpus:
        remedy = "look for Xid in `dmesg` there, and start Ray again once all are back"
        findings.append((f"Ray counts {node.gpus} GPUs, nvidia-smi shows {visible}", remedy, True))
    elif visible > node.gpus:
        remedy = "start Ray there with --num-gpus if it may use all"
        findings.append((f"Ray uses {node.gpus} of {visible} GPUs", remedy, False))

    if facts.cuda_error:
        full = "out of memory" in facts.cuda_error
        remedy = "`nvidia-smi` there shows who uses them" if full else _driver_remedy(facts)
        findings.append((f"torch cannot use the GPUs: {facts.cuda_error}", remedy, node.gpus > 0 and not full))

    for number, gpu in enumerate(facts.gpus):
        if gpu.free < GPU_FREE * gpu.total:
            what = f"GPU {number} ({gpu.name}): {gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
            findings.append((what, "`nvidia-smi` there shows who uses it", False))

    if facts.nccl_error:
        remedy = "train with --gpus-per-repeat 1, or see what `NCCL_DEBUG=INFO` and `nvidia-smi topo -m` say"
        findings.append((f"NCCL between its GPUs: {facts.nccl_error}", remedy, True))
    return findings


def _driver_remedy(facts: Facts) -> str:
    """Return what to do where torch cannot use the GPUs. The nodes share the lock's torch, so the driver has to fit."""
    least = LEAST_DRIVER.get(_major(facts.torch_cuda))
    if least is None or not facts.gpus:
        return "`nvidia-smi` there says more; a reboot may help"

    driver = facts.gpus[0].driver
    build = f"torch is built for CUDA {facts.torch_cuda}"
    if _major(driver) < least:
        return f"{build}: install NVIDIA's driver {least} or newer in place of {driver}, and reboot"
    return f"{build}, for which driver {driver} is new enough: reboot, and see whether it supports these GPUs"


def _major(version: str) -> int:
    """Return the first number of a version, 0 where there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _files(facts: Facts, head: Head) -> Findings:
    findings: Findings = []
    if facts.storage_error:
        remedy = "mount it there as on the head, writable, under the same path"
        findings.append((f"storage {head.storage}: {facts.storage_error}", remedy, True))
    if head.dataset and facts.dataset != head.dataset:
        difference = _difference(facts.dataset or DatasetFacts(""), head.dataset)
        findings.append((f"dataset {head.data} {difference}", "share or copy it to the same path there", True))
    return findings


def _difference(dataset: DatasetFacts, expected: DatasetFacts) -> str:
    """Say how a node's dataset differs from the head's."""
    if not dataset.sha256:
        return "is not there"
    if dataset.sha256 != expected.sha256:
        return "is another one"
    return f"lacks {dataset.missing} shards"


def _free_space(facts: Facts) -> Findings:
    what = f"{_size(facts.memory)} of memory available"
    memory = _short(what, "end other programs there", facts.memory, MEMORY_LEAST, MEMORY_ENOUGH)

    what = f"{TMP}: {_size(facts.tmp)} free"
    tmp = _short(what, "free some space there", facts.tmp, TMP_LEAST, TMP_ENOUGH)
    if not tmp and facts.tmp_share > TMP_SHARE:
        what = f"{TMP} is {facts.tmp_share:.0%} full"
        tmp = [(what, f"free some space there: Ray needs {1 - TMP_SHARE:.0%} free", False)]
    return memory + tmp


def _short(what: str, remedy: str, size: int, least: int, enough: int) -> Findings:
    if size >= enough:
        return []
    return [(what, f"{remedy}: {_size(enough)} are enough", size < least)]


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
