"""Which device this process works on."""

import os

import torch


def pick(device: torch.device | str | None = None) -> torch.device:
    """Return the device asked for, or else this process's GPU, or else the CPU; make a GPU the current one."""
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    return device
