"""What a node does while a repeat trains on it, in the repeat's `system.jsonl`; MLflow shows it as system metrics.

The names are those that MLflow itself gives such metrics.
"""

import contextlib
import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import DamagedRecord

INTERVAL_S = 10.0
"""Shortest time between two lines. It grows with the length of the training, whose lines stay below a thousand."""
FIRST_S = 1.0
"""Until the first line, so that a short training has one, too."""
TIME = "time"
"""The entry of a line that says when it was written, in Unix seconds."""
MEGABYTE = 1e6
MEBIBYTE = 2**20
QUERY = "utilization.gpu,memory.used,memory.total,power.draw,power.limit"
"""What nvidia-smi is asked for each GPU; memory in MiB, power in watts."""
QUERY_TIMEOUT_S = 30.0


@contextlib.contextmanager
def recorded(file: Path) -> Iterator[None]:
    """Append a line about this node to a file from time to time, until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_record, args=(file, ended), name="node metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def read(file: Path) -> list[dict[str, float]]:
    """Return the complete lines of a file, which may not exist; a damaged one is empty."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [_unsealed(line) for line in lines]


def _unsealed(line: bytes) -> dict[str, float]:
    with contextlib.suppress(DamagedRecord):
        return checksums.unseal(line)
    return {}


def _record(file: Path, ended: threading.Event) -> None:
    began = time.monotonic()
    network = _network()
    measure_processor()  # its first call has nothing to compare with
    pause = min(FIRST_S, INTERVAL_S)
    while not ended.wait(pause):
        with contextlib.suppress(OSError):  # a full disk, or one that is gone: training itself says so
            sent = {name: value - network[name] for name, value in _network().items()}
            line = checksums.seal({TIME: time.time(), **measure(file.parent), **sent})
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        pause = max(INTERVAL_S, (time.monotonic() - began) / 100)


def measure(folder: Path) -> dict[str, float]:
    """Return the load of this node's processors, memory and GPUs, and of the disk that holds a folder."""
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(folder)
    return {
        "cpu_utilization_percentage": measure_processor(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": round(memory.percent, 1),
        "disk_usage_percentage": round(100 * disk.used / disk.total, 1),
        "disk_usage_megabytes": disk.used / MEGABYTE,
        "disk_available_megabytes": disk.free / MEGABYTE,
        **measure_gpus(),
    }


def measure_processor() -> float:
    """Return the load of the processors since the last call, in percent."""
    import psutil

    return psutil.cpu_percent()


def measure_gpus() -> dict[str, float]:
    """Return the load, memory and power of each GPU; nothing of what nvidia-smi does not say."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_gpu_use(answer.stdout)


def parse_gpu_use(table: str) -> dict[str, float]:
    """Read what nvidia-smi prints, a line for each GPU; a value that it does not know is `[N/A]`."""
    values: dict[str, float] = {}
    lines = [line for line in table.splitlines() if line.count(",") == QUERY.count(",")]
    for number, line in enumerate(lines):
        load, used, total, power, limit = map(_number, line.split(","))
        values |= {
            f"gpu_{number}_utilization_percentage": load,
            f"gpu_{number}_memory_usage_megabytes": used * MEBIBYTE / MEGABYTE,
            f"gpu_{number}_memory_usage_percentage": round(100 * used / total, 1),
            f"gpu_{number}_power_usage_watts": power,
            f"gpu_{number}_power_usage_percentage": round(100 * power / limit, 1),
        }
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _network() -> dict[str, float]:
    """Return what the node has received and sent since it started."""
    import psutil

    counters = psutil.net_io_counters()
    return {
        "network_receive_megabytes": counters.bytes_recv / MEGABYTE,
        "network_transmit_megabytes": counters.bytes_sent / MEGABYTE,
    }
