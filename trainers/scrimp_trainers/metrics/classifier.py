"""A small CNN trained on a dataset's own labels: a feature extractor for data far from photographs.

It is trained once, when the dataset is prepared, on the CPU and with a fixed number of threads, so that the same
images, labels and seed give the same bytes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.codecs.pixels import scaled
from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import picture_shape

WIDTH = 64
"""Features an image: few enough that the covariance of about a thousand samples has full rank."""
BATCH = 128
MOST_IMAGES = 110_000
"""Images seen in training at most; with the limit on their size it bounds the cost."""
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


class Classifier(Trunk):
    """The trunk, and a linear layer that names the class."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__(channels, size)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 images [B, C, H, W] to features [B, 64] and logits [B, classes]."""
        features = self.features_of(scaled(images))
        return features, self.head(features)


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    holdout_images: np.ndarray,
    holdout_labels: np.ndarray,
    *,
    classes: int,
    seed: int,
) -> tuple[dict[str, Tensor], float]:
    """Train the classifier and measure it on images that it has not seen.

    Parameters
    ----------
    images, labels
        uint8 [N, C, H, W] and int64 [N].
    holdout_images, holdout_labels
        The same for the images it is measured on. May be empty: then a tenth of `images` is held back.

    Returns
    -------
    tuple
        The state dict, and the share of held-out images classified correctly.
    """
    if classes < 2:
        raise UserError("a classifier needs at least two classes; prepare the dataset without one")

    pixels = torch.from_numpy(images)
    targets = torch.from_numpy(labels)
    held = torch.from_numpy(holdout_images), torch.from_numpy(holdout_labels)
    generator = torch.Generator().manual_seed(seed)
    if len(held[0]) == 0:
        order = torch.randperm(len(pixels), generator=generator)
        tenth = max(1, len(order) // 10)
        back = order[:tenth]
        kept = order[tenth:]
        held = pixels[back], targets[back]
        pixels = pixels[kept]
        targets = targets[kept]

    with reproducible(seed):
        network = Classifier(images.shape[1], images.shape[2], classes)
        _fit(network, pixels, targets, generator)
        accuracy = _accuracy(network, *held)
    return {name: value.contiguous() for name, value in network.state_dict().items()}, accuracy


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


def _fit(network: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    batch = min(BATCH, len(images))
    steps = min(max(30 * len(images) // batch, 150), MOST_IMAGES // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    network.train().to(memory_format=torch.channels_last)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[:batch]
        order = order[batch:]
        loss = F.cross_entropy(network(images[chosen])[1], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    predicted = [network(part)[1].argmax(dim=1) for part in images.split(1000)]
    return (torch.cat(predicted) == labels).double().mean().item()


def load_classifier(folder: Path, manifest: Manifest) -> Classifier:
    """Load a dataset's classifier, in evaluation mode.

    Raises
    ------
    UserError
        If the dataset has none, or its file is not the one that the manifest names.
    """
    if manifest.classifier is None or manifest.classes is None:
        raise UserError(f"{folder}: the dataset has no classifier; prepare it again with labels")
    path = folder / manifest.classifier.file
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest.classifier.sha256:
        raise UserError(f"{path}: is missing or not the file that the manifest names; prepare the dataset again")
    channels, side, _ = picture_shape(manifest)
    network = Classifier(channels, side, len(manifest.classes))
    weights.load_weights(network, safetensors.torch.load(data), path)
    return network.requires_grad_(False).eval()
