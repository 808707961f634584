"""The ranks of a process group, where one of them has to come first."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks: 0 and 1 without a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def rank_0_first(rank: int, world: int) -> Iterator[None]:
    """Let rank 0 through, and when it is done the others: it fills a cache that they read.

    They wait for days if need be. What is made may take far longer than a process group waits by default.
    """
    if world == 1:
        yield
        return
    patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    if rank > 0:
        dist.barrier(patient)
    yield
    if rank == 0:
        dist.barrier(patient)
