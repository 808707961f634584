"""The sections of a recipe that every training run has: process, network, optimizer, length, sampler."""

import os.path
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
FileName = Annotated[str, AfterValidator(os.path.expanduser)]
FilePath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class EDM(Section):
    """EDM (Karras et al. 2022): preconditioned denoiser, log-normal noise levels, table 1."""

    kind: Literal["edm"] = "edm"
    """Which diffusion process."""
    sigma_data: Positive = 0.5
    """Standard deviation of the data that the preconditioning assumes, in units of images scaled to [-1, 1]."""
    p_mean: Annotated[float, Field(ge=-10, le=10)] = -1.2
    """Mean of ln(sigma) in training."""
    p_std: Positive = 1.2
    """Standard deviation of ln(sigma) in training."""
    sigma_min: Positive = 0.002
    """Lowest noise level of the sampler."""
    sigma_max: Positive = 80.0
    """Highest noise level of the sampler."""
    rho: Positive = 7.0
    """Exponent of the sampler's time grid (eq. 5)."""


class DDPM(Section):
    """DDPM (Ho et al. 2020): a discrete chain of `timesteps` steps with a fixed variance schedule."""

    kind: Literal["ddpm"]
    """Which diffusion process."""
    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """Length of the chain, T."""
    betas: Literal["linear", "cosine"] = "linear"
    """Variance schedule: linear (Ho et al.) or squared cosine (Nichol and Dhariwal 2021)."""
    beta_start: Probability = 1e-4
    """First variance of the linear schedule."""
    beta_end: Probability = 0.02
    """Last variance of the linear schedule."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    """What the network predicts: the noise, or the velocity of Salimans and Ho (2022)."""


class Network(Section):
    """A U-Net of diffusers (`UNet2DModel`)."""

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


class Conditioning(Section):
    """Whether the network is told the class of an image."""

    classes: bool = False
    """Train on class labels; the dataset must have them."""
    label_drop: Probability = 0.0
    """Probability with which a label is hidden in training, for classifier-free guidance."""


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


class EMA(Section):
    """Exponential moving average of the weights: what is sampled, scored and exported."""

    halflife_kimg: NonNegative = 500.0
    """Half-life in thousands of images; 0 takes the raw weights."""
    rampup_ratio: Annotated[float, Field(gt=0)] | None = 0.05
    """Half-life is at most this share of the images seen so far; none for no ramp-up."""


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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network; weights and losses stay fp32. On a processor fp16 is computed as fp32."""
    loss_scale: Positive = 1.0
    """Factor on the loss before the backward pass, undone in the gradients; keeps fp16 gradients from vanishing."""
    compile: bool = False
    """Compile the network with `torch.compile`."""


class Sampler(Section):
    """How images are drawn from the trained model."""

    kind: Literal["heun", "ancestral", "ddim"] = "heun"
    """Heun is EDM's second-order sampler (NFE = 2 steps - 1); ancestral and DDIM go with DDPM."""
    steps: Count = 18
    """Sampling steps."""
    s_churn: NonNegative = 0.0
    """Stochasticity of Heun (S_churn); 0 is deterministic."""
    s_min: NonNegative = 0.0
    """Lowest noise level at which Heun adds noise (S_min)."""
    s_max: Annotated[float, Field(ge=0, allow_inf_nan=True)] = float("inf")
    """Highest noise level at which Heun adds noise (S_max)."""
    s_noise: Positive = 1.0
    """Inflation of the noise that Heun adds (S_noise)."""
    eta: Probability = 0.0
    """Stochasticity of DDIM: 0 is deterministic, 1 is DDPM's variance."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale; 1 is none."""
