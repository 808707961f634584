"""Kinds of GPUs, and how fast they are taken to be where none can be measured."""

from dataclasses import dataclass

FP32_SHARE = 0.4
TENSOR_SHARE = 0.2
"""Shares of a GPU's peak that are assumed to be kept up, in fp32 and on tensor cores. Nothing was measured for them."""


CONTEXT = 2**30
"""Assumed memory of CUDA's context in a process, and of the workspaces of its libraries."""


@dataclass(frozen=True)
class GPU:
    """A kind of GPU."""

    name: str
    """Its maker's name for it."""
    memory: int
    """Its memory, in GiB."""
    fp32: float
    """Peak of fp32 arithmetic, in TFLOP/s."""
    tf32: float
    """Peak of its tensor cores in TF32, without sparsity."""
    half: float
    """The same in bf16 and fp16."""

    def rate(self, precision: str) -> float:
        """Return the FLOP/s that a network is assumed to keep up."""
        if precision == "fp32":
            return FP32_SHARE * self.fp32 * 1e12
        if precision == "tf32":
            return TENSOR_SHARE * self.tf32 * 1e12
        return TENSOR_SHARE * self.half * 1e12


CARDS = {
    16: GPU("NVIDIA RTX A4000", 16, fp32=19.2, tf32=38.3, half=76.7),
    24: GPU("NVIDIA RTX A5000", 24, fp32=27.8, tf32=55.6, half=111.1),
    48: GPU("NVIDIA RTX A6000", 48, fp32=38.7, tf32=77.4, half=154.8),
    80: GPU("NVIDIA A100 80GB", 80, fp32=19.5, tf32=156.0, half=312.0),
    141: GPU("NVIDIA H200", 141, fp32=67.0, tf32=494.0, half=989.0),
}
"""The GPU that a memory in GB stands for, with the peaks of its data sheet."""
