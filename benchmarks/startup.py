"""Seconds from `python sweep.py` to the first training step, by part, seen from outside the process."""

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import show_parts
from scrimp_platform.store import Storage
from scrimp_trainers.common import metrics_log
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare

SWEEP = Path(__file__).parents[1] / "sweep.py"
PLAN = """
import sys
from pathlib import Path
from scrimp_platform import plan, sweep
plan.make_plan(plan.SweepOptions(data=sys.argv[1], storage=Path(sys.argv[2])))
"""
LIMIT = 300.0  # seconds
MOST_ROUNDS = 3


def main(device: str, threads: int, rounds: int) -> None:
    """Measure and print."""
    del device, threads  # a sweep finds its own
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare("digits", folder / "digits", Options())
        found = [measure(folder / "digits", folder / f"runs-{i}") for i in range(min(rounds, MOST_ROUNDS))]
    parts = {part: statistics.median(one[part] for one in found) for part in found[0]}
    show_parts(f"From `python sweep.py` to the first training step, median of {len(found)}", {"seconds": parts}, "s")


def measure(data: Path, storage: Path) -> dict[str, float]:
    """Start a sweep, watch its files and its words until it trains, and end it."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", PLAN, str(data), str(storage)], check=True)
    planned = time.perf_counter() - began

    folder = Storage(storage).sweep("quickstart-digits")
    first = folder.repeat(0, 0)
    began = time.perf_counter()
    command = [sys.executable, str(SWEEP), "--data", str(data), "--storage", str(storage)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        connected = until(folder.description.exists, driver) - began
        decided = until(first.record.exists, driver) - began
        imported = until(first.lock.exists, driver) - began
        told = until(lambda: bool(metrics_log.read_rows(first.metrics)), driver) - began
    finally:
        driver.send_signal(signal.SIGINT)  # it ends what it started
        driver.wait(LIMIT)
    line = metrics_log.read_rows(first.metrics)[0]
    trained = told - line.images / line.images_per_second
    return {
        "interpreter, imports, plan": planned,
        "Ray starts": connected - planned,
        "Tune starts": decided - connected,
        "worker starts and imports torch and diffusers": imported - decided,
        "data, network and scorer are set up": trained - imported,
    }


def until(holds: Callable[[], bool], driver: subprocess.Popen[bytes]) -> float:
    """Return the time at which something holds."""
    deadline = time.perf_counter() + LIMIT
    while not holds():
        if driver.poll() is not None or time.perf_counter() > deadline:
            raise RuntimeError("the sweep ended, or took too long, before its first step")
        time.sleep(0.01)
    return time.perf_counter()
