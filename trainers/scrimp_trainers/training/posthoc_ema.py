"""Averages of the weights whose width is chosen after training: post-hoc EMA (Karras et al. 2024, EDM2, section 3).

A power-function average at time t, with the exponent gamma, is the mean of the weights theta over the training so far
with the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1). Its width is the standard deviation of the profile as a
share of t. Training tracks the averages of two widths and keeps snapshots of them (`snapshots.py`). A combination of
snapshots is an average, too, whose profile is the same combination of theirs. The one whose profile is nearest to that
of another width takes its place.

Weights are constant between two steps, and there the products of the steps' decays are integrals of the profile. So all
of this is exact but for the difference of two profiles, which is known before a weight is read.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from scrimp_trainers.common import foreach
from scrimp_trainers.common.errors import UserError

Array = NDArray[np.floating]

WIDTHS = (0.05, 0.10)
"""Of the averages that training tracks, as in EDM2."""
WIDEST = 1 / math.sqrt(12)
"""The width of the plain mean over the whole training, whose exponent is 0."""
LARGEST_ERROR = 0.01
"""Averages that may differ by more are refused, as a share of the range through which a weight has moved."""
CELLS = 20_000
"""Of the sum that stands for an integral over the training."""


@functools.cache
def exponent(width: float) -> float:
    """Return gamma of a width, the root of width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1.

    Raises
    ------
    UserError
        If the width is not above 0 and at most that of the plain mean.
    """
    if not 0 < width <= WIDEST:
        raise UserError(f"width {width:g}: must be above 0 and at most {WIDEST:.3f}, the width of a plain mean")
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(0.0, float(roots.real.max()))


def decay(gamma: float, before: float, after: float) -> float:
    """Return by what an average is multiplied in a step: (1 - 1/t)^(gamma + 1) of step t, and 0 in the first."""
    return (before / after) ** (gamma + 1)


@dataclass(frozen=True)
class Average:
    """A power-function average: of which width, and when."""

    width: float
    time: float
    """Images seen."""


def products(ones: Sequence[Average], others: Sequence[Average]) -> Array:
    """Return the inner products of profiles [ones, others]: the integral of p q (appendix C of EDM2).

    It is (a + 1) (b + 1) / (a + b + 1) min(s, t)^(a + b + 1) / (s^(a + 1) t^(b + 1)), of exponents a, b and times s, t.
    """
    a = np.array([exponent(one.width) for one in ones])[:, None]
    b = np.array([exponent(other.width) for other in others])[None]
    s = np.array([one.time for one in ones], dtype=float)[:, None]
    t = np.array([other.time for other in others], dtype=float)[None]

    first = np.minimum(s, t)
    at_most_one = (first / s) ** (a + 1) * (first / t) ** (b + 1)  # powers of images alone would overflow
    return (a + 1) * (b + 1) / (a + b + 1) * at_most_one / first


def coefficients(kept: Sequence[Average], wanted: Average) -> Array:
    """Return the factors on kept averages whose sum has the nearest profile, in the sense of least squares.

    They add up to 1, which EDM2 does not ask for: what training has not changed stays as it is.
    """
    scale = wanted.time
    gram = scale * products(kept, kept)
    target = scale * products(kept, [wanted])[:, 0]

    # The minimum under the condition, with its Lagrange multiplier in the last row.
    count = len(kept)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = gram
    system[count, count] = 0
    solution = np.linalg.lstsq(system, np.append(target, 1), rcond=None)[0]
    return solution[:count]


def error_bound(kept: Sequence[Average], wanted: Average, factors: Array) -> float:
    """Return by how much a combination may differ from the average, as a share of the range in which a weight moved.

    Both profiles integrate to 1, so that is half the integral of their absolute difference: no weights differ by more.
    """
    centres = (np.arange(CELLS) + 0.5) / CELLS * wanted.time
    difference = -profile(wanted, centres)
    for average, factor in zip(kept, factors, strict=True):
        difference += factor * profile(average, centres)
    return float(np.abs(difference).mean() * wanted.time / 2)


def profile(average: Average, times: Array) -> Array:
    """Return the profile of an average at these times, whose integral is 1."""
    gamma = exponent(average.width)
    share = times / average.time
    return np.where(share <= 1, (gamma + 1) / average.time * np.minimum(share, 1) ** gamma, 0)


@dataclass
class PowerAverages:
    """The power-function averages of the weights that are trained, in training."""

    averages: dict[float, dict[str, Tensor]]
    """By width and name; the names are in the order of the network's parameters."""

    @classmethod
    def of(cls, network: nn.Module) -> Self:
        """Return those before the first step, which will take its weights whole."""
        trained = {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}
        return cls({width: {name: weight.clone() for name, weight in trained.items()} for width in WIDTHS})

    def update(self, weights: list[Tensor], before: int, after: int) -> None:
        """Take in the weights after a step, before and after which so many images have been seen."""
        for width, averages in self.averages.items():
            foreach.lerp_(list(averages.values()), weights, 1 - decay(exponent(width), before, after))

    def tensors(self) -> dict[str, Tensor]:
        """Return what checkpoints and snapshots keep, named `<width>/<parameter>`."""
        return {
            tensor_name(width, name): average
            for width, averages in self.averages.items()
            for name, average in averages.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])


def tensor_name(width: float, parameter: str) -> str:
    """Name an averaged parameter in a file."""
    return f"{width:g}/{parameter}"
