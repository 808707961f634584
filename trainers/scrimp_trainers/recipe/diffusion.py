"""The diffusion processes' sections: each `kind` is a file in `diffusion/`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, Tag

from scrimp_trainers.recipe.sections import OWN, NonNegative, Positive, Probability, Section, by_kind, own_section


class Diffusion(Section):
    """What all processes have in common. A user's own process extends it, and has `build`."""

    kind: Any
    """Which diffusion process."""

    @property
    def most_steps(self) -> int | None:
        """Most steps in which it can be sampled; None if there is no limit."""
        return None


class EDM(Diffusion):
    """EDM (Karras et al. 2022): preconditioned denoiser, log-normal noise levels, table 1."""

    offers: ClassVar[frozenset[str]] = frozenset(
        {"levels that are standard deviations", "an estimate of the clean image"}
    )

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


class Chain(Diffusion):
    """A discrete chain of `timesteps` steps with a fixed variance schedule: what all kinds of DDPM have in common."""

    offers: ClassVar[frozenset[str]] = frozenset({"a chain of steps"})

    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """Length of the chain, T."""
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """Variance schedule: linear (Ho et al.), its square root linear, which latent and Stable Diffusion call "linear"
    (Rombach et al. 2022), or squared cosine (Nichol and Dhariwal 2021)."""
    beta_start: Probability = 1e-4
    """First variance of the linear schedules."""
    beta_end: Probability = 0.02
    """Last variance of the linear schedules."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    """What the network predicts: the noise, or the velocity of Salimans and Ho (2022)."""

    @property
    def most_steps(self) -> int:
        """Those of the chain."""
        return self.timesteps


class DDPM(Chain):
    """DDPM (Ho et al. 2020)."""

    kind: Literal["ddpm"] = "ddpm"
    """Which diffusion process."""


class IDDPM(Chain):
    """Improved DDPM (Nichol and Dhariwal 2021): the network also predicts the variances of the reverse steps."""

    offers: ClassVar[frozenset[str]] = Chain.offers | {"learned variances"}

    kind: Literal["iddpm"] = "iddpm"
    """Which diffusion process."""
    vlb_weight: NonNegative = 0.001
    """Factor on the variational bound in the loss, lambda of the hybrid loss (section 3.1)."""

    @property
    def needs(self) -> frozenset[str]:
        """The network has an output for the variances."""
        return frozenset({"an output for variances"})


AnyDiffusion = Annotated[
    Annotated[EDM, Tag("edm")]
    | Annotated[DDPM, Tag("ddpm")]
    | Annotated[IDDPM, Tag("iddpm")]
    | Annotated[SerializeAsAny[Diffusion], own_section(Diffusion), Tag(OWN)],
    by_kind("edm"),
]
