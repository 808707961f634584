"""The ranks of a process group, and a way to let rank 0 go first."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the world size: 0 and 1 without a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def rank_0_first(rank: int, world: int) -> Iterator[None]:
    """Run the block on rank 0 first, which fills a cache, and then on the other ranks, which read it.

    The others wait for up to seven days: the work may take far longer than a process group's default timeout.
    """
    if world == 1:
        yield
        return
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    if rank > 0:
        dist.barrier(group)
    yield
    if rank == 0:
        dist.barrier(group)
