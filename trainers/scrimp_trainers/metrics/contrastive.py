"""A small CNN trained on a dataset's images without labels: a feature extractor that needs no download.

Two random crops of one image are pulled together, and apart from those of all others (SimCLR, Chen et al. 2020,
equation 1); and images are told from noisy, blurred and rearranged ones, to which crops alone are blind. What it sees
is measured: how many times as far from the training images as held-out images are these same images once they are
degraded, also in ways that it has not been trained on.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.codecs.pixels import scaled
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import picture_shape
from scrimp_trainers.metrics import fidelity, small_cnn
from scrimp_trainers.metrics.small_cnn import WIDTH, Fit, Trunk

TEMPERATURE = 0.2
SMALLEST_CROP = 0.5
"""Least share of an image's side that a crop has."""
CONTRAST = 0.4
"""Crops are shown with their contrast and brightness changed by up to this share."""
PROJECTED = 32
"""Numbers that are compared in training; the features come before them (Chen et al. 2020, section 4.2)."""
MOST_IMAGES = 55_000
"""Images seen in training at most, each in six views: two crops, the image as it is, and three damaged ones."""
MOST_COMPARED = 5000
"""Images of each set of which the quality is measured."""


class Encoder(Trunk):
    """The classifier's trunk, and two heads that only training uses: a projection, and what was done to an image."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, size)
        self.projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, PROJECTED))
        self.damage = nn.Linear(WIDTH, len(DAMAGES) + 1)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [B, C, H, W] to features [B, 64]."""
        return (self.features_of(scaled(images)),)


def train_encoder(
    images: np.ndarray, holdout_images: np.ndarray, *, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the encoder, and measure what it sees.

    Parameters
    ----------
    images, holdout_images
        uint8 [N, C, H, W]. Without held-out images a tenth of the others is held back.

    Returns
    -------
    tuple
        The state dict; and for each degradation how many times as far the degraded held-out images are from the
        training images as the held-out images themselves (Fréchet distances).
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(images)
    held_out = torch.from_numpy(holdout_images)
    if len(held_out) == 0:
        held_back, kept = small_cnn.hold_back(len(pixels), generator)
        held_out = pixels[held_back]
        pixels = pixels[kept]

    with small_cnn.reproducible(seed):
        network = Encoder(images.shape[1], images.shape[2])
        _fit(network, pixels, generator)
        quality = _quality(network, pixels[:MOST_COMPARED], held_out[:MOST_COMPARED], generator)
    return small_cnn.state_of(network), quality


def _fit(network: Encoder, images: Tensor, generator: torch.Generator) -> None:
    fit = Fit(network, len(images), MOST_IMAGES)
    for numbers in fit.batches(generator):
        chosen = scaled(images[numbers])
        crops = torch.cat([_crop(chosen, generator), _crop(chosen, generator)])
        loss = contrastive_loss(network.projection(network.features_of(crops)))

        damaged = [chosen, *(damage(chosen, generator) for damage in DAMAGES)]
        kinds = torch.arange(len(damaged)).repeat_interleave(len(chosen))
        loss = loss + F.cross_entropy(network.damage(network.features_of(torch.cat(damaged))), kinds)
        fit.step(loss)
    network.eval()


def contrastive_loss(projected: Tensor) -> Tensor:
    """Return the mean of SimCLR's loss (equation 1) for the projections [2 B, d] of two crops each of B images."""
    unit = F.normalize(projected)
    similarity = unit @ unit.T / TEMPERATURE
    similarity.fill_diagonal_(-math.inf)
    other_crop = torch.arange(len(unit)).roll(len(unit) // 2)
    return F.cross_entropy(similarity, other_crop)


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop of each image [B, C, H, W] at its full size, with another contrast and brightness."""
    count = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    side = uniform(SMALLEST_CROP, 1)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = side
    affine[:, 1, 1] = side
    affine[:, 0, 2] = uniform(-1, 1) * (1 - side)
    affine[:, 1, 2] = uniform(-1, 1) * (1 - side)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    crops = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = uniform(1 - CONTRAST, 1 + CONTRAST).view(-1, 1, 1, 1)
    brightness = uniform(-CONTRAST, CONTRAST).view(-1, 1, 1, 1)
    return contrast * crops + brightness


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise with a standard deviation of 2 to 30% of the range."""
    deviation = 0.04 + 0.56 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (x + deviation * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def _blurred(x: Tensor, generator: torch.Generator) -> Tensor:
    """Average each pixel with its neighbours, once to three times."""
    times = int(torch.randint(1, 4, (), generator=generator))
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x


def _rearranged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move everything by a quarter to three quarters of the side, around the edges."""
    side = x.shape[-1]
    down, right = torch.randint(side // 4, max(3 * side // 4, side // 4 + 1), (2,), generator=generator).tolist()
    return x.roll((down, right), (-2, -1))


DAMAGES = (_noisy, _blurred, _rearranged)
"""What the network is trained to tell from images as they are."""


def _half_missing(x: Tensor, _: torch.Generator) -> Tensor:
    """Take the brighter half of the images twice, and none of the others: half of the modes are missing."""
    brightness = x.mean(dim=(1, 2, 3))
    brighter = brightness.argsort()[len(x) // 2 :]
    return x[torch.cat([brighter, brighter])]


def _coarse(x: Tensor, _: torch.Generator) -> Tensor:
    """Show two by two pixels as one."""
    return F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:], mode="nearest")


def _speckled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Make one pixel in twenty white or black."""
    drawn = torch.rand(len(x), 1, *x.shape[2:], generator=generator)
    return torch.where(drawn < 0.025, -1.0, torch.where(drawn > 0.975, 1.0, x))


DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": _noisy,
    "blur": _blurred,
    "parts in wrong places": _rearranged,
    "coarse pixels": _coarse,
    "speckles": _speckled,
    "half of the images missing": _half_missing,
}
"""By which the quality is measured; the network has been trained on the first three."""


@torch.no_grad()
def _quality(network: Encoder, training: Tensor, held_out: Tensor, generator: torch.Generator) -> dict[str, float]:
    def features(images: Tensor) -> Tensor:
        return torch.cat([network.features_of(part) for part in images.split(1000)])

    held_out = scaled(held_out)
    reference = fidelity.statistics(features(scaled(training)))
    floor = fidelity.frechet(features(held_out), reference)
    return {
        name: fidelity.frechet(features(degrade(held_out, generator)), reference) / floor
        for name, degrade in DEGRADATIONS.items()
    }


def load_encoder(folder: Path, manifest: Manifest) -> Encoder:
    """Load a dataset's encoder, in evaluation mode.

    Raises
    ------
    UserError
        If the dataset has none, or its file is not the one that the manifest names.
    """
    if manifest.encoder is None:
        raise UserError(f"{folder}: the dataset has no contrastive encoder; prepare it again without labels")
    channels, side, _ = picture_shape(manifest)
    network = Encoder(channels, side)
    small_cnn.read_into(network, folder / manifest.encoder.file, manifest.encoder.sha256)
    return network
