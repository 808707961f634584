"""MAFP, LD-Diffusion's mixed augmentation with fixed probability: EDM's geometric pipe after DiffAugment's translation.

Both act on what the diffusion model is trained on, pixels or latents. The paper does not say which of p1 and p2 belongs
to which part; here p1 is the probability of the pipe and p2 that of the translation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scrimp_trainers.recipe.techniques import MAFP
from scrimp_trainers.techniques.patches import Window, cut_patches

LABELS = 9
"""Numbers that describe what the pipe did to an image; see `transform`."""
LOG2_STD = 0.2
"""Standard deviation of the base-2 logarithm of both scalings."""
SHIFT_STD = 0.125
"""Standard deviation of the pipe's translation along each axis, as a fraction of the side."""
MAX_SHIFT = 0.125
"""Largest translation of DiffAugment along each axis, as a fraction of the side."""


def augment(
    settings: MAFP, images: Tensor, generator: torch.Generator, *, global_batch: int, rank_slice: slice
) -> tuple[Tensor, Tensor | None]:
    """Translate with probability p2, then apply the pipe if p1 > 0.

    Random numbers are drawn for all ranks' `global_batch` images, of which `rank_slice` gives this rank's `images`
    [b, C, S, S]. Nothing waits for the device. The released code cuts patches between the two parts; here they are cut
    afterwards, so their coordinates are those of the augmented frame.

    Returns
    -------
    The images, and their labels [b, 9] for the network, zero for an image left as it was. With p1 = 0 there are no
    labels; with p2 = 0 nothing is translated, whatever the trigger.
    """
    side = images.shape[3]
    if settings.p2 > 0:
        max_shift = int(MAX_SHIFT * side + 0.5)
        shifts = draw_shifts(settings, max_shift, global_batch, generator)[:, rank_slice]
        images = translate(images, shifts, max_shift)

    if settings.p1 == 0:
        return images, None
    labels = draw_labels(settings.p1, global_batch, generator)[rank_slice]
    return transform(images, labels), labels


def draw_shifts(settings: MAFP, max_shift: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw translations [2, count] to the right and down in whole pixels: uniform, or zero for an image left in place.

    `batch_all_zero` is the released code's trigger: each image draws a flag that is set with probability p2, and all
    are translated if no flag is set, so with probability (1 - p2)^count. There a batch is that of one device, here it
    is that of all devices.
    """
    device = generator.device
    shifts = torch.randint(-max_shift, max_shift + 1, (2, count), generator=generator, device=device)
    flag_count = 1 if settings.trigger == "per_batch" else count
    flags = torch.rand(flag_count, generator=generator, device=device) < settings.p2
    if settings.trigger == "batch_all_zero":
        return shifts * ~flags.any()
    return shifts * flags


def translate(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Move images by whole pixels [2, b] to the right and down, and fill with zeros."""
    padded = F.pad(images, [max_shift] * 4)
    lefts, tops = max_shift - shifts
    return cut_patches(padded, Window(images.shape[3], tops, lefts))


def draw_labels(p: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw what the pipe does to each of `count` images, as the labels [count, 9] that `transform` carries out.

    As configured by EDM: always a horizontal flip with probability 1/2; with probability `p` each, a vertical flip with
    probability 1/2, a scaling, a rotation by any angle, a stretch, in half of the cases along a slanted axis, and a
    translation.
    """
    device = generator.device
    uniform = torch.rand(10, count, generator=generator, device=device)
    scale, amount, right, down = torch.randn(4, count, generator=generator, device=device)
    scaled, rotated, stretched, moved, flipped = (uniform[:5] < p).float()
    x_flip, y_flip, slanted = (uniform[5:8] < 0.5).float()
    angle, axis = (uniform[8:] * 2 - 1) * math.pi * torch.stack([rotated, slanted])
    stretch = amount * stretched

    return torch.stack(
        [
            x_flip,
            y_flip * flipped,
            scale * scaled,
            angle.cos() - 1,
            angle.sin(),
            stretch * axis.cos(),
            stretch * axis.sin(),
            right * moved,
            down * moved,
        ],
        dim=1,
    )


def transform(images: Tensor, labels: Tensor) -> Tensor:
    """Transform square images [b, C, S, S] as their labels [b, 9] say, in one resampling.

    The labels, in the order in which they act:

    - 0: flip left to right; 1: flip upside down
    - 2: scale by 2^(0.2 w), where w is the label
    - 3, 4: rotate by a; the labels are cos(a) - 1 and sin(a)
    - 5, 6: stretch by 2^(0.2 w) along the axis at angle r in [-90, 90] degrees, and squeeze by as much across it; the
      labels are w cos(r) and w sin(r)
    - 7, 8: move to the right and down, in units of S / 8 pixels

    Angles are counterclockwise as one sees the image. (In EDM, a stretch along r has the same labels as a squeeze along
    r + 180 degrees. Limiting r to half of the circle makes the labels unique and changes no distribution.)

    Outside its frame an image is continued by reflection, as in EDM: images have no borders of zeros, and in latents
    zero is not even black. EDM's wavelet filters against aliasing are not implemented; pixels are interpolated by cubic
    convolution, which preserves details that bilinear interpolation would blur.
    """
    grid = F.affine_grid(_inverse(labels, images.shape[3]), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=True)


def _inverse(labels: Tensor, side: int) -> Tensor:
    """Return the matrices [b, 2, 3] that map a position in the new image to its position in the old one.

    Positions are (x, y) in [-1, 1] from the first to the last pixel. With flips F, scale s, rotation R, stretch A and
    translation t, new = A R s F old + t, so old = F R^-1 A^-1 (new - t) / s.
    """
    x_flip, y_flip, scale, cosine_less_1, sine, along, across, right, down = labels.unbind(1)
    cosine = cosine_less_1 + 1
    rotation = _matrices(cosine, -sine, sine, cosine)

    # A^-1 = cosh(q) I - sinh(q) [[cos 2r, -sin 2r], [-sin 2r, -cos 2r]], with q = ln(2^(0.2 w)); y points down.
    squared = along.square() + across.square()
    q = LOG2_STD * math.log(2) * squared.sqrt().copysign(along)
    twist = q.sinh() / squared.clamp_min(1e-30)
    cosine_2r = twist * (along.square() - across.square())
    sine_2r = twist * 2 * along * across
    stretch = _matrices(q.cosh() - cosine_2r, sine_2r, sine_2r, q.cosh() + cosine_2r)

    flips = 1 - 2 * torch.stack([x_flip, y_flip], dim=1)
    zoom = flips * (-LOG2_STD * scale).exp2()[:, None]
    linear = zoom[:, :, None] * (rotation @ stretch)
    translation = torch.stack([right, down], dim=1)[:, :, None] * (2 * SHIFT_STD * side / (side - 1))
    return torch.cat([linear, -linear @ translation], dim=2)


def _matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the matrices [[a, b], [c, d]], [n, 2, 2] for entries [n]."""
    return torch.stack([a, b, c, d], dim=1).unflatten(1, (2, 2))
