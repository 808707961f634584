"""Extractors that choose nothing: features to score samples with where coresets are chosen by the dataset's classifier.

Both need no download. `fit` writes the file that each of them is made with, from a dataset.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.metrics.classifier import Classifier, train_classifier

CHOOSES, SCORES = 0, 1
"""The two halves of the training images, by the classifiers that are trained on them."""
COMPONENTS = 64
SIDE = 16
"""Larger images are averaged over blocks down to this side before their components are taken."""


class OtherHalf(nn.Module):
    """The features of a classifier like the dataset's own, with another seed and of the other half of the images."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = safetensors.torch.load_file(weights)
        channels, size, classes = state.pop("shape").tolist()
        self.network = Classifier(channels, size, classes)
        self.network.load_state_dict(state)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [b, C, H, W] to features [b, 64]."""
        return (self.network(images)[0],)


class PixelPCA(nn.Module):
    """Coordinates along the principal components of the reference set's pixels: no labels, no network."""

    mean: Tensor
    components: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        for name, value in safetensors.torch.load_file(weights).items():
            self.register_buffer(name, value)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [b, C, H, W] to coordinates [b, 64], fewer if there are fewer pixels."""
        return ((_pixels(images.float()) - self.mean) @ self.components,)


def _pixels(images: Tensor) -> Tensor:
    if images.shape[-1] > SIDE:
        images = F.adaptive_avg_pool2d(images, SIDE)
    return images.flatten(1) / 127.5 - 1


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of two halves, each with every other image of every class."""
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[::2]), np.sort(by_class[1::2])


def fit_half(dataset: Dataset, which: int) -> tuple[dict[str, Tensor], float]:
    """Train a classifier on one half of a dataset's training images, with the half's number as its seed.

    Returns
    -------
    tuple
        Its state, and its accuracy on held-out images.
    """
    images, labels, _ = dataset.images("train")
    held_images, held_labels, _ = dataset.images("holdout")
    assert labels is not None
    assert held_labels is not None
    classes = len(dataset.manifest.classes or [])
    part = halves(labels)[which]
    return train_classifier(images[part], labels[part], held_images, held_labels, classes=classes, seed=which)


def fit(kind: str, dataset: Dataset, out: Path) -> None:
    """Write the weights of the extractor of this name."""
    state = {"OtherHalf": _other_half, "PixelPCA": _pixel_pca}[kind](dataset)
    safetensors.torch.save_file(state, out)


def _other_half(dataset: Dataset) -> dict[str, Tensor]:
    facts = dataset.manifest
    state, _ = fit_half(dataset, SCORES)
    return state | {"shape": torch.tensor([facts.channels, facts.size, len(facts.classes or [])])}


def _pixel_pca(dataset: Dataset) -> dict[str, Tensor]:
    images, _, _ = dataset.images(dataset.manifest.reference)
    pixels = _pixels(torch.from_numpy(images).double())
    mean = pixels.mean(0)
    covariance = torch.cov((pixels - mean).T)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # the largest first
    return {"mean": mean.float(), "components": vectors[:, :COMPONENTS].float().contiguous()}
