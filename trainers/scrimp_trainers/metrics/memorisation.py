"""How much of what a model samples is copied from its training set.

In feature space: the largest cosine similarity of each sample to a training image, and the share above a threshold.
`memorized_fraction_vitg14` is the form of Shah et al. (2025): DINOv2's ViT-g/14 on images that are neither resized nor
normalised, and 0.9; `memorized_fraction_sscd` that of Somepalli et al. (2023): SSCD's ResNet-50, and 0.5.
`memorized_fraction` is our own, in the features of the extractor that scores.

In pixels: the distance to the nearest training image over that to the second nearest; a sample below 1/3 counts as
copied (Gu et al. 2023). Held-out images, which cannot have been copied, are the control.
"""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scrimp_trainers.codecs.pixels import scaled
from scrimp_trainers.metrics.names import memorisation_names
from scrimp_trainers.recipe.scoring import Extractor

COPIED = 1 / 3
"""Ratio of the pixel distances to the first and second neighbour below which a sample is a copy."""
QUANTILE = 0.99
"""Where the threshold lies among the similarities of held-out images, if the extractor states none. In the features of
most, unlike images are alike as well: Inception's pooled ones are never negative."""
CHUNK = 2**26
"""Numbers that are held at once (256 MiB)."""
CANDIDATES = 4
"""Nearest pixels are found by a matrix product, then measured exactly among so many."""


def distinct(images: np.ndarray) -> np.ndarray:
    """Positions of the first of each set of equal images [N, C, H, W], in order.

    Duplicates in a training set count as one image: the second neighbour of a copy would be a copy as well.
    """
    seen: dict[bytes, int] = {}
    for position, image in enumerate(images):
        seen.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), position)
    return np.fromiter(seen.values(), dtype=np.int64)


def nearest(features: Tensor, training: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the training image that is most similar to each image.

    Parameters
    ----------
    features
        float32 [n, d].
    training
        float32 [m, d]; none compares each of `features` with all the others.

    Returns
    -------
    tuple
        The cosine similarity [n] and the position [n]. Of equal ones either may be named.
    """
    queries = F.normalize(features, dim=1)
    keys = queries if training is None else F.normalize(training, dim=1)
    size = max(1, CHUNK // len(keys))
    found = []
    for start in range(0, len(queries), size):
        similarity = queries[start : start + size] @ keys.T
        if training is None:
            similarity.diagonal(start).fill_(-2)
        found.append(similarity.argmax(dim=1))
    position = torch.cat(found)
    # Measured anew: the products above may have been made with fewer bits.
    return (queries * keys[position]).sum(dim=1), position


def pixel_ratio(images: Tensor, training: Tensor) -> Tensor:
    """Pixel distance to the nearest training image over that to the second nearest.

    Parameters
    ----------
    images, training
        uint8 [n, C, H, W] and [m, C, H, W], m at least 2, the training images all distinct. Each part of them is moved
        to the device of `images` when it is needed.

    Returns
    -------
    Tensor
        Ratios [n] in [0, 1].
    """
    size = max(1, CHUNK // images[0].numel())
    few = min(CANDIDATES, len(training))
    best = torch.full((len(images), few), torch.inf, device=images.device)
    position = torch.zeros((len(images), few), dtype=torch.int64, device=images.device)
    for start in range(0, len(training), size):
        keys = _flat(training[start : start + size].to(images.device))
        step = max(1, CHUNK // max(keys.shape))
        for rows in torch.arange(len(images), device=images.device).split(step):
            # |q - k|^2 without |q|^2, which is the same for every key.
            distance = keys.square().sum(dim=1) - 2 * _flat(images[rows]) @ keys.T
            near, chosen = distance.topk(min(few, len(keys)), dim=1, largest=False)

            # The nearest of those so far and of these keys.
            near = torch.cat([best[rows], near], dim=1)
            chosen = torch.cat([position[rows], chosen + start], dim=1)
            best[rows], kept = near.topk(few, dim=1, largest=False)
            position[rows] = chosen.gather(1, kept)

    parts = zip(images.split(size), position.split(size), strict=True)
    distances = torch.cat([_exact(part, training, candidates) for part, candidates in parts])
    first, second = distances[:, :2].unbind(dim=1)
    return first / second


def _flat(images: Tensor) -> Tensor:
    return scaled(images.flatten(1))


def _exact(images: Tensor, training: Tensor, position: Tensor) -> Tensor:
    columns = []
    for column in position.unbind(dim=1):
        candidates = training[column.to(training.device)].to(images.device)
        columns.append((images.int() - candidates.int()).square().flatten(1).sum(dim=1).double().sqrt())
    return torch.stack(columns, dim=1).sort(dim=1).values


def calibrate(similarity: Tensor) -> float:
    """Set the threshold where 1% of these images, none of them copied, lie above it."""
    return torch.quantile(similarity.double(), QUANTILE).item()


def summary(
    similarity: Tensor, ratio: Tensor, threshold: float, extractor: Extractor, suffix: str = ""
) -> dict[str, float]:
    """Scores of images, named as `memorisation_names` says, with a suffix.

    Parameters
    ----------
    similarity, ratio
        Largest cosine similarities [n] to the training set, in the features of `extractor`, and pixel ratios [n].
    """
    memorized, mean, copied = memorisation_names(extractor)
    return {
        f"{memorized}{suffix}": (similarity > threshold).double().mean().item(),
        f"{mean}{suffix}": similarity.double().mean().item(),
        f"{copied}{suffix}": (ratio < COPIED).double().mean().item(),
    }
