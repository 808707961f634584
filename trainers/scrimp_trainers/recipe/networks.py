"""The networks' sections: each `kind` is a file in `networks/`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, Tag, model_validator

from scrimp_trainers.recipe.sections import CAPTIONS, OWN, Count, FileName, Section, by_kind, own_section


class Network(Section):
    """What all networks have in common. A user's own network extends it, and has `build` and `load`."""

    kind: Any
    """Which network."""

    @property
    def is_trained_whole(self) -> bool:
        """Whether all of its weights are trained."""
        return True

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of."""
        return 1

    def options(self, recipe: Any) -> dict[str, Any]:
        """Return what `build` gets out of other sections of the recipe, besides what every network gets."""
        return {}


class UNet(Network):
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
    decoder_attention: Literal["all", "last"] = "all"
    """The residual blocks of a decoder's level that attend: all, as in DDPM, or the last, as in EDM's networks."""
    resampling: Literal["convolution", "residual"] = "convolution"
    """What halves and doubles the resolution: a convolution, as in DDPM, or a residual block, as in EDM's networks."""
    embedding_multiplier: Count | None = None
    """Width of the noise level's embedding as a multiple of `channels`: 4 in DDPM and EDM. None: four times the
    channels of the first level."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability in the residual blocks."""

    @property
    def needs(self) -> frozenset[str]:
        """It convolves over two dimensions."""
        return frozenset({"a grid"})

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of: every level after the first halves it."""
        return 2 ** (len(self.multipliers) - 1)


class DiT(Network):
    """A diffusion transformer (Peebles and Xie 2023): diffusers' `DiTTransformer2DModel`.

    The defaults are the paper's S/2; B/2 has 768 channels and 12 heads, XL/2 1152 channels, 28 layers and 16 heads.
    """

    kind: Literal["dit"] = "dit"
    """Which network."""

    patch_size: Count = 2
    """Side of the square of pixels that is one token."""
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 384
    """Channels of a token."""
    layers: Count = 12
    """Transformer blocks."""
    heads: Count = 6
    """Attention heads, which share the channels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability in the blocks."""

    @property
    def needs(self) -> frozenset[str]:
        """It cuts images into squares."""
        return frozenset({"a grid"})

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of."""
        return self.patch_size


class MDT(Network):
    """A masked diffusion transformer (Gao et al. 2023), with `masking` in training.

    The defaults are those of version 2's S/2. B/2 has 768 channels, 12 heads and a decoder of 4 layers; XL/2 1152
    channels, 28 layers, 16 heads and a decoder of 4.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"tokens that can be hidden", "an output for variances"})

    kind: Literal["mdt"] = "mdt"
    """Which network."""

    version: Literal[1, 2] = 2
    """Of MDT: 2 adds skips, from the first half of the encoder to the second, and from the patches to the decoder."""
    patch_size: Count = 2
    """Side of the square of pixels that is one token."""
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 384
    """Channels of a token."""
    layers: Annotated[int, Field(ge=2)] = 12
    """Transformer blocks of encoder and decoder; the side-interpolater of masked training is one more."""
    decoder_layers: Count = 6
    """Those of the decoder, which sees all tokens: 2 in version 1, 6 in version 2's S/2, 4 in its larger sizes."""
    heads: Count = 6
    """Attention heads, which share the channels."""

    @property
    def needs(self) -> frozenset[str]:
        """It cuts images into squares."""
        return frozenset({"a grid"})

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of."""
        return self.patch_size

    def options(self, recipe: Any) -> dict[str, Any]:
        """Return whether tokens are hidden in training, and whether the process wants variances."""
        return {"masked": recipe.masking.on, "variances": "an output for variances" in recipe.diffusion.needs}

    @model_validator(mode="after")
    def _divides(self) -> "MDT":
        encoder = self.layers - self.decoder_layers
        if encoder < 1:
            raise ValueError(f"decoder_layers {self.decoder_layers} leaves no encoder of the {self.layers} layers")
        if self.version == 2 and encoder % 2:
            raise ValueError(
                f"layers {self.layers} less decoder_layers {self.decoder_layers} must be even in version 2"
            )
        if self.channels % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the {self.channels} channels")
        return self


class GRU(Network):
    """ChiroDiff's bidirectional GRU along the points of pen drawings (Das et al. 2023), with its released widths."""

    kind: Literal["gru"] = "gru"
    """Which network."""

    width: Count = 96
    """Numbers of a layer's state in each direction."""
    layers: Count = 3
    """Layers."""
    time_features: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    """Sines and cosines of random frequencies that say the step of the chain."""

    @property
    def needs(self) -> frozenset[str]:
        """It goes from point to point, and its features of time are those of a chain."""
        return frozenset({"pen strokes", "a chain of steps"})

    def options(self, recipe: Any) -> dict[str, Any]:
        """Return the length of the chain, and whether x holds positions or the steps between them."""
        return {"timesteps": recipe.diffusion.timesteps, "form": recipe.codec.form}


class UNet2DCondition(Network):
    """Stable Diffusion's U-Net (Rombach et al. 2022), which attends to captions: diffusers' `UNet2DConditionModel`.

    The defaults are the shape of Stable Diffusion 1. `pretrained` names a network to begin with, whose config gives
    the shape instead.
    """

    offers: ClassVar[frozenset[str]] = frozenset({CAPTIONS})

    kind: Literal["unet2d_condition"] = "unet2d_condition"
    """Which network."""

    pretrained: FileName | None = None
    """Folder or hub id of the network whose weights training begins with: a model in Stable Diffusion's layout, or its
    `unet` folder. None: a new one."""
    lora_rank: Count | None = None
    """Rank of updates of the pretrained network's attention (LoRA, Hu et al. 2022), which alone are trained, averaged
    and kept. None trains all weights."""
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 320
    """Channels of the first level."""
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 4)
    """Channels of each level as multiples of `channels`; every level after the first halves the resolution. All but the
    last attend to the caption, and so does the middle."""
    blocks: Count = 2
    """Residual blocks a level."""
    heads: Count = 8
    """Attention heads, which share the channels of a level."""
    text_width: Count = 768
    """Numbers in the embedding of a caption's token: 768 in Stable Diffusion 1, 1024 in 2."""

    @property
    def needs(self) -> frozenset[str]:
        """It convolves over two dimensions."""
        return frozenset({"a grid"})

    @property
    def is_trained_whole(self) -> bool:
        """Whether all of its weights are trained, and not LoRA's updates alone."""
        return self.lora_rank is None

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of; that of a pretrained one is known when it is read."""
        return 1 if self.pretrained else 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _one_shape(self) -> "UNet2DCondition":
        shape = ("channels", "multipliers", "blocks", "heads", "text_width")
        given = [name for name in shape if getattr(self, name) != type(self).model_fields[name].default]
        if self.pretrained and given:
            raise ValueError(f"{given[0]} is given by the config of pretrained {self.pretrained}; leave it out")
        if self.lora_rank and not self.pretrained:
            raise ValueError("lora_rank updates the network that pretrained names; name one, or leave it out")
        if any(self.channels * multiplier % self.heads for multiplier in self.multipliers):
            raise ValueError(f"heads {self.heads} does not divide the channels of every level")
        return self


AnyNetwork = Annotated[
    Annotated[UNet, Tag("unet")]
    | Annotated[DiT, Tag("dit")]
    | Annotated[MDT, Tag("mdt")]
    | Annotated[GRU, Tag("gru")]
    | Annotated[UNet2DCondition, Tag("unet2d_condition")]
    | Annotated[SerializeAsAny[Network], own_section(Network), Tag(OWN)],
    by_kind("unet"),
]
