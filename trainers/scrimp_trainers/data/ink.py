"""Pictures of pen drawings. It imports torch alone, since exported models of drawings carry a copy of its text."""

import torch
from torch import Tensor

SIDE = 64
"""Height and width of a picture."""
LINE_WIDTH = 2.0
MARGIN = 4.0
"""Both in pixels of the picture."""
PIECE = 2.0
"""Longest piece of a line that is drawn at once, in pixels."""
REACH = 2
"""Pixels around that of a piece's middle that it may leave ink in: half a piece, half a line and half a pixel."""


def pictures(points: Tensor, there: Tensor) -> Tensor:
    """Draw black lines on white, uint8 [B, 1, 64, 64].

    The longer side of a drawing's box fills the picture up to a margin of 4 pixels, and the box is centred. A line is 2
    pixels wide with round ends; a pixel at the distance d from it has the ink 1.5 - d, within [0, 1].

    Parameters
    ----------
    points
        [B, 3, size]: x, y, and above 0.5 where the pen goes up.
    there
        bool [B, size], which of them are a drawing's.
    """
    return (255 * (1 - _ink(*_lines(points, there), len(points)))).round().byte()[:, None]


def drawn(points: Tensor, there: Tensor) -> Tensor:
    """Return bool [B, size], whether the pen was down on the way to each point."""
    up = points[:, 2] > 0.5
    return there & ~torch.nn.functional.pad(up[:, :-1], (1, 0))


def _lines(points: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the start and the end [n, 2] of each line that is drawn, in pixels of the picture, and its drawing [n]."""
    places = torch.nan_to_num(points[:, :2].float(), nan=0.0, posinf=1e6, neginf=-1e6)
    places = places * there[:, None]  # padding is at the origin, which belongs to the box
    low = places.amin(-1, keepdim=True).clamp(max=0)
    high = places.amax(-1, keepdim=True).clamp(min=0)
    side = (high - low).amax(1, keepdim=True).clamp(min=1e-6)

    places = torch.nn.functional.pad(places, (1, 0))
    pixels = (places - (low + high) / 2) * ((SIDE - 2 * MARGIN) / side) + SIDE / 2
    pixels = pixels.transpose(1, 2)
    drawing, line = drawn(points, there).nonzero(as_tuple=True)
    return pixels[drawing, line], pixels[drawing, line + 1], drawing


def _ink(starts: Tensor, ends: Tensor, drawing: Tensor, count: int) -> Tensor:
    """Return the ink [count, 64, 64], in [0, 1], of lines: at each pixel the most that any line leaves there.

    A line is cut into pieces, none longer than `PIECE`. A piece leaves ink only in the square of pixels around it.
    """
    pieces = ((ends - starts).norm(dim=1) / PIECE).ceil().clamp(min=1).long()
    line = torch.arange(len(pieces), device=pieces.device).repeat_interleave(pieces)
    number = torch.arange(len(line), device=line.device) - (pieces.cumsum(0) - pieces)[line]
    step = ((ends - starts) / pieces[:, None])[line]
    start = starts[line] + step * number[:, None]

    # The pixels around the middle of each piece, [pieces, 5, 5].
    corner = (start + step / 2).floor()
    around = torch.arange(-REACH, REACH + 1, device=start.device)
    column, row = (corner[:, axis, None] + around for axis in (0, 1))
    x, y = column + 0.5 - start[:, :1], row + 0.5 - start[:, 1:]

    # Their distances to the nearest points of the pieces.
    length = step.square().sum(1).clamp(min=1e-12)[:, None, None]
    along = (x * step[:, :1])[:, None, :] + (y * step[:, 1:])[:, :, None]
    share = (along / length).clamp(0, 1)
    across_x = x[:, None, :] - share * step[:, :1, None]
    across_y = y[:, :, None] - share * step[:, 1:, None]
    ink = (LINE_WIDTH / 2 + 0.5 - torch.hypot(across_x, across_y)).clamp(0, 1)

    place = drawing[line][:, None, None] * SIDE**2 + row[:, :, None].long() * SIDE + column[:, None, :].long()
    canvas = torch.zeros(count * SIDE**2, device=start.device)
    return canvas.scatter_reduce(0, place.flatten(), ink.flatten(), "amax").view(count, SIDE, SIDE)
