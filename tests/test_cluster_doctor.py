"""The doctor: what it makes of a node's facts, and one examination of two real Ray nodes."""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrimp_cluster import doctor, facts, nccl, ports
from scrimp_cluster import faults as faults_module
from scrimp_cluster.doctor import ClusterReport, NodeReport
from scrimp_cluster.facts import DatasetFacts, Facts, Gpu
from scrimp_cluster.faults import GIB, Fault, Head
from scrimp_cluster.nodes import Node

VERSIONS = {"python": "3.11.9", "scrimp": "0.1.0", "torch": "2.15.0+cu126", "ray": "2.60.0"}
GPU = Gpu("NVIDIA GeForce RTX 3090", 24576, 24200, "570.86")
NODE = Node("ws3", 16, 2, "id3")
WELL = Facts(
    host="ws3",
    versions=VERSIONS,
    code="c0de",
    memory=60 * GIB,
    tmp=200 * GIB,
    tmp_share=0.5,
    gpus=[GPU, GPU],
    nvidia_smi=True,
    cuda="12.6",
    storage=900 * GIB,
    dataset=DatasetFacts("abc"),
    clock=0.01,
    clock_doubt=0.001,
    nccl="tried",
    token_file="/home/lab/.ray/auth_token",  # noqa: S106
)
HEAD = Head(
    "ws0", VERSIONS, "c0de", "/shared/runs", storage_free=900 * GIB, data="/shared/pandas", dataset=DatasetFacts("abc")
)


def faults(node: Node = NODE, head: Head = HEAD, **changes) -> list[Fault]:
    return faults_module.of_node(node, replace(WELL, **changes), head)


def test_a_node_that_is_well_has_no_faults():
    assert faults() == []
    assert faults_module.of_head(HEAD) == []


STOPPING = [
    ({"versions": VERSIONS | {"torch": "2.14.0"}}, "other versions: torch 2.14.0 (head: 2.15.0+cu126); install"),
    ({"versions": VERSIONS | {"scrimp": ""}}, "scrimp missing (head: 0.1.0)"),
    ({"versions": VERSIONS | {"python": "3.12.1", "ray": "2.59.0"}}, "python 3.12.1 (head: 3.11.9), ray 2.59.0"),
    ({"versions": VERSIONS | {"python": "3.12.1"}}, "install requirements.lock there with the head's Python"),
    ({"code": "5a1e" * 16}, "other code than the head's (5a1e5a1e there, c0de on the head); `ray up cluster.yaml`"),
    ({"code": ""}, "other code than the head's (none there, c0de on the head)"),
    ({"blocked": {"cannot reach the head's raylet, port 9": True}}, "cannot reach the head's raylet, port 9; open"),
    ({"memory": GIB // 2}, "0.5 GiB of memory available"),
    ({"tmp": GIB // 2}, "/tmp: 0.5 GiB free"),
    ({"gpus": [GPU]}, "Ray counts 2 GPUs, nvidia-smi shows 1"),
    ({"gpus": [], "gpu_error": "Driver/library version mismatch"}, "nvidia-smi: Driver/library version mismatch"),
    ({"cuda_error": "RuntimeError: The NVIDIA driver is too old"}, "torch cannot use the GPUs: RuntimeError"),
    (
        {
            "cuda_error": "The NVIDIA driver is too old",
            "torch_cuda": "13.2",
            "gpus": [replace(GPU, driver="570.86")] * 2,
        },
        "torch is built for CUDA 13.2: install NVIDIA's driver 580 or newer in place of 570.86, and reboot",
    ),
    (
        {"cuda_error": "no kernel image", "torch_cuda": "12.6"},
        "torch is built for CUDA 12.6, for which driver 570.86 is new enough: reboot, and see whether it",
    ),
    ({"cuda_error": "no kernel image", "torch_cuda": "99.0"}, "no kernel image; `nvidia-smi` there says more"),
    ({"nccl_error": "not done in 30 s"}, "NCCL between its GPUs: not done in 30 s; train with --gpus-per-repeat 1"),
    ({"storage_error": "what the head wrote is not there"}, "storage /shared/runs: what the head wrote is not there"),
    ({"dataset": DatasetFacts("")}, "dataset /shared/pandas is not there; share or copy it"),
    ({"dataset": DatasetFacts("other")}, "dataset /shared/pandas is another one"),
    ({"dataset": DatasetFacts("abc", missing=3)}, "dataset /shared/pandas lacks 3 shards"),
]
WORTH_KNOWING = [
    ({"memory": 2 * GIB}, "2.0 GiB of memory available; end other programs there: 4.0 GiB are enough"),
    ({"tmp": 2 * GIB}, "/tmp: 2.0 GiB free"),
    ({"tmp_share": 0.97}, "/tmp is 97% full"),
    ({"clock": 61.0, "clock_doubt": 0.1}, "clock 61 s ahead of the head's"),
    ({"clock": -61.0, "clock_doubt": 0.1}, "clock 61 s behind the head's"),
    ({"token_mode": 0o644}, "token /home/lab/.ray/auth_token is open to others (0644); `chmod 600 /home/lab"),
    ({"blocked": {"not reached by ws1: its raylet, port 9": False}}, "not reached by ws1: its raylet, port 9; open"),
    ({"gpus": [GPU, GPU, GPU]}, "Ray uses 2 of 3 GPUs"),
    ({"gpus": [GPU, replace(GPU, free=2048)]}, "GPU 1 (NVIDIA GeForce RTX 3090): 2.0 of 24.0 GiB free"),
    ({"gpus": [], "nvidia_smi": False}, "Ray counts 2 GPUs, but there is no nvidia-smi"),
    ({"cuda_error": "torch.OutOfMemoryError: CUDA out of memory."}, "torch cannot use the GPUs"),
]


@pytest.mark.parametrize(("changes", "complaint"), STOPPING, ids=[str(change) for change, _ in STOPPING])
def test_a_fault_that_stops_a_node_is_one_line_with_its_remedy(changes, complaint):
    (fault,) = faults(**changes)
    assert str(fault).startswith("ws3: ")
    assert complaint in str(fault)
    assert fault.stops


@pytest.mark.parametrize(("changes", "complaint"), WORTH_KNOWING, ids=[str(change) for change, _ in WORTH_KNOWING])
def test_a_fault_that_is_worth_knowing_stops_nothing(changes, complaint):
    (fault,) = faults(**changes)
    assert complaint in str(fault)
    assert not fault.stops


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": VERSIONS | {"torch": "2.15.0+cpu"}},  # another build of the same version
        {"clock": 3.0, "clock_doubt": 2.5},  # a slow answer says nothing about the clock
        {"token_file": "", "token_mode": 0o600},
        {"gpus": [replace(GPU, total=float("nan"), free=float("nan"))] * 2},  # a GPU that does not say
        {"nccl": "GPUs in use"},
    ],
)
def test_what_proves_nothing_is_no_fault(changes):
    assert faults(**changes) == []


@pytest.mark.parametrize(("answers", "complaint"), [("", "Ray's token is missing"), ("b", "differs from the head's")])
def test_a_token_other_than_the_heads_is_worth_knowing_where_ray_asks_for_one(answers, complaint):
    assert faults(token=answers) == []
    (fault,) = faults(head=replace(HEAD, token="a"), token=answers)  # noqa: S106
    assert complaint in str(fault)
    assert not fault.stops
    assert faults(head=replace(HEAD, token="a"), token="a") == []  # noqa: S106


def test_a_node_without_scrimp_has_one_fault_for_it():
    (fault,) = faults(versions=VERSIONS | {"scrimp": ""}, code="")
    assert "scrimp missing" in fault.what


def test_a_broken_driver_stops_no_node_whose_gpus_ray_does_not_use():
    (fault,) = faults(Node("ws3", 16, 0), gpus=[], gpu_error="No devices were found")
    assert not fault.stops


def test_every_fault_of_a_node_is_told():
    found = faults(storage_error="Permission denied", memory=0, gpus=[GPU], clock=99.0)
    assert [fault.what.split()[0] for fault in found] == ["Ray", "storage", "0.0", "clock"]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_clock_is_blamed_only_beyond_what_the_round_trip_leaves_open(clock, doubt):
    assert bool(faults(clock=clock, clock_doubt=doubt)) == (abs(clock) - doubt > faults_module.CLOCK_TOLERANCE_S)


def test_the_heads_own_faults_are_told_once():
    head = replace(HEAD, storage_error="Read-only file system", dataset=DatasetFacts("abc", missing=2))
    dataset, storage = faults_module.of_head(head)
    assert str(dataset) == "ws0: dataset /shared/pandas lacks 2 shards; copy or prepare it again"
    assert str(storage).startswith("ws0: storage /shared/runs: Read-only file system; make the folder writable")
    assert dataset.stops
    assert storage.stops
    assert [fault.stops for fault in faults_module.of_head(replace(HEAD, storage_free=0))] == [True]
    assert [fault.stops for fault in faults_module.of_head(replace(HEAD, storage_free=5 * GIB))] == [False]


def test_a_report_names_what_stops_first_and_a_silent_node_is_sick():
    reports = [
        NodeReport(NODE, WELL, faults(tmp_share=0.99)),
        NodeReport(NODE, None, [faults_module.no_answer(NODE, "no answer in 9 s")]),
    ]
    report = ClusterReport([], reports)
    assert [node_report.unfit for node_report in reports] == [False, True]
    assert str(report.faults[0]).startswith("ws3: no answer in 9 s; look at `ray status`")


@pytest.mark.parametrize(("head", "named"), [("10.0.0.1", ["10.0.0.3"]), ("10.0.0.9", [])])
def test_machines_of_cluster_yaml_that_are_not_there_are_named_where_its_head_is(head, named, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    here = [Node("ws1", 16, 2, "id1", "10.0.0.1"), Node("ws2", 16, 2, "id2", "10.0.0.2")]
    assert doctor.missing_nodes(here) == []
    provider = {"type": "local", "head_ip": head, "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"provider": provider}))
    assert [fault.node for fault in doctor.missing_nodes(here)] == named


def test_what_nvidia_smi_prints_is_read():
    table = "NVIDIA GeForce RTX 3090, 24576, 24200, 570.86\nNVIDIA GB10, [N/A], [N/A], 580.95.05\n"
    first, second = facts.parse_gpus(table)
    assert first == GPU
    assert (second.name, second.driver) == ("NVIDIA GB10", "580.95.05")
    assert second.total != second.total  # nan


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Let a shell script take the place of nvidia-smi, and another that of Python."""

    def install(script: str, python: str = "echo 12.6 2") -> None:
        for name, content in {"nvidia-smi": script, "python": python}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(facts.sys, "executable", str(tmp_path / "python"))

    return install


def gather() -> Facts:
    return Facts.of(facts.collect_facts(None, "", "", None))


def test_gpus_are_counted_and_computed_on(nvidia_smi):
    nvidia_smi("printf 'NVIDIA GeForce RTX 3090, 24576, 24200, 570.86\\n%.0s' 1 2")
    seen = gather()
    assert (seen.gpus, seen.cuda, seen.cuda_error, seen.gpu_error) == ([GPU, GPU], "12.6", "", "")


def test_a_driver_that_is_broken_says_why(nvidia_smi):
    nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert gather().gpu_error == "Failed to initialize NVML: Driver/library version mismatch"


def test_a_driver_that_hangs_is_given_up(nvidia_smi, monkeypatch):
    monkeypatch.setattr(facts, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    nvidia_smi("exec sleep 9")
    assert gather().gpu_error == "no answer in 0.2 s"


def test_the_cuda_that_torch_was_built_for_is_known_also_where_it_does_not_run(nvidia_smi):
    nvidia_smi("echo 'Tesla K80, 11441, 11441, 470'", python="exit 1")
    assert gather().torch_cuda == (torch.version.cuda or "")


def test_the_docs_name_the_driver_that_the_locks_torch_wants():
    built_for = int((torch.version.cuda or "13.0").split(".")[0])
    guide = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    assert f"NVIDIA's driver {faults_module.LEAST_DRIVER[built_for]} or newer" in guide


def test_torch_that_cannot_use_a_gpu_says_why(nvidia_smi):
    nvidia_smi("echo 'Tesla K80, 11441, 11441, 470'", python="echo Traceback >&2; echo 'no kernel image' >&2; exit 1")
    assert (gather().cuda, gather().cuda_error) == ("", "no kernel image")


def test_a_token_file_is_seen_with_its_mode(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    seen = gather()
    assert (seen.token_file, seen.token_mode) == (str(token), 0o640)
    assert "secret" not in str(seen)


def test_tokens_are_compared_by_a_hash_that_is_new_each_time(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert facts.token("a") == ""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    seen = facts.token("a")
    assert len(seen) == 64
    assert facts.token("b") != seen
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert facts.token("a") == seen
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").unlink()
    assert facts.token("a") == ""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Four packages that stand for Scrimp's own."""
    names = [f"made_up_{number}" for number in range(4)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(facts, "SCRIMP", names)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_code_is_known_by_the_names_and_contents_of_its_files(installed):
    seen = {facts.code()}
    folder = installed / "made_up_2" / "inner"
    folder.mkdir()
    (folder / "notes.txt").write_text("no code")
    assert facts.code() in seen
    for change in (
        lambda: (folder / "space.yaml").write_text("a: 1"),
        lambda: (folder / "space.yaml").write_text("a: 2"),
        lambda: (folder / "space.yaml").rename(folder / "other.yaml"),
        lambda: (folder / "other.yaml").rename(installed / "made_up_3" / "other.yaml"),
    ):
        change()
        assert facts.code() not in seen
        seen.add(facts.code())


def test_code_that_is_not_installed_has_no_hash(installed, monkeypatch):
    monkeypatch.setattr(facts, "SCRIMP", ["made_up_0", "made_up_9"])
    assert facts.code() == ""


def test_the_code_that_this_process_imports_is_what_is_hashed(monkeypatch):
    import scrimp_cluster

    monkeypatch.setattr(facts, "SCRIMP", ["scrimp_cluster"])
    folder = Path(scrimp_cluster.__path__[0])
    files = [path.name for pattern in ("*.py", "*.yaml") for path in folder.rglob(pattern)]
    read: list[str] = []
    monkeypatch.setattr(facts.Path, "read_bytes", lambda path: read.append(path.name) or b"")
    facts.code()
    assert sorted(read) == sorted(files)


def test_the_ports_of_rays_workers_are_read_from_the_raylets_command():
    words = ["raylet", "--min_worker_port=10002", "--max_worker_port=10100", "--python_worker_command=python a=b c=d"]
    assert facts.worker_ports("\0".join([*words, ""])) == (10002, 10100)
    assert facts.worker_ports("python\0worker.py\0") == (0, 0)


def exchange(
    *others: ports.Endpoint, own: ports.Endpoint | None = None, peers: int = 0, limit: float = 2.0
) -> list[int]:
    return ports.exchange(own or (HERE, []), list(others), peers, limit)


HERE = "127.0.0.1"


def test_nodes_that_listen_reach_each_other_and_part_at_once():
    sites = [(HERE, ports.some(0, 0)) for _ in range(3)]
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        others = [[site for site in sites if site != own] for own in sites]
        unreached = list(pool.map(lambda own, others: exchange(*others, own=own, peers=2, limit=20), sites, others))
    assert unreached == [[], [], []]
    assert time.monotonic() - began < 10


def test_an_endpoint_that_does_not_answer_is_returned_by_its_number():
    with socket.create_server((HERE, 0)) as server, socket.socket() as bound:
        bound.bind((HERE, 0))  # without listening
        listening = server.getsockname()[1]
        refusing = bound.getsockname()[1]
        assert exchange((HERE, [listening]), (HERE, [refusing]), limit=0.5) == [1]


def test_ports_are_drawn_from_rays_range():
    assert set(ports.some(10002, 10003)) == {10002, 10003}
    assert all(32768 <= port <= 60999 for port in ports.some(0, 0))


WORKSTATIONS = [Node(f"ws{i}", 16, 2, f"id{i}", f"10.0.0.{i}", 9000, 9001, head=i == 0) for i in range(4)]


def test_a_blocked_connection_is_charged_to_the_node_that_is_not_reached():
    head, first, second, third = WORKSTATIONS
    healthy = dict.fromkeys(WORKSTATIONS, WELL)
    answers = doctor._attribute({(first, "raylet"): [second, third], (second, "raylet"): [head]}, healthy)
    assert {node.name: facts.blocked for node, facts in answers.items() if isinstance(facts, Facts)} == {
        "ws1": {"not reached by ws2, ws3: its raylet": False},
        "ws2": {"not reached by ws0: its raylet": True},
    }


def test_who_does_not_reach_the_head_is_stopped_and_not_the_head():
    head, first, *_ = WORKSTATIONS
    answers = doctor._attribute({(head, "raylet"): [first]}, dict.fromkeys(WORKSTATIONS, WELL))
    (facts,) = answers.values()
    assert list(answers) == [first]
    assert isinstance(facts, Facts)
    assert facts.blocked == {"cannot reach the head's raylet": True}


def test_a_dataset_is_known_by_its_manifest_and_its_shards(digits_dataset, tmp_path):
    assert facts.dataset(str(digits_dataset.folder)).missing == 0
    (tmp_path / "dataset.json").write_bytes((digits_dataset.folder / "dataset.json").read_bytes())
    copied = facts.dataset(str(tmp_path))
    assert copied.sha256 == facts.dataset(str(digits_dataset.folder)).sha256
    assert copied.missing > 0
    assert facts.dataset(str(tmp_path / "none")) == DatasetFacts("")
    for damaged in ("{", "[]", '{"splits": []}', "[" * 100_000):
        (tmp_path / "dataset.json").write_text(damaged)
        assert facts.dataset(str(tmp_path)) == DatasetFacts("")


def test_memory_is_what_the_kernel_calls_available():
    assert facts.available_memory("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:   64 kB\n") == 65536


def test_processes_sum_over_the_backend_that_training_uses():
    assert nccl.all_reduce(2, backend="gloo", limit=120) == ""


def test_a_sum_that_fails_or_hangs_says_so(monkeypatch):
    monkeypatch.setattr(nccl, "ALL_REDUCE", "import sys, time; time.sleep(9 * int(sys.argv[1])); sys.exit('no peer')")
    assert nccl.all_reduce(2, limit=8) == "GPU 0: no peer"
    monkeypatch.setattr(nccl, "ALL_REDUCE", "import time; time.sleep(9)")
    assert nccl.all_reduce(2, limit=0.3) == "not done in 0.3 s"
