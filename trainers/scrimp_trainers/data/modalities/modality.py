"""What a dataset's items are to the rest: bytes in a shard, numbers in a batch, and pictures for scores and eyes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scrimp_trainers.common import parts
from scrimp_trainers.data.manifest import Manifest

if TYPE_CHECKING:  # importing it takes seconds
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Items:
    """Several items together, padded to one shape where they differ."""

    values: "Tensor"
    """[B, ...], their numbers."""
    mask: "Tensor | None" = None
    """bool, of the rank of `values`: where an item is, and not padding; sides of 1 stand for all. None: everywhere."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: "Tensor | slice") -> "Items":
        """Return some of the items."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Items":
        """Return the same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def empty(self, count: int) -> "Items":
        """Return room for as many items of this kind."""
        return self._each(lambda tensor: tensor.new_empty(count, *tensor.shape[1:]))

    def write(self, first: int, items: "Items") -> None:
        """Replace the items from position `first` on."""
        rows = slice(first, first + len(items))
        self.values[rows] = items.values
        if self.mask is not None and items.mask is not None:
            self.mask[rows] = items.mask

    def _each(self, change: "Callable[[Tensor], Tensor]") -> "Items":
        return Items(change(self.values), None if self.mask is None else change(self.mask))


class Modality(Protocol):
    """A kind of item, which may have more than the methods below.

    With `mirror(values, flipped)` it can be trained on with `training.flip`. With `picture_shape`, the shape [C, H, W]
    of what `render` draws, its datasets may have a classifier. `renderer` names how it draws, if that can be changed:
    scores state it. `statistics(items)` gives numbers [B, n] of each item, for scores that are not about pictures.
    `svg(item)` gives the text of an SVG file.
    """

    @property
    def suffix(self) -> str:
        """Ending of an item's file in a shard, without the dot."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an item's values: channels first, the size of the items last."""
        ...

    @property
    def item_bytes(self) -> int:
        """Bytes of an item's values in memory."""
        ...

    def decode(self, data: bytes, where: str, /) -> np.ndarray:
        """Return the item in a shard's file. `where` names the file in error messages."""
        ...

    def encode(self, item: np.ndarray, /) -> bytes:
        """Return the file of an item, the same bytes for the same item."""
        ...

    def collate(self, items: Sequence[np.ndarray], /) -> Items:
        """Put items together: always with a mask, or never."""
        ...

    def render(self, items: Items, /) -> "Tensor":
        """Draw each item as a picture, uint8 [B, C, H, W] with C 1 or 3: what is scored and shown."""
        ...


def open_modality(kind: str, *, size: int, channels: int) -> Modality:
    """Return the modality of this kind for items of this size.

    Raises
    ------
    UserError
        If it is a user's own and has not been loaded, or items cannot have this size.
    """
    return parts.module("data.modalities", kind).build(size=size, channels=channels)


def modality_of(manifest: Manifest) -> Modality:
    """Return the modality of a dataset; raises as `open_modality` does."""
    return open_modality(manifest.modality, size=manifest.size, channels=manifest.channels)


def picture_shape(manifest: Manifest) -> tuple[int, int, int]:
    """Return the shape [C, H, W] of the pictures of a dataset of Scrimp's own modalities; raises as `modality_of`."""
    modality: Any = modality_of(manifest)
    return modality.picture_shape


def renderer(manifest: Manifest) -> str:
    """Name how a dataset's items are drawn; empty where they are pictures already. Raises as `modality_of`."""
    return getattr(modality_of(manifest), "renderer", "")


def statistics_of(modality: Any, items: Items) -> "Tensor | None":
    """Return what a modality measures of items, [B, k]; None if it measures nothing."""
    return modality.statistics(items) if hasattr(modality, "statistics") else None


def lengths_of(items: Items) -> np.ndarray | None:
    """Return how much of each item on the host is not padding, int64 [B]; None for items of one size."""
    return None if items.mask is None else items.mask.flatten(1).sum(1).numpy()


def has_mirror(modality: Modality) -> bool:
    """Whether items have mirror images."""
    return hasattr(modality, "mirror")


def mirrored(modality: Any, values: "Tensor", flipped: "Tensor") -> "Tensor":
    """Return the values of items [B, ...] of which those that are marked, bool [B], are mirrored."""
    return modality.mirror(values, flipped)


def train_bytes(manifest: Manifest) -> int:
    """Return the size of the training items in memory."""
    return manifest.splits["train"].count * modality_of(manifest).item_bytes
