"""The process group of a repeat's workers: NCCL between GPUs, gloo where Ray's GPU slots stand for none."""

import shutil
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.train import torch as ray_torch
from ray.train.torch.config import _TorchBackend


@dataclass
class TorchConfig(ray_torch.TorchConfig):
    """Ray's own, but for the choice between the two, which it makes by the count alone."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts the group."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: ray_torch.TorchConfig) -> None:
        backend = worker_group.execute_single(0, _choose)
        super().on_start(worker_group, replace(backend_config, backend=backend))


def _choose() -> str:
    # Where there is a driver whose GPUs torch cannot use, NCCL says so; the CPU would train in silence for ever.
    return "nccl" if torch.cuda.is_available() or shutil.which("nvidia-smi") else "gloo"
