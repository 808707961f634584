"""How diffusers samples as a sampler of ours does: what an exported model says of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


@dataclass(frozen=True)
class Exported:
    """A scheduler of diffusers, and how to use it."""

    scheduler: "SchedulerMixin"
    """Makes the same steps."""
    steps: int
    """Their number."""
    note: str = "the recipe's steps"
    """A remark on them, for the model card."""
    arguments: str = ""
    """What its `step` is given besides, as code."""
    result: str = ""
    """The line of code that takes the images from the last step, where its `prev_sample` is not what is meant."""
    takes_variances: bool = False
    """Whether its `step` also takes the variances that a network returns."""
    pipeline: str | None = None
    """The pipeline that samples an unconditional network in this way; none if there is no such pipeline."""
