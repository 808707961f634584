"""The findings of the doctor, printed in the terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scrimp_platform.cli import terminal

if TYPE_CHECKING:
    from scrimp_cluster.doctor import ClusterReport, NodeReport
    from scrimp_cluster.faults import Fault

NODE_COLUMNS = (
    *("node", "", "GPUs", "free", "driver", "CUDA", "NCCL", "torch", "memory"),
    *("/tmp", "storage", "data", "clock"),  # noqa: S108
)
"""Headings of the doctor's table; empty columns are left out."""


def show_cluster_report(report: "ClusterReport") -> None:
    """Print the findings of the doctor: a row for each node, and a line for each fault."""
    rows = [_node_row(node_report) for node_report in report.nodes]
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold")
    headings = [heading for heading in NODE_COLUMNS if any(row.get(heading) for row in rows)]
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "node", overflow="fold")
    for row in rows:
        table.add_row(*[escape(row.get(heading, "")) for heading in headings])
    terminal.console.print(table)
    show_faults(report.faults)


def show_faults(faults: Sequence["Fault"]) -> None:
    """Print a line for each fault, with its remedy."""
    for fault in faults:
        terminal.say(f"{'STOPS' if fault.stops else 'note '}  {fault}")


def _node_row(report: "NodeReport") -> dict[str, str]:
    """Return a node's row of the doctor's table, by heading; memory and disk sizes are free space."""
    facts = report.facts
    row = {"node": report.node.name, "": _verdict(report), "GPUs": f"{report.node.gpus or 'none'}"}
    if facts is None:
        return row

    row |= {
        "driver": ", ".join(sorted({gpu.driver for gpu in facts.gpus})),
        "CUDA": facts.cuda,
        "NCCL": facts.nccl,
        "torch": facts.versions["torch"].partition("+")[0],
        "memory": _gib(facts.memory),
        "/tmp": _gib(facts.tmp),  # noqa: S108
        "storage": "no" if facts.storage_error else _gib(facts.storage),
        "clock": f"{facts.clock:+.1f} s",
    }
    if facts.gpus:
        models = Counter(gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for gpu in facts.gpus)
        row["GPUs"] = ", ".join(f"{count} x {model}" for model, count in models.items())
        fullest = min(facts.gpus, key=lambda gpu: gpu.free / gpu.total)
        row["free"] = f"{fullest.free / 1024:.1f} of {fullest.total / 1024:.1f} GiB"
    if facts.nccl == "tried":
        row["NCCL"] = "fails" if facts.nccl_error else "ok"
    if facts.dataset:
        row["data"] = "seen" if facts.dataset.sha256 else "no"
    return row


def _verdict(report: "NodeReport") -> str:
    if report.unfit:
        return "unfit"
    return "usable" if report.faults else "ok"


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"
