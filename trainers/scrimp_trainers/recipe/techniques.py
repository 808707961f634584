"""The techniques' sections of a recipe. All are off by default; each names its paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, SerializeAsAny, Tag, model_validator

from scrimp_trainers.recipe.sections import (
    OWN,
    Count,
    FileName,
    FilePath,
    NonNegative,
    Positive,
    Probability,
    Section,
    by_kind,
    own_section,
)

if TYPE_CHECKING:  # recipes are free of torch
    from torch import device

Share = Annotated[float, Field(gt=0, le=1)]


class CodecSection(Section):
    """What all codecs have in common. A user's own extends it, and has the methods of `codecs.codec.Codec`.

    A user's own section is its codec, or its `build` returns one.
    """

    modality: ClassVar[str] = "images"
    """Of what items: a kind of modality, as a dataset names its own."""

    kind: Any
    """Which codec."""

    @property
    def part(self) -> str:
        """The file in `codecs/`, or the user's own class."""
        return self.kind

    @property
    def on(self) -> bool:
        """Whether something else takes the place of pixels."""
        return True

    @property
    def bounded(self) -> bool:
        """Whether x is in [-1, 1], so that a sampler may clip its estimates to that."""
        return False

    @property
    def caches(self) -> bool:
        """Whether a dataset is encoded once and kept, however large it is."""
        return False

    def build(self, items: tuple[int, ...], device: "device") -> Any:
        """Return the codec for items of this shape."""
        return self

    def save(self, items: tuple[int, ...], folder: Path) -> None:
        """Write what `load` needs besides the recipe into the folder of an exported model."""

    def load(self, folder: Path, device: "device") -> Any:
        """Return the codec of an exported model."""
        return self


AutoencoderKind = Literal["none", "kl", "tiny", "vq"]
"""None, or one of diffusers' autoencoders: AutoencoderKL, AutoencoderTiny, VQModel."""


class Autoencoder(CodecSection):
    """Diffusion in latents of a frozen autoencoder (LD-Diffusion: "compressing model"; latent diffusion: `vq`)."""

    offers: ClassVar[frozenset[str]] = frozenset({"a grid"})

    kind: AutoencoderKind = "none"
    """None, or one of diffusers' autoencoders: AutoencoderKL, AutoencoderTiny, VQModel."""
    encoder: FileName = "stabilityai/sd-vae-ft-mse"
    """Folder or hub id of the autoencoder that encodes."""
    decoder: FileName = "stabilityai/sd-vae-ft-ema"
    """Folder or hub id of the autoencoder that decodes."""

    @property
    def part(self) -> str:
        """The file of pixels, or that of autoencoders."""
        return "pretrained" if self.on else "pixels"

    @property
    def on(self) -> bool:
        """Whether latents take the place of pixels."""
        return self.kind != "none"

    @property
    def bounded(self) -> bool:
        """True of pixels, false of latents."""
        return not self.on

    @property
    def caches(self) -> bool:
        """True of latents."""
        return self.on


StrokeForm = Literal["delta", "absolute"]
"""Whether x holds the steps between points, or the points."""


class Strokes(CodecSection):
    """Pen drawings as ChiroDiff is trained on them (Das et al. 2023)."""

    modality: ClassVar[str] = "strokes"
    offers: ClassVar[frozenset[str]] = frozenset({"pen strokes"})

    kind: Literal["strokes"] = "strokes"
    """Pen drawings."""
    form: StrokeForm = "delta"
    """`delta`: the steps from point to point, with 1 at the step that ends a stroke. `absolute`: the points."""
    pen_threshold: float = 0.8
    """Where a sample's third number is above it, a stroke ends."""

    @property
    def on(self) -> bool:
        """No: nothing takes the place of the points."""
        return False


AnyCodec = Annotated[
    Annotated[Autoencoder, Tag("none")]
    | Annotated[Strokes, Tag("strokes")]
    | Annotated[SerializeAsAny[CodecSection], own_section(CodecSection), Tag(OWN)],
    by_kind("none", *get_args(AutoencoderKind)),
]


class MAFP(Section):
    """LD-Diffusion's mixed augmentation with fixed probability.

    Which of p1 and p2 the paper gives to which part is not known; both are 0.1 in it.
    """

    p1: Probability = 0.0
    """Probability of each geometric transformation of EDM's pipe; the network is conditioned on 9 labels."""
    p2: Probability = 0.0
    """Probability of DiffAugment's translation; the network is not conditioned on it."""
    trigger: Literal["per_sample", "per_batch", "batch_all_zero"] = "per_sample"
    """Who is translated together: each image by itself, the whole batch, or, as in the released code, the whole batch
    and only if none of a batch's flags, each set with probability p2, is set."""

    @property
    def on(self) -> bool:
        """Whether anything is augmented."""
        return self.p1 > 0 or self.p2 > 0

    @property
    def needs(self) -> frozenset[str]:
        """Images are moved and turned; the pipe's labels tell the network what was done to them."""
        grid = {"a grid"} if self.on else set[str]()
        return frozenset(grid | {"augmentation labels"} if self.p1 > 0 else grid)


class Patches(Section):
    """Patch Diffusion's training on parts of images; two more input channels hold the coordinates."""

    real_p: Probability = 1.0
    """Probability of a step on whole images."""
    sizes: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.75,)
    """Sides of the parts as shares of an image's: (0.75,) in LD-Diffusion; (0.5,), (0.25, 0.5) in Patch Diffusion."""
    shares: tuple[Positive, ...] = (1.0,)
    """How often each size is drawn, in proportion: (2, 3) with (0.25, 0.5) in Patch Diffusion."""
    coordinates: bool = False
    """Give the network coordinates although all steps are on whole images, as LD-Diffusion does for low-shot sets."""

    @property
    def on(self) -> bool:
        """Whether some steps are on parts of images."""
        return self.real_p < 1

    @property
    def needs(self) -> frozenset[str]:
        """Parts of images are smaller, and have a place."""
        if self.on:
            return frozenset({"a grid", "images of several sizes", "coordinates"})
        return frozenset({"a grid", "coordinates"}) if self.coordinates else frozenset()

    @model_validator(mode="after")
    def _a_share_each(self) -> "Patches":
        if len(self.shares) != len(self.sizes):
            raise ValueError(f"{len(self.shares)} shares for {len(self.sizes)} sizes; give one a size")
        return self


class Masking(Section):
    """Masked training (MDT, Gao et al. 2023): a second pass of each step sees a part of an image's tokens."""

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens that the second pass does not see; 0 is off, and 0.3 the paper's."""
    spread: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Each step's share is drawn uniformly between `ratio` and this much more: 0 in MDT, 0.2 in MDTv2."""

    @property
    def on(self) -> bool:
        """Whether there is a second pass."""
        return self.ratio > 0

    @property
    def needs(self) -> frozenset[str]:
        """The network does without some of an image's tokens."""
        return frozenset({"tokens that can be hidden"}) if self.on else frozenset()

    @model_validator(mode="after")
    def _leaves_tokens(self) -> "Masking":
        if self.ratio + self.spread >= 1:
            raise ValueError(f"ratio {self.ratio:g} and spread {self.spread:g} may hide all tokens; keep them below 1")
        return self


class OOD(Section):
    """LD-Diffusion's regularisation: estimates are pushed away from a jigsaw of the image."""

    weight: NonNegative = 0.0
    """Factor on the term; 1 in the released code, 0 is off."""
    constant: Positive = 100.0
    """Added to the squared distance; 100 in the released code, which makes the term very weak."""

    @property
    def on(self) -> bool:
        """Whether the term is added."""
        return self.weight > 0

    @property
    def needs(self) -> frozenset[str]:
        """The estimate is compared with a jigsaw of the image."""
        return frozenset({"a grid", "an estimate of the clean image"}) if self.on else frozenset()


class Ambient(Section):
    """Ambient training against memorisation (Shah et al. 2025): above sigma_n, noisy copies alone are used."""

    sigma_n: NonNegative = 0.0
    """Noise of the copy, and the noise level from which on it alone is used; 0 is off."""
    weighting: Literal["released", "compensated"] = "released"
    """The loss above sigma_n: as in the released code, where its weight vanishes at sigma_n, or with that undone
    except within 0.5% of sigma_n."""
    noise: Literal["fixed", "fresh"] = "fixed"
    """One draw for each image for ever, or, as an ablation, a new one each time."""
    order: Literal["augment_first", "noise_first"] = "augment_first"
    """Whether noise is put on augmented images, as in the released code, or augmented with them."""

    @property
    def on(self) -> bool:
        """Whether the technique is on."""
        return self.sigma_n > 0


class Sparsity(Section):
    """Sparse-to-sparse training of diffusion models (Oliveira et al. 2025): Static-DM, RigL-DM, MagRan-DM."""

    method: Literal["dense", "static", "rigl", "magran"] = "dense"
    """None; a fixed random mask; weights that move to where the gradient is largest; to random places."""
    level: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the maskable weights that are zero; 0.25 to 0.5 is safe according to the paper."""
    distribution: Literal["erk", "uniform"] = "erk"
    """How it is spread over the layers: Erdos-Renyi-kernel or alike in all. The paper's choice is not known."""
    interval: Count = 100
    """Optimizer steps between two changes of the mask; a change is a step of its own, which moves no weights."""
    drop: Probability = 0.3
    """Share of a layer's active weights that move in one change; 0.05 is safer for levels above 0.5."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How that share goes on: as it is, or down to zero at the last change. The paper's choice is not known."""
    end: Share = 0.75
    """Share of the training after which the mask stays."""
    accumulate: Count = 1
    """Steps whose dense gradients are averaged for RigL's growth, the one that changes the mask included."""
    exclude: tuple[str, ...] = ("time_embedding", "class_embedding", "augment")
    """Layers that stay dense: those whose name has one of these in it. Biases, norms and embeddings always do."""

    @property
    def on(self) -> bool:
        """Whether weights are masked."""
        return self.method != "dense" and self.level > 0

    @property
    def moves(self) -> bool:
        """Whether the masks change, by a schedule over the whole training."""
        return self.on and self.method != "static"

    @model_validator(mode="after")
    def _accumulates_between_changes(self) -> "Sparsity":
        if self.accumulate > self.interval:
            raise ValueError(
                f"accumulate {self.accumulate} exceeds interval {self.interval}; a gradient counts for one change"
            )
        return self


class Coreset(Section):
    """Training on the best-scored part of the images (Li et al. 2025; instance selection, DeVries et al. 2020)."""

    keep: Share = 1.0
    """Share of the images to keep; 1 is off."""
    score: Literal["gaussian", "ppca", "knn", "moderate", "closest", "random"] = "gaussian"
    """Log-likelihood under the class's Gaussian or its PPCA, minus the distance to the 5th neighbour, the middle band
    of distances to the class's median (Moderate-DS), the closest to it, or chance."""
    features: Literal["inception", "resnet18", "clip", "dinov2", "classifier", "contrastive"] = "inception"
    """The surrogate whose features are scored."""
    weights: FilePath | None = None
    """The surrogate's weight file; none looks in torch's cache and then downloads it."""
    covariance: Literal["ridge", "shrunk"] = "ridge"
    """The Gaussian's: with 1e-5 on its diagonal as in instance selection, or shrunk besides as Ledoit and Wolf (2004)
    do, which a class with fewer images than features needs."""
    per_class: bool | None = None
    """Keep the same share of every class, or of all images together. None: as the score was published, all together for
    `moderate`, whose code sorts all distances at once, and class by class for the others, as in instance selection."""
    side: Literal["high", "low"] = "high"
    """Keep the highest scores or the lowest."""

    @property
    def by_class(self) -> bool:
        """Whether the same share of every class is kept."""
        return self.score != "moderate" if self.per_class is None else self.per_class

    @property
    def on(self) -> bool:
        """Whether images are left out."""
        return self.keep < 1


class Reweighting(Section):
    """Class weights from distributionally robust optimisation (Li et al. 2025), a reconstruction after DoReMi."""

    method: Literal["none", "dro", "group_dro", "random", "inverse"] = "none"
    """None; a proxy's excess loss over a reference; its loss alone; and as controls, DRO's weights shuffled over the
    classes or inverted."""
    enters: Literal["loss", "sampling"] = "loss"
    """Whether weights scale the losses or the chances to be drawn."""
    recipe: FileName = "ddpm"
    """Preset or path of the recipe, without techniques, of reference and proxy, which all trials on a dataset share."""
    kimg: Positive = 1000.0
    """Length of the training of each of the two."""
    reference: FilePath | None = None
    """Folder of a trained model that is the reference, as the paper's is trained before; none trains one on the whole
    training split. Its process has to be that of `recipe`."""
    eta: Positive = 5.0
    """Step of the exponentiated gradient, summed over the run and on excess losses divided by their mean over classes:
    a class with twice the mean's excess throughout ends at e^eta times the weight of an average one, but for the
    smoothing. The paper's is not known, and DoReMi's 1 a step on losses as they are would move nothing: diffusion's
    differ by about 1e-3. Aim at a largest weight of 1.5 to 3 times the smallest; a tiny DDPM on digits gives 1.13
    at 1."""
    smoothing: Probability = 1e-4
    """Share of the uniform distribution that is mixed in at every step."""

    @property
    def on(self) -> bool:
        """Whether classes are weighed."""
        return self.method != "none"

    @property
    def family(self) -> Literal["dro", "group-dro"]:
        """Which proxy's weights the method starts from."""
        return "group-dro" if self.method == "group_dro" else "dro"

    @property
    def trains_reference(self) -> bool:
        """Whether a reference has to be trained."""
        return self.on and self.family == "dro" and self.reference is None
