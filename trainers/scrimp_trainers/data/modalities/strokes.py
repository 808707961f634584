"""Pen drawings: points in the order in which they were drawn, and where the pen goes up. An item is float32 [n, 3].

A drawing begins at the origin, with the pen down; that first point is not kept. Each row is another point: x, y (which
grows downwards, as in pictures), and 1 if it is the last of its stroke, else 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scrimp_trainers.common.errors import DamagedData, UserError
from scrimp_trainers.data.modalities.modality import Items

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor

CHANNELS = 3
"""Numbers of a point: x, y, and whether it ends its stroke."""
SIDE = 64
"""Height and width of a picture."""
LINE_WIDTH = 2.0
MARGIN = 4.0
"""Both in pixels of the picture."""
RENDERER = f"{SIDE}px-line{LINE_WIDTH:g}-margin{MARGIN:g}-antialiased"
"""What the pictures, and with them all scores of pictures, depend on."""
PIECE = 2.0
"""Longest piece of a line that is drawn at once, in pixels."""
REACH = 2
"""Pixels around that of a piece's middle that it may leave ink in: half a piece, half a line and half a pixel."""
STATISTICS = ("points", "strokes", "curvature")
"""What `statistics` measures of each drawing."""


@dataclass(frozen=True)
class Strokes:
    """Drawings of at most `size` points after the first."""

    size: int
    """Most points of a drawing."""
    suffix: str = "strokes"
    picture_shape: ClassVar[tuple[int, int, int]] = (1, SIDE, SIDE)
    renderer: ClassVar[str] = RENDERER

    @property
    def shape(self) -> tuple[int, ...]:
        """[3, points]."""
        return CHANNELS, self.size

    @property
    def item_bytes(self) -> int:
        """Three float32 a point, and a byte of the mask."""
        return (4 * CHANNELS + 1) * self.size

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """Read float32 [n, 3], little-endian.

        Raises
        ------
        DamagedData
            If these are not 1 to `size` points.
        """
        count, rest = divmod(len(data), 4 * CHANNELS)
        if rest or not 1 <= count <= self.size:
            raise DamagedData(f"{where}: {len(data)} bytes are not 1 to {self.size} points; prepare the dataset again")
        points = np.frombuffer(data, "<f4").reshape(count, CHANNELS)
        if not np.isfinite(points).all():
            raise DamagedData(f"{where}: has points that are not finite; prepare the dataset again")
        return points

    def encode(self, item: np.ndarray) -> bytes:
        """Write float32 [n, 3], little-endian."""
        return item.astype("<f4").tobytes()

    def collate(self, items: Sequence[np.ndarray]) -> Items:
        """Pad drawings to float32 [B, 3, size], with a mask [B, 1, size]."""
        import torch

        values = np.zeros((len(items), CHANNELS, self.size), dtype=np.float32)
        lengths = np.array([len(item) for item in items])
        for row, item in zip(values, items, strict=True):
            row[:, : len(item)] = item.T
        mask = np.arange(self.size) < lengths[:, None, None]
        return Items(torch.from_numpy(values), torch.from_numpy(mask))

    def render(self, items: Items) -> "Tensor":
        """Draw black lines on white, uint8 [B, 1, 64, 64].

        The longer side of a drawing's box fills the picture up to a margin of 4 pixels, and the box is centred. A line
        is 2 pixels wide with round ends; a pixel at the distance d from it has the ink 1.5 - d, within [0, 1].
        """
        return (255 * (1 - _ink(*_lines(items), len(items)))).round().byte()[:, None]

    def statistics(self, items: Items) -> "Tensor":
        """Return the number of points, of strokes, and the mean turn in radians of each drawing, float32 [B, 3].

        A turn is the angle between two successive lines of one stroke; a drawing without any has a mean of 0.
        """
        import torch

        values = items.values.float()
        there = _there(items)
        points = there.sum(-1)
        strokes = ((values[:, 2] > 0.5) & there).sum(-1)

        steps = torch.diff(values[:, :2], dim=-1, prepend=torch.zeros_like(values[:, :2, :1]))
        drawn = _drawn(items)
        angles = torch.atan2(steps[:, 1], steps[:, 0])
        turns = torch.remainder(angles[:, 1:] - angles[:, :-1] + torch.pi, 2 * torch.pi) - torch.pi
        both = (drawn[:, 1:] & drawn[:, :-1]).float()
        curvature = (turns.abs() * both).sum(-1) / both.sum(-1).clamp(min=1)
        return torch.stack([points.float(), strokes.float(), curvature], dim=1)

    def svg(self, item: np.ndarray) -> str:
        """Return a drawing [n, 3] as an SVG file, in its own units."""
        lines = [f"M{first} L{rest}" for first, rest in _paths(item)]
        x, y = np.concatenate([np.zeros((1, 2)), item[:, :2]]).T
        side = max(float(np.ptp(x)), float(np.ptp(y)), 1e-6)
        margin = MARGIN / (SIDE - 2 * MARGIN) * side
        box = [x.min() - margin, y.min() - margin, np.ptp(x) + 2 * margin, np.ptp(y) + 2 * margin]
        width = LINE_WIDTH / (SIDE - 2 * MARGIN) * side
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(f"{value:.6g}" for value in box)}">\n'
            f'<path fill="none" stroke="black" stroke-width="{width:.4g}" stroke-linecap="round" '
            f'stroke-linejoin="round" d="{" ".join(lines)}"/>\n</svg>\n'
        )


def build(*, size: int, channels: int) -> Strokes:
    """Return the modality of drawings of at most this many points.

    Raises
    ------
    UserError
        If a point does not have three numbers.
    """
    if channels != CHANNELS:
        raise UserError(f"points of strokes have 3 numbers, not {channels}; prepare the dataset again")
    return Strokes(size)


def _there(items: Items) -> "Tensor":
    """Return bool [B, size], which points are a drawing's."""
    import torch

    if items.mask is None:
        return torch.ones_like(items.values[:, 0], dtype=torch.bool)
    return items.mask[:, 0]


def _drawn(items: Items) -> "Tensor":
    """Return bool [B, size], whether the pen was down on the way to each point."""
    import torch

    up = items.values[:, 2] > 0.5
    return _there(items) & ~torch.nn.functional.pad(up[:, :-1], (1, 0))


def _lines(items: Items) -> "tuple[Tensor, Tensor, Tensor]":
    """Return the start and the end [n, 2] of each line that is drawn, in pixels of the picture, and its drawing [n]."""
    import torch

    points = torch.nan_to_num(items.values[:, :2].float(), nan=0.0, posinf=1e6, neginf=-1e6)
    points = points * _there(items)[:, None]  # padding is at the origin, which belongs to the box
    low = points.amin(-1, keepdim=True).clamp(max=0)
    high = points.amax(-1, keepdim=True).clamp(min=0)
    side = (high - low).amax(1, keepdim=True).clamp(min=1e-6)

    points = torch.nn.functional.pad(points, (1, 0))
    pixels = (points - (low + high) / 2) * ((SIDE - 2 * MARGIN) / side) + SIDE / 2
    pixels = pixels.transpose(1, 2)
    drawing, line = _drawn(items).nonzero(as_tuple=True)
    return pixels[drawing, line], pixels[drawing, line + 1], drawing


def _ink(starts: "Tensor", ends: "Tensor", drawing: "Tensor", count: int) -> "Tensor":
    """Return the ink [count, 64, 64], in [0, 1], of lines: at each pixel the most that any line leaves there.

    A line is cut into pieces, none longer than `PIECE`. A piece leaves ink only in the square of pixels around it.
    """
    import torch

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


def _paths(item: np.ndarray) -> list[tuple[str, str]]:
    """Return the first point of each stroke, and its other points, as SVG has them."""
    points = np.concatenate([np.zeros((1, 3), np.float32), item])
    strokes = np.split(points, np.flatnonzero(points[:, 2] > 0.5) + 1)
    texts = [[f"{x:.6g},{y:.6g}" for x, y, _ in stroke] for stroke in strokes]
    return [(text[0], " ".join(text[1:])) for text in texts if len(text) > 1]
