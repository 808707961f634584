"""What training and sampling need of a codec, which stands between a dataset's items and what a network is trained on.

A codec's file in this folder is named by `part` of its section. Beside `build`, which returns the codec, it has:
`shape`, for planning without the codec; `save` and `load` of what it needs in the folder of an exported model. If
diffusers alone can decode, it has `decoding`, the code on the model's card. If what it encodes is cached with the
dataset, it has `batches(section, dataset, **options)`, whose values `encode` takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scrimp_trainers.data.modalities.modality import Items

if TYPE_CHECKING:  # importing it takes seconds
    from torch import Tensor

Shape = tuple[int, ...]
"""Of one item, or of one x: channels first, the size last."""
Draw = Callable[[Sequence[int]], "Tensor"]
"""Gives standard normal noise of a shape."""


class Codec(Protocol):
    """Makes x of items, and items of x."""

    def shape(self, items: Shape, /) -> Shape:
        """Return the shape of one x for items of this shape."""
        ...

    def item_shape(self, x: Shape, /) -> Shape:
        """Return the shape of the items for an x of this shape."""
        ...

    def encode(self, values: "Tensor", draw: Draw, /) -> "Tensor":
        """Return x [B, ...] of the values of a batch [B, ...], where it is random with noise that `draw` gives.

        Items with a mask keep their places: the mask is that of x, too.
        """
        ...

    def decode(self, x: "Tensor", /) -> Items:
        """Return items of x [B, ...], which a network has drawn."""
        ...


@dataclass(frozen=True)
class Decoding:
    """Lines of Python that make images of x with diffusers alone; empty where x is scaled pixels.

    They may use `folder`, that of the model.
    """

    imports: str = ""
    """What to import from diffusers."""
    loading: str = ""
    """Loads the decoder."""
    lines: str = ""
    """Decodes `x`, inside of `torch.no_grad()`."""
    result: str = "images = ((x + 1) * 127.5).round().clamp(0, 255).byte()\n"
    """Makes of that what is wanted."""
    pictures: str = ""
    """Makes `images` of that, where it is something else."""
    module: str = ""
    """The module of Scrimp that `pictures` needs, which imports torch alone."""
