"""Choose this process's device, and set what makes it fast."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scrimp_trainers.common import ranks
from scrimp_trainers.common.gpus import CONTEXT

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Parameters of glibc's `mallopt`."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each precision of a recipe makes of the network's float32 numbers."""

_gpu_share: float = 1
"""The share of its GPU that this process may take."""


def select_device(device: torch.device | str | None = None) -> torch.device:
    """Return the given device, by default this process's GPU or else the CPU, and set the process up for it."""
    if device is None:
        local_rank = os.environ.get("LOCAL_RANK", 0)
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)

    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    else:
        _keep_freed_memory()
    return device


def take_share(share: float, device: torch.device) -> None:
    """Let this process take no more than a share of a GPU's memory, CUDA's context included.

    torch then runs out of memory at the end of the share, as it otherwise does at the end of the GPU.
    """
    global _gpu_share
    _gpu_share = share
    if device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT / total), device)


def devices_held() -> float:
    """Return how many devices the ranks hold together: one each, or the share of it that they take."""
    _, world = ranks.rank_and_world()
    return world * _gpu_share


def memory_left(device: torch.device) -> tuple[int, int]:
    """Return how many bytes of a GPU this process may still reserve, and how many it may hold at most."""
    free, total = torch.cuda.mem_get_info(device)
    most = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    left = min(free, most - torch.cuda.memory_reserved(device))
    return left, most


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step.

    Without it glibc returns large tensors to the system at once, and faulting their pages in again takes a tenth of a
    training step at 32x32 pixels.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)


def product_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of what is multiplied with a precision: on a CPU float32 in place of float16.

    Few CPUs multiply in fp16: convolutions then take many times as long as in fp32.
    """
    dtype = DTYPES[precision]
    if dtype == torch.float16 and device.type == "cpu":
        return torch.float32
    return dtype


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Compute with a precision inside. On a CPU fp16 becomes fp32, and TF32 is none."""
    dtype = product_type(precision, device)
    with float32_products(precision), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let a GPU multiply float32 numbers inside as a precision says: exactly under fp32, otherwise with TF32.

    TF32 keeps 10 bits of a factor's fraction, as fp16 does, and bf16 7. PyTorch's own default is TF32 in convolutions
    and exact in matrix products. A backward pass has to be inside, too: autocast says nothing of its float32 products.
    """
    convolutions = torch.backends.cudnn
    matrices = torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    allowed = precision != "fp32"
    convolutions.allow_tf32 = allowed
    matrices.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before
