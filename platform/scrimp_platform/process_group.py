"""The process group of a repeat's workers: NCCL on GPUs, gloo if Ray's GPU slots are not real GPUs."""

import shutil
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.train import torch as ray_torch
from ray.train.torch.config import _TorchBackend


@dataclass
class TorchConfig(ray_torch.TorchConfig):
    """Ray's configuration with another choice of backend: Ray looks only at the number of GPU slots."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that starts the process group."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: ray_torch.TorchConfig) -> None:
        backend = worker_group.execute_single(0, _backend_name)
        super().on_start(worker_group, replace(backend_config, backend=backend))


def _backend_name() -> str:
    # With a driver whose GPUs torch cannot use, NCCL fails with a message; gloo would silently train on the CPU.
    if torch.cuda.is_available() or shutil.which("nvidia-smi"):
        return "nccl"
    return "gloo"
