"""How diffusers samples as a sampler of ours does: what an exported model says of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

SCHEDULED = """x = torch.randn(n, {shape}) * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps.to(x.device):
        {output}
        step = scheduler.step(output, t, x{arguments})
        x = step.prev_sample
"""
"""Takes the steps of a scheduler."""


@dataclass(frozen=True)
class Exported:
    """A scheduler of diffusers, and how to use it."""

    scheduler: "SchedulerMixin"
    """Makes the same steps."""
    steps: int
    """Their number."""
    caveat: str = ""
    """How what is drawn differs from what Scrimp draws, for the model card; empty if it does not."""
    arguments: str = ""
    """What its `step` is given besides, as code."""
    result: str = ""
    """The line of code that takes the images from the last step, where its `prev_sample` is not what is meant."""
    takes_variances: bool = False
    """Whether its `step` also takes the variances that a network returns."""
    pipeline: str | None = None
    """The pipeline that samples an unconditional network in this way; none if there is no such pipeline."""
    network_input: str = "scheduler.scale_model_input(x, t)"
    """The code that makes the network's input of x."""
    loop: str = SCHEDULED
    """The code that draws x, with places for its `shape`, and for the lines that set `output` to the network's, which
    are indented by four columns fewer than the place is."""


def chain_caveat(timesteps: int, steps: int) -> str:
    """Say how the steps that diffusers takes along a chain differ from ours: not at all, if they divide it evenly."""
    if timesteps % steps == 0:
        return ""
    return f"at slightly other steps than Scrimp's, since {steps} does not divide the {timesteps} of the chain"
