"""The doctor on a real cluster of two nodes, and the sweep that leaves out an unfit one."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_rows import TICK
from test_platform_ledger import open_ledger
from test_platform_race import make_space

from scrimp_cluster import doctor, facts
from scrimp_cluster.doctor import ClusterReport, NodeReport
from scrimp_cluster.faults import Fault
from scrimp_cluster.nodes import Node
from scrimp_platform import cluster, worker
from scrimp_platform import sweep as the_sweep
from scrimp_platform.cli import doctor_view, terminal
from scrimp_platform.plan import SweepOptions
from scrimp_platform.search import tune_loop
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import MetricsRow

WORKSTATIONS = tuple(Node(f"ws{number}", 16, 2, f"id{number}") for number in range(3))


class FakePlan:
    """As much of a plan as placing needs."""

    options = SweepOptions()
    storage = type("Storage", (), {"path": Path("runs")})
    dataset = Path("digits")


@pytest.fixture
def unfit(monkeypatch):
    """Let the doctor find these nodes unfit, and this of the head."""

    def install(*names: str, head: Fault | None = None) -> None:
        def examine(nodes, storage, data, together):
            faults = {node: [Fault(node.name, "no storage", "mount it", stops=node.name in names)] for node in nodes}
            return ClusterReport([head] if head else [], [NodeReport(node, None, faults[node]) for node in nodes])

        monkeypatch.setattr(doctor, "examine", examine)

    return install


def place(nodes: tuple[Node, ...] = WORKSTATIONS) -> cluster.Placement:
    return the_sweep.place_repeats(nodes, FakePlan())  # type: ignore[arg-type]


def test_an_unfit_node_gets_no_repeats_and_is_named(unfit, capsys):
    unfit("ws1")
    placement = place()
    assert [node.name for node in placement.nodes] == ["ws0", "ws2"]
    assert placement.places == 2
    assert placement.describe() == "2 nodes with 4 GPUs, 2 repeats at once, each on 2 GPUs of a node; without ws1"
    assert "STOPS  ws1: no storage; mount it" in capsys.readouterr().out


def test_without_a_node_that_can_train_there_is_no_sweep(unfit):
    unfit("ws0", "ws1", "ws2")
    with pytest.raises(UserError, match="no node can train: ws0: no storage; mount it; `scrimp doctor` shows"):
        place()


def test_a_head_that_cannot_write_the_storage_ends_it(unfit):
    unfit(head=Fault("ws0", "storage runs: Read-only file system", "make it writable", stops=True))
    with pytest.raises(UserError, match="Read-only"):
        place()


def test_a_sweep_meant_for_gpus_does_not_fall_back_to_the_heads_cores(unfit):
    unfit("ws0", "ws1", "ws2")
    with pytest.raises(UserError, match="no node can train"):
        place((Node("head", 64, 0, "idh"), *WORKSTATIONS))


def test_a_sweep_does_not_begin_on_the_heads_cores_while_workers_are_awaited(unfit, monkeypatch):
    unfit()
    monkeypatch.setattr(
        doctor, "missing_nodes", lambda nodes: [Fault("10.0.0.2", "is not in the cluster yet", "", False)]
    )
    head = Node("head", 64, 0, "idh")
    with pytest.raises(UserError, match=r"no GPU yet: wait until 10.0.0.2 joins"):
        place((head,))
    assert place((head, WORKSTATIONS[0])).describe().startswith("2 nodes with 2 GPUs")


def test_one_machine_alone_is_not_examined(monkeypatch):
    monkeypatch.setattr(doctor, "examine", None)
    assert place(WORKSTATIONS[:1]).places == 1


def test_a_report_is_a_row_a_node_and_a_line_a_fault(capsys):
    from test_cluster_doctor import NODE, WELL

    silent = Fault("ws4", "no answer in 9 s", "look at `ray status`", stops=True)
    reports = [NodeReport(NODE, WELL, []), NodeReport(replace(NODE, name="ws4"), None, [silent])]
    terminal.console.width, before = 160, terminal.console.width
    doctor_view.show_cluster_report(ClusterReport([], reports))
    terminal.console.width = before
    heading, _, well, silent_row, *rest = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    for name, sign in {"GPUs": "2 x RTX 3090", "driver": "570.86", "NCCL": "ok", "data": "seen"}.items():
        assert well[heading.index(name) :].startswith(sign)
    assert silent_row.split() == ["ws4", "unfit", "2"]  # the GPUs that Ray counts
    assert rest == ["STOPS  ws4: no answer in 9 s; look at `ray status`"]


alone = pytest.mark.slow
"""Sweeps of other tests, run beside these, would join their cluster: it is the one that was started on this machine."""


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes that share this machine, joined as a sweep joins a cluster."""
    from ray.cluster_utils import Cluster

    lab = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    other = lab.add_node(num_cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", str(lab.address))
        with cluster.connect() as nodes:
            yield lab, other, nodes
    lab.shutdown()


@alone
def test_every_node_tells_its_facts_and_the_storage_is_left_as_it_was(two_nodes, digits_dataset, tmp_path):
    _, _, nodes = two_nodes
    report = doctor.examine(nodes, tmp_path / "lab" / "runs", digits_dataset.folder)
    assert [node_report.node for node_report in report.nodes] == list(nodes)
    assert len({node.id for node in nodes}) == 2
    for node_report in report.nodes:
        assert node_report.facts
        assert node_report.facts.storage_error == ""
        assert node_report.facts.storage > 0
        assert node_report.facts.dataset
        assert node_report.facts.versions["ray"]
        assert abs(node_report.facts.clock) < 0.5
        assert node_report.facts.code == facts.code()
        assert node_report.facts.blocked == {}
        assert not [fault for fault in node_report.faults if "versions" in fault.what or "dataset" in fault.what]
    assert list(tmp_path.iterdir()) == []


@alone
def test_a_port_that_is_shut_is_named_with_who_does_not_get_through(two_nodes, tmp_path):
    head, other = sorted(two_nodes[2], key=lambda node: not node.head)
    (fault,) = [
        fault for fault in doctor.examine((head, replace(other, objects=1)), tmp_path).faults if "reach" in fault.what
    ]
    assert (fault.node, fault.what) == (other.name, f"not reached by {head.name}: its object manager, port 1")
    (fault,) = [
        fault for fault in doctor.examine((replace(head, raylet=1), other), tmp_path).faults if "reach" in fault.what
    ]
    assert (fault.node, fault.what) == (other.name, "cannot reach the head's raylet, port 1")


@alone
def test_a_node_whose_files_do_not_reach_the_head_is_sick(two_nodes, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_read", lambda file: "")
    report = doctor.examine(two_nodes[2], tmp_path)
    assert all(node_report.unfit for node_report in report.nodes)
    assert "what it writes does not reach the head" in str(report.faults[0])


@alone
def test_storage_that_cannot_be_written_is_the_heads_fault(two_nodes, tmp_path):
    (tmp_path / "file").write_text("")
    report = doctor.examine(two_nodes[2], tmp_path / "file")
    assert "Not a directory" in str(report.head[0])
    assert not any("storage" in str(fault) for node_report in report.nodes for fault in node_report.faults)


@alone
def test_no_repeat_is_placed_on_a_node_that_is_left_out(two_nodes, tmp_path):
    nodes = two_nodes[2]
    used = tmp_path / "used"

    def train(config: dict) -> None:
        import ray
        from ray import tune

        with Path(config["used"]).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        for rung in (20.0, 60.0):
            scores = {"rung": rung, "kimg": rung, "fd_classifier": config["trial"] + 1 / rung}
            tune.report({worker.ROW: MetricsRow.from_entries(TICK | scores)})

    for fit_node in nodes:
        used.unlink(missing_ok=True)
        ledger = open_ledger(
            SweepFolder(tmp_path / fit_node.id[:8]),
            make_space(budget={"trials": 3, "rungs_kimg": [20, 60], "reduction": 2, "leaders": 2, "repeats": 1}),
        )
        tune_loop.run_repeats(
            ledger,
            train,
            {"used": str(used)},
            lambda: 3,
            tune_loop.Limits(ledger),
            lambda fit_node=fit_node: [fit_node.id],
        )
        assert set(used.read_text().split()) == {fit_node.id}


@alone
def test_a_node_that_is_gone_is_sick_and_the_others_are_examined(two_nodes, tmp_path):
    lab, other, nodes = two_nodes
    lab.remove_node(other)
    report = doctor.examine(nodes, tmp_path)
    assert sorted(node_report.facts is None for node_report in report.nodes) == [False, True]
    (gone,) = (node_report for node_report in report.nodes if node_report.facts is None)
    assert gone.unfit
    assert gone.node.id == other.node_id
