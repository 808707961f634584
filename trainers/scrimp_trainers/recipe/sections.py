"""What all sections of a recipe have in common, and those of every training run: conditioning, optimizer, length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home, expand_name

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
FileName = Annotated[str, AfterValidator(expand_name)]
OwnPart = Annotated[str, Field(pattern=r"^\w+:\w+$")]
"""A user's own part, `my_parts:MyNetwork`: the file without its ending, and the name in it."""
FilePath = Annotated[Path, AfterValidator(expand_home)]


CAPTIONS = "a network that takes captions"
"""What `conditioning.text` needs, and a network offers."""


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    offers: ClassVar[frozenset[str]] = frozenset()
    """What this part can do that another section may need."""

    @property
    def needs(self) -> frozenset[str]:
        """What another section has to offer for this one to work."""
        return frozenset()


OWN = "own"
"""The tag of a union's open member: the section of a user's own part, whose kind is `my_parts:MyNetwork`."""


def by_kind(default: str, *alike: str) -> Discriminator:
    """Return what chooses among the sections of a union by their `kind`; where it is left out, `default` is meant.

    Kinds that are `alike` have the section of the default.
    """

    def choose(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, Mapping) else value.kind
        if parts.is_own(str(kind)):
            return OWN
        return default if kind in alike else kind

    return Discriminator(choose)


def own_section(base: type[Section]) -> WrapValidator:
    """Return what validates a section of own parts: by the class of its kind, which has to extend `base`."""

    def validate(value: Any, _: ValidatorFunctionWrapHandler) -> Section:
        if isinstance(value, Section):
            return value
        section = parts.own(value["kind"])
        if not (isinstance(section, type) and issubclass(section, base)):
            raise UserError(f"{value['kind']}: has to be a class that extends {base.__name__}")
        return section.model_validate(value)

    return WrapValidator(validate)


class Conditioning(Section):
    """Whether the network is conditioned on the class of an image, or on its caption."""

    classes: bool = False
    """Train on class labels; the dataset must have them."""
    text: FileName | None = None
    """Folder or hub id, in the layout of Stable Diffusion, of the `tokenizer` and the `text_encoder` through which the
    network is conditioned on captions; the dataset must have them. None: no captions."""
    label_drop: Probability = 0.0
    """Probability with which a label, or a caption, is hidden in training, for classifier-free guidance."""

    @property
    def needs(self) -> frozenset[str]:
        """Captions are for a network that takes them."""
        return frozenset({CAPTIONS}) if self.text else frozenset()

    @model_validator(mode="after")
    def _one_condition(self) -> "Conditioning":
        if self.classes and self.text:
            raise ValueError("classes and text exclude each other; captions may name the classes")
        return self


class Optimizer(Section):
    """Adam or AdamW, with a learning rate that ramps up linearly and then stays."""

    kind: Literal["adam", "adamw"] = "adam"
    """Adam puts weight decay into the gradient (L2), AdamW decouples it."""
    lr: Positive = 1e-3
    """Learning rate after the ramp-up."""
    warmup_kimg: NonNegative = 10_000.0
    """Length of the linear ramp-up, in thousands of images."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.999
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Term that keeps the update finite."""
    weight_decay: NonNegative = 0.0
    """Weight decay."""
    max_gradient_norm: Positive | None = None
    """Gradients of a larger norm, over all weights together, are scaled down to it; none leaves them as they are."""


class EMA(Section):
    """Exponential moving average of the weights: what is sampled, scored and exported."""

    halflife_kimg: NonNegative = 500.0
    """Half-life in thousands of images; 0 takes the raw weights."""
    rampup_ratio: Annotated[float, Field(gt=0)] | None = 0.05
    """Half-life is at most this share of the images seen so far; none for no ramp-up."""
    snapshots: Annotated[int, Field(ge=0, exclude_if=lambda count: count == 0)] = 0
    """How often in a training two further averages are kept, evenly spaced, of which `scrimp tune` makes averages of
    other widths after it (post-hoc EMA, Karras et al. 2024). 16 do for widths from 0.04 to 0.18, 32 from 0.03 to 0.24.
    Each takes the space of the weights. 0: none; such a recipe is written without this field, so its hashes stay."""


class Training(Section):
    """How long, in which batches, with which arithmetic."""

    kimg: Positive = 200_000.0
    """Length of the run, in thousands of images seen."""
    batch_size: Count = 512
    """Images a step, over all devices."""
    microbatch: Count | Literal["auto"] = "auto"
    """Images that one device takes at once; gradients of several are accumulated. `auto`: its whole share, or half as
    many as often as memory runs out."""
    flip: bool = False
    """Flip images horizontally at random."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network; weights and losses stay fp32. `tf32` is fp32 but for the factors of products, which a
    GPU rounds to 10 bits; `fp32` is exact on a GPU, too. On a processor tf32 and fp16 are computed as fp32."""
    loss_scale: Positive = 1.0
    """Factor on the loss before the backward pass, undone in the gradients; keeps fp16 gradients from vanishing."""
    min_snr_gamma: Positive | None = None
    """Weigh the clean image's error by min(SNR, gamma), min-SNR weighting (Hang et al. 2023, who use 5); none keeps the
    weights of the diffusion process."""
    compile: bool = False
    """Compile the network with `torch.compile`, for training and to draw 1,000 samples or more."""
    select: Literal["last", "best"] = "last"
    """Which model `scrimp train` exports: the last one, or that of the rung with the best score. A score by which a
    model was chosen is optimistic, so a sweep refuses `best`."""
