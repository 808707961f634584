"""The networks' sections: each `kind` is a file in `networks/`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scrimp_trainers.recipe.sections import Count, Section


class UNet(Section):
    """A U-Net of diffusers (`UNet2DModel`)."""

    offers: ClassVar[frozenset[str]] = frozenset({"images of several sizes", "augmentation labels", "coordinates"})

    kind: Literal["unet"] = "unet"
    """Which network."""

    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    """Channels of the first level."""
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (2, 2, 2)
    """Channels of each level as multiples of `channels`; every level after the first halves the resolution."""
    blocks: Count = 4
    """Residual blocks a level."""
    attention: tuple[Count, ...] = (16,)
    """Resolutions, in pixels, at which there is self-attention."""
    head_channels: Annotated[int, Field(ge=1)] | None = None
    """Channels of one attention head; none for a single head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability in the residual blocks."""

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of: every level after the first halves it."""
        return 2 ** (len(self.multipliers) - 1)


Network = UNet
