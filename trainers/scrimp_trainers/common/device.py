"""Which device this process works on, and the settings that make it fast."""

import contextlib
import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def select_device(device: torch.device | str | None = None) -> torch.device:
    """Return the device asked for, or else this process's GPU, or else the CPU, and prepare the process for it."""
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    else:
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Keep freed memory for the next step.

    Without it glibc returns large tensors to the system at once, and faulting their pages in again takes a tenth of a
    training step at 32x32 pixels.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which the network computes with this precision; fp32 for fp16 on a processor.

    Few processors multiply in fp16: convolutions then take many times as long as in fp32.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if kind == torch.float16 and device.type == "cpu":
        kind = torch.float32
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)
