"""What the small CNNs share that are trained on a dataset's own images: the network, its training, and its file.

They are trained once, when the dataset is prepared, on the CPU and with a fixed number of threads, so that the same
images and seed give the same bytes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError

WIDTH = 64
"""Features an image: few enough that the covariance of about a thousand samples has full rank."""
BATCH = 128
LEAST_STEPS = 150
"""However few the images are."""
EPOCHS = 30
LEARNING_RATE = 4e-3
THREADS = 2
"""Sums depend on how many threads share them, so the number is fixed whatever the machine has."""


class Trunk(nn.Module):
    """Three convolutions down to a grid of about 4x4, averaged, and a linear layer."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = min(size, 64)
        stride = max(1, self.size // 16)
        self.body = nn.Sequential(
            *_block(channels, 32, kernel=2 * stride + 1, stride=stride),
            *_block(32, 64, kernel=3, stride=2),
            *_block(64, 128, kernel=3, stride=2),
        )
        self.features = nn.Linear(128, WIDTH)

    def features_of(self, x: Tensor) -> Tensor:
        """Map scaled images [B, C, H, W] to features [B, 64]."""
        if x.shape[-1] > self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="area")
        x = self.body(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return F.silu(self.features(x))


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Let torch draw by a seed and compute with a fixed number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def hold_back(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which of so many images are held back from training, a tenth, and which are not."""
    order = torch.randperm(count, generator=generator)
    tenth = max(1, count // 10)
    return order[:tenth], order[tenth:]


class Fit:
    """The training of a network on `count` images.

    Parameters
    ----------
    network
        It is in training mode from now on.
    count
        Number of images.
    most_images
        Images that are seen at most; with the limit on their size it bounds the cost.
    """

    def __init__(self, network: nn.Module, count: int, most_images: int) -> None:
        self._count = count
        self._batch = min(BATCH, count)
        self._steps = min(max(EPOCHS * count // self._batch, LEAST_STEPS), most_images // self._batch)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=LEARNING_RATE, total_steps=self._steps
        )
        network.train().to(memory_format=torch.channels_last)

    def batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of the images of each step; `step` is to be called before the next ones are taken."""
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self._steps):
            if len(order) < self._batch:
                order = torch.randperm(self._count, generator=generator)
            yield order[: self._batch]
            order = order[self._batch :]

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of a batch's loss."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network as they are written to a file."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def read_into(network: nn.Module, file: Path, sha256: str) -> None:
    """Read the weights of a network from its file, and put it into evaluation mode.

    Raises
    ------
    UserError
        If the file is missing or has another checksum.
    """
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{file}: is missing or not the file that the manifest names; prepare the dataset again")
    weights.load_weights(network, safetensors.torch.load(data), file)
    network.requires_grad_(False).eval()
