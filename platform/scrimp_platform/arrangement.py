"""How many GPUs a repeat takes with `--gpus-per-repeat auto`: so many that a node trains most in an hour.

Scoring is left out: samples are drawn as many at once as fit, which fills a GPU, whichever way repeats share it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SHARES = (0.5, 0.25)
"""Shares of a GPU that a repeat may take. Ray counts these exactly."""
LEAST_GAIN = 1.05
"""How many times as much an arrangement must train as one with fewer repeats at once, which is simpler."""


@dataclass(frozen=True)
class Arrangement:
    """A number of GPUs for each repeat, and what a node trains in an hour that way."""

    gpus: float
    """GPUs of a repeat; below 1 the share of one."""
    kimg_an_hour: float = 0.0
    """Thousands of images that all repeats of the node together train on in an hour; 0 if it was not measured."""
    problem: str = ""
    """Why it was not."""


@dataclass(frozen=True)
class Choice:
    """The arrangement of a sweep, and those that were measured for it."""

    node: str
    """Where they were measured."""
    arrangements: tuple[Arrangement, ...]

    @property
    def best(self) -> Arrangement | None:
        """The arrangement to take; None if none could be measured."""
        return choose(self.arrangements)

    def to_json(self) -> dict[str, Any]:
        """Return it as `sweep.json` stores it, with the number of GPUs that was chosen."""
        chosen = self.best
        return {"gpus": chosen.gpus if chosen else None, **asdict(self)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Choice":
        """Return what `to_json` was called on."""
        return cls(saved["node"], tuple(Arrangement(**each) for each in saved["arrangements"]))


def candidates(gpus: int) -> list[float]:
    """Return the GPUs that a repeat may take on a node, beginning with the fewest repeats at once: all, one, shares."""
    return [*sorted({gpus, 1}, reverse=True), *SHARES]


def choose(arrangements: Sequence[Arrangement]) -> Arrangement | None:
    """Return the arrangement that trains most, or one with fewer repeats at once that trains almost as much.

    None if none was measured.
    """
    best = None
    for each in sorted(arrangements, key=lambda each: -each.gpus):
        if each.problem:
            continue
        if best is None or each.kimg_an_hour > LEAST_GAIN * best.kimg_an_hour:
            best = each
    return best


def name(gpus: float) -> str:
    """Name a number of GPUs, or a share of one: `2 GPUs`, `1/4 GPU`."""
    if gpus < 1:
        return f"1/{round(1 / gpus)} GPU"
    return f"{gpus:g} GPU{'s' if gpus > 1 else ''}"
