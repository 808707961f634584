"""Comparing two sides in one run: interleaved rounds, the median of their ratios, and a table that says where."""

import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


@dataclass(frozen=True)
class Comparison:
    """What two sides measured in the same rounds."""

    what: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: str

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, round by round: what slows the machine for a while slows both."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]


class Side:
    """One side of a comparison, in processes of its own: how one sets up its process must not help the other.

    `make(*args)` runs there and returns an iterator whose every `next` does the work once. With several `ranks` these
    are a process group, and share the threads.
    """

    def __init__(self, threads: int, make: Callable[..., Iterator[object]], *args: Any, ranks: int = 1) -> None:
        self._meeting = tempfile.TemporaryDirectory()
        group = f"file://{self._meeting.name}/ranks"
        self._pools = [
            ProcessPoolExecutor(
                1, get_context("spawn"), _set_up, (threads // ranks, make, args, group if ranks > 1 else None, i, ranks)
            )
            for i in range(ranks)
        ]
        self._ready = [pool.submit(_seconds, 1) for pool in self._pools]

    def warm(self) -> None:
        """Wait until the processes are set up and have done the work once."""
        for ready in self._ready:
            ready.result()

    def seconds(self, times: int) -> float:
        """Do the work so many times; return the seconds that once took."""
        return max(self.call(_seconds, times))

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in this side's processes; return what each gave."""
        futures = [pool.submit(function, *args) for pool in self._pools]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()
        self._meeting.cleanup()


_work: Iterator[object] = iter(())


def _set_up(
    threads: int, make: Callable[..., Iterator[object]], args: tuple[Any, ...], group: str | None, rank: int, world: int
) -> None:
    global _work
    torch.set_num_threads(threads)
    if group:
        dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world)
    _work = make(*args)


def _seconds(times: int) -> float:
    began = settled()
    for _ in range(times):
        next(_work)
    return (settled() - began) / times


def interleave(ours: Side, theirs: Side, rounds: int, times: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both sides in rounds; they take turns, and take turns in who begins."""
    ours.warm()
    theirs.warm()
    seconds: dict[Side, list[float]] = {ours: [], theirs: []}
    for number in range(rounds):
        for side in (theirs, ours) if number % 2 else (ours, theirs):
            seconds[side].append(side.seconds(times))
    return seconds[ours], seconds[theirs]


class Clock:
    """Adds up the time between marks, under the name of the mark that ends it; the device's work is waited for."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = settled()

    def mark(self, name: str) -> None:
        """Count the time since the last mark as `name`."""
        now = settled()
        self.seconds[name] += now - self._last
        self._last = now


def settled() -> float:
    """Return the time in seconds when all work on the device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def show(title: str, comparisons: Sequence[Comparison], peer: str) -> None:
    """Print comparisons: medians, and the median of the ratios with the lowest and the highest."""
    table = Table("what", "ours", peer, "ratio", "spread", "goal", title=title, title_justify="left")
    for one in comparisons:
        table.add_row(
            one.what,
            f"{statistics.median(one.ours):.4g} {one.unit}",
            f"{statistics.median(one.theirs):.4g} {one.unit}",
            f"[bold]{statistics.median(one.ratios):.3f}[/bold]",
            f"{min(one.ratios):.3f} to {max(one.ratios):.3f} in {len(one.ratios)}",
            one.goal,
        )
    console.print(table, "")


def show_parts(title: str, columns: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """Print what the time goes to: a row a part, a column a side, each with its share."""
    table = Table("part", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for parts in columns.values() for part in parts):
        table.add_row(part, *(_cell(parts, part) for parts in columns.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(parts.values()):.4g} {unit}      " for parts in columns.values()))
    console.print(table, "")


def machine(threads: int) -> str:
    """Say what this is measured on."""
    parts = [f"{_processor()}, {os.cpu_count()} cores, {threads} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}"])


def _cell(parts: Mapping[str, float], part: str) -> str:
    if part not in parts:
        return ""
    return f"{parts[part]:.4g}   {parts[part] / sum(parts.values()):4.0%}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
