"""Ambient training: "Does Generation Require Memorization?" (Shah et al. 2025), from its formulas.

At noise levels of sigma_n and above, the network sees an image x only through one noisy copy x^n = x + sigma_n z. Its
ambient noise z never changes, so what the network can memorise at high noise is x^n and not x. Let sigma be the noise's
standard deviation for a signal of scale 1, r = sigma_n^2 / sigma^2 and a = 1 - r. The noisy image is then
x_sigma = x^n + sigma sqrt(a) n. An estimate x0 of the clean image implies the estimate a x0 + r x_sigma of x^n, which
is compared with x^n.

Written out, this loss is a^2 times the process's own loss for the clean image x^n - r sigma n / sqrt(a) and the noise
n / sqrt(a). It is computed in this form, for every process and prediction. Below sigma_n, where a = 1 and r = 0, all of
this is ordinary training, bit for bit. For DDPM the form is a reconstruction: the paper's experiments use EDM.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.diffusion.process import Process, over_images, sigmas
from scrimp_trainers.recipe.techniques import Ambient

FULLY_COMPENSATED = 0.01
"""Smallest a at which the compensated loss is compensated in full. Without this bound its mean over sigma is infinite:
the variance of its target grows as 1 / a. Fewer than 2 in 1,000 of EDM's levels are below it."""
MIN_A = 1e-6
"""Lower bound of a. In floating point a may be 0, where the clean image above is not finite."""

# SplitMix64 (Steele et al. 2014): its increment and multipliers, as int64.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def noise_keys(content_hash: str, image_keys: Sequence[str]) -> Tensor:
    """Return a number for each image, int64 [N], which depends only on the dataset's hash and the image's key."""
    return torch.tensor([seed_of("ambient", content_hash, key) for key in image_keys], dtype=torch.int64)


def fixed_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise [b, *shape] that depends only on the keys, int64 [b], and the shape.

    The random bits, SplitMix64 of key and position, are the same on every machine. Their Box-Muller transform is the
    same up to the rounding of logarithm, sine and cosine, which differs between kinds of devices.
    """
    count = math.prod(shape)
    bits = _hash(keys, (count + 1) // 2)

    # Box-Muller. The upper and lower 32 bits are two uniform numbers, of which the first is never 0.
    radius = _logical_shift(bits, 32).float().add_(0.5).div_(2**32).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(2**32 - 1).float().mul_(2 * math.pi / 2**32)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return pairs[:, :count].reshape(len(keys), *shape)


def add_noise(
    settings: Ambient, process: Process, images: Tensor, ambient_noise: Tensor, noise: Tensor, levels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return noisy images at these levels, and their targets: x^n from sigma_n on, the image itself below it."""
    ambient_std, a, _ = _ambient_std_a_sigma(settings, process, levels)
    target = torch.addcmul(images, ambient_noise, over_images(ambient_std, images))
    remaining_noise = noise * over_images(a.sqrt(), images)
    return process.add_noise(target, remaining_noise, levels), target


def losses(
    settings: Ambient, process: Process, estimate: Tensor, target: Tensor, noise: Tensor, levels: Tensor
) -> Tensor:
    """Compare `denoise`'s estimate for the noisy images of `add_noise` with their target, at the same noise and levels.

    Released weighting keeps the process's own weight for the error in x^n, which goes to 0 at sigma_n with a^2.
    Compensated weighting divides it by a^2, as the later code of Ambient Omni does, but in full only where
    a >= `FULLY_COMPENSATED`.
    """
    ambient_std, a, sigma = _ambient_std_a_sigma(settings, process, levels)
    noise_in_clean = ambient_std.square() / (sigma * a.sqrt())  # r sigma / sqrt(a)
    clean = torch.addcmul(target, noise, -over_images(noise_in_clean, target))
    scaled_noise = noise / over_images(a.sqrt(), target)
    values = process.losses(estimate, clean, scaled_noise, levels)

    factor = a
    if settings.weighting == "compensated":
        factor = a / a.clamp(min=FULLY_COMPENSATED)
    return factor.square() * values


def _ambient_std_a_sigma(settings: Ambient, process: Process, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each level the standard deviation of the ambient noise (sigma_n, or 0 below it), a, and sigma."""
    sigma = sigmas(process, levels)
    ambient_std = (sigma >= settings.sigma_n) * settings.sigma_n
    a = (1 - (ambient_std / sigma).square()).clamp(min=MIN_A)
    return ambient_std, a, sigma


def _hash(keys: Tensor, count: int) -> Tensor:
    """Return the first outputs of SplitMix64 seeded with each key, int64 [b, count]. Integer overflow wraps around."""
    bits = keys[:, None] + torch.arange(1, count + 1, device=keys.device) * INCREMENT
    bits.bitwise_xor_(_logical_shift(bits, 30)).mul_(MULTIPLIERS[0])
    bits.bitwise_xor_(_logical_shift(bits, 27)).mul_(MULTIPLIERS[1])
    return bits.bitwise_xor_(_logical_shift(bits, 31))


def _logical_shift(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, where int64's own shift fills with the sign."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)
