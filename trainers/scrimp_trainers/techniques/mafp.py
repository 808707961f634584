"""MAFP, LD-Diffusion's mixed augmentation with fixed probability: EDM's geometric pipe after DiffAugment's translation.

Both act on whatever diffusion acts on, pixels or latents. Which of the paper's p1 and p2 belongs to which part is not
known; here p1 is the pipe's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scrimp_trainers.recipe.techniques import MAFP
from scrimp_trainers.techniques.patches import Window, cut_patches

LABELS = 9
"""Numbers that tell what the pipe has done to an image; see `transform`."""
LOG2_STD = 0.2
"""Standard deviation of the binary logarithm of both scalings."""
SHIFT_STD = 0.125
"""Standard deviation of the pipe's translation on each axis, as a share of the side."""
REACH = 0.125
"""Furthest that DiffAugment translates on each axis, as a share of the side."""


def augment(
    settings: MAFP, images: Tensor, generator: torch.Generator, *, total: int, mine: slice
) -> tuple[Tensor, Tensor | None]:
    """Translate with probability p2, then send through the pipe if p1 > 0.

    Draws are for `total` images, of which `images` [b, C, S, S] are `mine`; nothing waits for the device. The released
    code cuts patches between the two parts; here they are cut afterwards, so their coordinates are those of the
    augmented frame.

    Returns
    -------
    The images, and their labels [b, 9] for the network, zero for an image as it was. With p1 = 0 there are none; with
    p2 = 0 nothing is translated, whatever the trigger.
    """
    side = images.shape[3]
    if settings.p2 > 0:
        reach = int(REACH * side + 0.5)
        images = translate(images, draw_shifts(settings, reach, total, generator)[:, mine], reach)
    if settings.p1 == 0:
        return images, None
    labels = draw_labels(settings.p1, total, generator)[mine]
    return transform(images, labels), labels


def draw_shifts(settings: MAFP, reach: int, total: int, generator: torch.Generator) -> Tensor:
    """Draw whole pixels [2, total] to the right and down, uniform within `reach`, zero where the trigger is silent.

    `batch_all_zero` is the released code's trigger: each image draws a flag that is set with probability p2, and all
    are translated if no flag is set, so with probability (1 - p2)^total. There a batch is what one device takes, here
    it is that of all devices.
    """
    device = generator.device
    shifts = torch.randint(-reach, reach + 1, (2, total), generator=generator, device=device)
    flags = torch.rand(1 if settings.trigger == "per_batch" else total, generator=generator, device=device)
    fires = flags < settings.p2
    return shifts * (~fires.any() if settings.trigger == "batch_all_zero" else fires)


def translate(images: Tensor, shifts: Tensor, reach: int) -> Tensor:
    """Move images by whole pixels [2, b] to the right and down, at most `reach`; zeros come in."""
    lefts, tops = reach - shifts
    return cut_patches(F.pad(images, [reach] * 4), Window(images.shape[3], tops, lefts))


def draw_labels(p: float, total: int, generator: torch.Generator) -> Tensor:
    """Draw what the pipe does to each of `total` images, as the labels [total, 9] that `transform` carries out.

    As configured by EDM: a fair horizontal flip always; with probability `p` each, a fair vertical flip, a scaling, a
    rotation anywhere on the circle, a stretch, in half of the cases along a slanted axis, and a translation.
    """
    device = generator.device
    uniform = torch.rand(10, total, generator=generator, device=device)
    scale, amount, right, down = torch.randn(4, total, generator=generator, device=device)
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
    """Do to square images [b, C, S, S] what their labels [b, 9] say, in one resampling.

    The labels are, in the order in which they act: 0 mirror left to right; 1 upside down; 2 scale by 2^(0.2 w); 3, 4
    rotate by a: cos(a) - 1, sin(a); 5, 6 stretch by 2^(0.2 w) along the axis at r in [-90, 90] degrees and squeeze by
    as much across it: w cos(r), w sin(r); 7, 8 move to the right and down, in units of S / 8 pixels. Angles turn
    counterclockwise as one sees the image. (In EDM, a stretch along r has the same labels as a squeeze along r + 180
    degrees; that r keeps to half of the circle tells them apart and changes no distribution.)

    What lies outside is the image mirrored at its outermost pixels, as in EDM: a border of zeros is nothing that an
    image has, and in latents not even black. EDM's wavelet filters against aliasing are not implemented; pixels are
    interpolated with cubic convolution, which keeps details that a bilinear one would blur.
    """
    grid = F.affine_grid(_inverse(labels, images.shape[3]), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=True)


def _inverse(labels: Tensor, side: int) -> Tensor:
    """Return the matrices [b, 2, 3] that take a place in the new image to its place in the old.

    Places are (x, y) in [-1, 1] from the first to the last pixel. With flips F, scale s, rotation R, stretch A and
    translation t, new = A R s F old + t, so old = F R^-1 A^-1 (new - t) / s.
    """
    x_flip, y_flip, scale, cosine_less_1, sine, along, across, right, down = labels.unbind(1)
    cosine = cosine_less_1 + 1
    turn = _matrices(cosine, -sine, sine, cosine)
    # A^-1 = cosh(q) I - sinh(q) [[cos 2r, -sin 2r], [-sin 2r, -cos 2r]], with q = ln(2^(0.2 w)); y points down.
    squared = along.square() + across.square()
    q = LOG2_STD * math.log(2) * squared.sqrt().copysign(along)
    twist = q.sinh() / squared.clamp_min(1e-30)
    cosine_2, sine_2 = twist * (along.square() - across.square()), twist * 2 * along * across
    stretch = _matrices(q.cosh() - cosine_2, sine_2, sine_2, q.cosh() + cosine_2)
    zoom = (1 - 2 * torch.stack([x_flip, y_flip], dim=1)) * (-LOG2_STD * scale).exp2()[:, None]
    rows = zoom[:, :, None] * (turn @ stretch)
    moved = torch.stack([right, down], dim=1)[:, :, None] * (2 * SHIFT_STD * side / (side - 1))
    return torch.cat([rows, -rows @ moved], dim=2)


def _matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the matrices [[a, b], [c, d]], [n, 2, 2] for entries [n]."""
    return torch.stack([a, b, c, d], dim=1).unflatten(1, (2, 2))
