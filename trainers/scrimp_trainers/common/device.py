"""Choose this process's device, and set what makes it fast."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Parameters of glibc's `mallopt`."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each precision of a recipe makes of the network's float32 numbers."""


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
