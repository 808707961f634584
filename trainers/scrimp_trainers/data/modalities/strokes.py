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
"""Both in pixels of the picture, as `ink.py` has them, which imports torch."""
RENDERER = f"{SIDE}px-line{LINE_WIDTH:g}-margin{MARGIN:g}-antialiased"
"""What the pictures, and with them all scores of pictures, depend on."""
STATISTICS = ("points", "strokes", "curvature")
"""What `statistics` measures of each drawing."""


@dataclass(frozen=True)
class StrokeModality:
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
        from scrimp_trainers.data import ink

        return ink.pictures(items.values, _there(items))

    def statistics(self, items: Items) -> "Tensor":
        """Return the number of points, of strokes, and the mean turn in radians of each drawing, float32 [B, 3].

        A turn is the angle between two successive lines of one stroke; a drawing without any has a mean of 0.
        """
        import torch

        from scrimp_trainers.data import ink

        values = items.values.float()
        there = _there(items)
        points = there.sum(-1)
        strokes = ((values[:, 2] > 0.5) & there).sum(-1)

        steps = torch.diff(values[:, :2], dim=-1, prepend=torch.zeros_like(values[:, :2, :1]))
        drawn = ink.drawn(values, there)
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


def build(*, size: int, channels: int) -> StrokeModality:
    """Return the modality of drawings of at most this many points.

    Raises
    ------
    UserError
        If a point does not have three numbers.
    """
    if channels != CHANNELS:
        raise UserError(f"points of strokes have 3 numbers, not {channels}; prepare the dataset again")
    return StrokeModality(size)


def _there(items: Items) -> "Tensor":
    """Return bool [B, size], which points are a drawing's."""
    import torch

    if items.mask is None:
        return torch.ones_like(items.values[:, 0], dtype=torch.bool)
    return items.mask[:, 0]


def _paths(item: np.ndarray) -> list[tuple[str, str]]:
    """Return the first point of each stroke, and its other points, as SVG has them."""
    points = np.concatenate([np.zeros((1, 3), np.float32), item])
    strokes = np.split(points, np.flatnonzero(points[:, 2] > 0.5) + 1)
    texts = [[f"{x:.6g},{y:.6g}" for x, y, _ in stroke] for stroke in strokes]
    return [(text[0], " ".join(text[1:])) for text in texts if len(text) > 1]
