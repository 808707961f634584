"""The codec of pen drawings: points as they are, or the steps between them, as ChiroDiff has both (Das et al. 2023)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.codecs.codec import Decoding, Draw, Shape
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.recipe.techniques import StrokeForm, Strokes

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor, device


@dataclass(frozen=True)
class StrokeCodec:
    """Between drawings and x [B, 3, points]."""

    form: StrokeForm
    pen_threshold: float

    def shape(self, items: Shape) -> Shape:
        """Return the drawings' shape."""
        return items

    def item_shape(self, x: Shape) -> Shape:
        """Return the shape of x."""
        return x

    def encode(self, values: "Tensor", draw: Draw) -> "Tensor":
        """Return the points, or the steps from one to the next, the first of them from the origin."""
        return values if self.form == "absolute" else steps(values)

    def decode(self, x: "Tensor") -> Items:
        """Return drawings: a stroke ends where the third number is above the threshold."""
        import torch

        positions = x[:, :2] if self.form == "absolute" else x[:, :2].cumsum(-1)
        ends = (x[:, 2:] > self.pen_threshold).to(x.dtype)
        return Items(torch.cat([positions, ends], 1))


def steps(values: "Tensor") -> "Tensor":
    """Return points [B, 3, n] with the steps between them in place of positions; the first begins at the origin."""
    import torch

    positions = values[:, :2]
    differences = torch.diff(positions, dim=-1, prepend=torch.zeros_like(positions[..., :1]))
    return torch.cat([differences, values[:, 2:]], 1)


def build(section: Strokes, items: Shape, device: "device") -> StrokeCodec:  # noqa: ARG001
    """Return the codec, which needs nothing."""
    return StrokeCodec(section.form, section.pen_threshold)


def shape(section: Strokes, items: Shape) -> Shape:  # noqa: ARG001
    """Return the shape of x: that of the drawings."""
    return items


def save(section: Strokes, items: Shape, folder: Path) -> None:
    """Write nothing: decoding needs nothing."""


def load(section: Strokes, folder: Path, device: "device") -> StrokeCodec:  # noqa: ARG001
    """Return the codec of an exported model."""
    return build(section, (), device)


def decoding(section: Strokes, items: Shape) -> Decoding:  # noqa: ARG001
    """Return the code that makes a list of drawings [n, 3] of x."""
    positions = "x[:, :2]" if section.form == "absolute" else "x[:, :2].cumsum(-1)"
    return Decoding(
        result=f"points = torch.cat([{positions}, (x[:, 2:] > {section.pen_threshold:g}).float()], 1)\n"
        "drawings = [p[:, :m].T for p, m in zip(points, lengths)]  # [m, 3] each: x, y, and 1 where a stroke ends\n",
        pictures="mask = torch.arange(points.shape[-1]) < lengths[:, None]\nimages = pictures(points, mask)\n",
        module="scrimp_trainers.data.ink",
    )
