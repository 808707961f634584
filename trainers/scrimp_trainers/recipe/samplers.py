"""The samplers' sections: each `kind` is a file in `samplers/`."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, Tag

from scrimp_trainers.recipe.sections import (
    OWN,
    Count,
    NonNegative,
    Positive,
    Probability,
    Section,
    by_kind,
    own_section,
)

Variance = Literal["fixed_small", "fixed_large", "learned"]
"""The variances of DDPM's steps."""


class Sampler(Section):
    """What all samplers have in common. A user's own sampler extends it, and has `sample` and `export`."""

    kind: Any
    """Which sampler."""
    steps: Count = 18
    """Sampling steps."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale; 1 is none."""
    guidance_power: Positive | None = None
    """Let the scale grow from 1 at pure noise to `guidance` by MDT's power-cosine with this power, 4 in MDT, along the
    steps of a chain. None: the same scale at all steps."""
    guidance_channels: Count | None = None
    """Guide the first channels alone, 3 of 4 in MDT; none guides all."""

    @property
    def evaluations(self) -> int:
        """How often the sampler asks the denoiser for one image."""
        return self.steps


class Heun(Sampler):
    """EDM's sampler of second order (Karras et al. 2022, algorithms 1 and 2)."""

    kind: Literal["heun"] = "heun"
    """Which sampler."""
    s_churn: NonNegative = 0.0
    """Stochasticity (S_churn); 0 is deterministic."""
    s_min: NonNegative = 0.0
    """Lowest noise level at which noise is added (S_min)."""
    s_max: Annotated[float, Field(ge=0, allow_inf_nan=True)] = float("inf")
    """Highest noise level at which noise is added (S_max)."""
    s_noise: Positive = 1.0
    """Inflation of the noise that is added (S_noise)."""

    @property
    def needs(self) -> frozenset[str]:
        """It integrates over sigma."""
        return frozenset({"levels that are standard deviations"})

    @property
    def evaluations(self) -> int:
        """Two a step, but for the last."""
        return 2 * self.steps - 1


class Ancestral(Sampler):
    """DDPM's sampler (Ho et al. 2020, algorithm 2), on the whole chain or on evenly spaced steps of it."""

    kind: Literal["ancestral"] = "ancestral"
    """Which sampler."""
    variance: Variance = "fixed_small"
    """Of the noise that a step adds: beta-tilde, the posterior's for one known image, or the larger beta. DDPM's
    published figures are of `fixed_large` on CIFAR-10 and of `fixed_small` elsewhere (Ho et al., section 3.2).
    `learned`: what the network predicts, between the two, with `diffusion.kind: iddpm`."""

    @property
    def needs(self) -> frozenset[str]:
        """It goes from step to step, with variances that may have to be learned."""
        learned = {"learned variances"} if self.variance == "learned" else set[str]()
        return frozenset({"a chain of steps"} | learned)


class DDIM(Sampler):
    """DDIM (Song et al. 2021)."""

    kind: Literal["ddim"] = "ddim"
    """Which sampler."""
    eta: Probability = 0.0
    """Stochasticity: 0 is deterministic, 1 is DDPM's variance."""

    @property
    def needs(self) -> frozenset[str]:
        """It goes from step to step."""
        return frozenset({"a chain of steps"})


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022), for every process."""

    kind: Literal["dpmpp"] = "dpmpp"
    """Which sampler."""


AnySampler = Annotated[
    Annotated[Heun, Tag("heun")]
    | Annotated[Ancestral, Tag("ancestral")]
    | Annotated[DDIM, Tag("ddim")]
    | Annotated[DPMSolver, Tag("dpmpp")]
    | Annotated[SerializeAsAny[Sampler], own_section(Sampler), Tag(OWN)],
    by_kind("heun"),
]
