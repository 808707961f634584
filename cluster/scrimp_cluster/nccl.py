"""Whether a node's GPUs reach each other: one all-reduce over all of them, a process each, as in training."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALL_REDUCE_TIMEOUT_S = 30.0

ALL_REDUCE = """
import sys
import torch
from torch import distributed
rank, processes, backend, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
if backend == "nccl":
    torch.cuda.set_device(device)
distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes)
values = torch.ones(2**20, device=device)
distributed.all_reduce(values)
assert (values == processes).all(), "the sum over the GPUs is wrong"
distributed.destroy_process_group()
"""


def all_reduce(processes: int, backend: str = "nccl", limit: float = ALL_REDUCE_TIMEOUT_S) -> str:
    """Run an all-reduce over the GPUs that this process sees; return an error in one line, empty if there was none."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(processes)]
        workers = []
        try:
            for rank, log in enumerate(logs):
                arguments = [str(rank), str(processes), backend, str(Path(folder, "meeting"))]
                command = [sys.executable, "-c", ALL_REDUCE, *arguments]
                with log.open("w") as file:
                    workers.append(subprocess.Popen(command, stdout=file, stderr=file))

            deadline = time.monotonic() + limit
            while time.monotonic() < deadline:
                states = [worker.poll() for worker in workers]
                if any(states):
                    rank = next(rank for rank, state in enumerate(states) if state)
                    lines = logs[rank].read_text().strip().splitlines() or [f"exit status {states[rank]}"]
                    return f"GPU {rank}: {lines[-1]}"
                if all(state == 0 for state in states):
                    return ""
                time.sleep(0.1)
            return f"not done in {limit:g} s"
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
