"""Ambient training: "Does Generation Require Memorization?" (Shah et al. 2025), from its formulas.

From the noise level sigma_n on, the network is shown an image x only through one noisy copy x^n = x + sigma_n z, whose
z never changes, so that what it copies at high noise is x^n and not x. With sigma the noise's deviation for a signal of
scale 1, r = sigma_n^2 / sigma^2 and a = 1 - r, the noisy image is x_sigma = x^n + sigma sqrt(a) n, and the estimate
x0 of the clean image stands for the estimate a x0 + r x_sigma of x^n, which is compared with x^n.

Written out, that loss is a^2 times the process's own loss for the clean image x^n - r sigma n / sqrt(a) and the noise
n / sqrt(a). So it is computed, for every process and prediction. Below sigma_n, where a = 1 and r = 0, all of it
is ordinary training bit for bit. For DDPM the form is a reconstruction: the paper's experiments are with EDM.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.diffusion.process import Process, over_images, sigmas
from scrimp_trainers.recipe.techniques import Ambient

FULLY_COMPENSATED = 0.01
"""The a from which on the compensated loss is compensated in full. Without a bound its mean over sigma is infinite:
its target's variance grows as 1 / a. Fewer than 2 in 1,000 of EDM's levels are below."""
SMALLEST = 1e-6
"""Lower bound of a, which may be 0 in floating point, where the clean image above is not finite."""

# SplitMix64 (Steele et al. 2014): its increment and multipliers, as int64.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def noise_keys(content_hash: str, image_keys: Sequence[str]) -> Tensor:
    """Return a number for each image, int64 [N], from the dataset's hash and the image's key alone."""
    return torch.tensor([seed_of("ambient", content_hash, key) for key in image_keys], dtype=torch.int64)


def fixed_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise [b, *shape] that depends on each key, int64 [b], and on the shape alone.

    The random bits, SplitMix64 of key and position, are the same on every machine; their Box-Muller transform
    is so up to the rounding of logarithm, sine and cosine, which differ between kinds of devices.
    """
    count = math.prod(shape)
    bits = _hash(keys, (count + 1) // 2)
    # The upper and lower 32 bits are two uniform numbers, of which the first is never 0.
    radius = _logical_shift(bits, 32).float().add_(0.5).div_(2**32).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(2**32 - 1).float().mul_(2 * math.pi / 2**32)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return pairs[:, :count].reshape(len(keys), *shape)


def add_noise(
    settings: Ambient, process: Process, images: Tensor, hidden: Tensor, noise: Tensor, levels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return noisy images at these levels, and what each was made of: x^n from sigma_n on, below it the image."""
    deviation, share, _ = _split(settings, process, levels)
    target = torch.addcmul(images, hidden, over_images(deviation, images))
    return process.add_noise(target, noise * over_images(share.sqrt(), images), levels), target


def losses(
    settings: Ambient, process: Process, estimate: Tensor, target: Tensor, noise: Tensor, levels: Tensor
) -> Tensor:
    """Compare what `denoise` returned for `add_noise`'s noisy images with its target, given the same noise and levels.

    Released weighting keeps the process's own weight for the error in x^n, which goes to 0 at sigma_n with a^2.
    Compensated divides that by a^2, as the later code of Ambient Omni does, though only where a >= `FULLY_COMPENSATED`.
    """
    deviation, share, sigma = _split(settings, process, levels)
    pull = deviation.square() / (sigma * share.sqrt())
    clean = torch.addcmul(target, noise, -over_images(pull, target))
    total = noise / over_images(share.sqrt(), target)
    values = process.losses(estimate, clean, total, levels)
    factor = share
    if settings.weighting == "compensated":
        factor = share / share.clamp(min=FULLY_COMPENSATED)
    return factor.square() * values


def _split(settings: Ambient, process: Process, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each level the deviation of z (sigma_n, or 0 below it), a, and sigma."""
    sigma = sigmas(process, levels)
    deviation = (sigma >= settings.sigma_n) * settings.sigma_n
    return deviation, (1 - (deviation / sigma).square()).clamp(min=SMALLEST), sigma


def _hash(keys: Tensor, count: int) -> Tensor:
    """Return the first outputs of SplitMix64 seeded with each key, int64 [b, count]; integers wrap around."""
    bits = keys[:, None] + torch.arange(1, count + 1, device=keys.device) * INCREMENT
    bits.bitwise_xor_(_logical_shift(bits, 30)).mul_(MULTIPLIERS[0])
    bits.bitwise_xor_(_logical_shift(bits, 27)).mul_(MULTIPLIERS[1])
    return bits.bitwise_xor_(_logical_shift(bits, 31))


def _logical_shift(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, where int64's own shift fills with the sign."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)
