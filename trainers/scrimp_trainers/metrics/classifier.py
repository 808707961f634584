"""A small CNN trained on a dataset's own labels: a feature extractor for data far from photographs."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.codecs.pixels import scaled
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import picture_shape
from scrimp_trainers.metrics import small_cnn
from scrimp_trainers.metrics.small_cnn import WIDTH, Fit, Trunk

MOST_IMAGES = 110_000
"""Images seen in training at most."""


class Classifier(Trunk):
    """The trunk, and a linear layer that names the class."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__(channels, size)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 images [B, C, H, W] to features [B, 64] and logits [B, classes]."""
        features = self.features_of(scaled(images))
        return features, self.head(features)


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
    held_pixels = torch.from_numpy(holdout_images)
    held_targets = torch.from_numpy(holdout_labels)
    generator = torch.Generator().manual_seed(seed)
    if len(held_pixels) == 0:
        held_back, kept = small_cnn.hold_back(len(pixels), generator)
        held_pixels = pixels[held_back]
        held_targets = targets[held_back]
        pixels = pixels[kept]
        targets = targets[kept]

    with small_cnn.reproducible(seed):
        network = Classifier(images.shape[1], images.shape[2], classes)
        _fit(network, pixels, targets, generator)
        accuracy = _accuracy(network, held_pixels, held_targets)
    return small_cnn.state_of(network), accuracy


def _fit(network: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    fit = Fit(network, len(images), MOST_IMAGES)
    for chosen in fit.batches(generator):
        fit.step(F.cross_entropy(network(images[chosen])[1], labels[chosen]))
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
    channels, side, _ = picture_shape(manifest)
    network = Classifier(channels, side, len(manifest.classes))
    small_cnn.read_into(network, folder / manifest.classifier.file, manifest.classifier.sha256)
    return network
