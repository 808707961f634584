"""The ranks of a process group, a way to let rank 0 go first, and one to let it decide."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=7)
"""How long ranks wait for rank 0's work, which may take far longer than a process group's default timeout."""

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the world size: 0 and 1 without a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def patient_group() -> dist.ProcessGroup | None:
    """Return a group of all ranks that waits for up to seven days; None for a single process. All call it together."""
    _, world = rank_and_world()
    if world == 1:
        return None
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


def agreed(value: Value, group: dist.ProcessGroup | None) -> Value:
    """Return rank 0's value on all ranks of a patient group, which wait for it."""
    if group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def least(value: int, device: torch.device) -> int:
    """Return the smallest of the ranks' values, which are exchanged on their devices. All call it together."""
    _, world = rank_and_world()
    if world == 1:
        return value
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest.item())


@contextmanager
def rank_0_first(rank: int, world: int) -> Iterator[None]:
    """Run the block on rank 0 first, which fills a cache, and then on the other ranks, which read it.

    The others wait for up to seven days.
    """
    if world == 1:
        yield
        return
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
    if rank > 0:
        dist.barrier(group)
    yield
    if rank == 0:
        dist.barrier(group)
