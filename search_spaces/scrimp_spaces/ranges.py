"""The ranges of a space: which values of a recipe field a sweep may propose."""

import random
from typing import Annotated, Any

from pydantic import Field, model_validator

from scrimp_trainers.recipe.sections import Section

Bounds = tuple[float, float]
Whole = int  # `Range.int` hides the type's own name
WholeBounds = tuple[Whole, Whole]
EXAMPLES = 33
"""Values of a range that are tried on the field before a sweep."""


class Range(Section):
    """The values of one field: exactly one of the kinds, and the condition under which it is searched."""

    uniform: Bounds | None = None
    """Any number between the two bounds."""
    loguniform: Bounds | None = None
    """Any number between the two bounds, evenly over orders of magnitude."""
    int: WholeBounds | None = None
    """Any whole number between the two bounds, both included. What is searched of a field of whole numbers is one of
    these, also where the space says `uniform` or `loguniform`."""
    log: bool = False
    """Whole numbers evenly over orders of magnitude."""
    step: Annotated[Whole, Field(ge=1)] = 1
    """Only multiples of this, as the field asks for."""
    choice: Annotated[list[Any], Field(min_length=2)] | None = None
    """One of these values."""
    when: dict[str, list[Any]] = {}
    """Search the field only where these other searched fields have one of these values."""
    paper: str | None = None
    """The value in the paper that the field is from, for whoever reads the space."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        kinds = [kind for kind in ("uniform", "loguniform", "int", "choice") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a range is one of uniform, loguniform, int, choice; this one has {kinds or 'none'}")

        bounds = self.uniform or self.loguniform or self.int
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the lower bound {bounds[0]} is not below the upper {bounds[1]}")

        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs bounds above 0, not {self.loguniform[0]}")
        if self.log and (not self.int or self.int[0] < 1):
            raise ValueError("log needs an int range of numbers above 0")
        if self.int and any(bound % self.step for bound in self.int):
            raise ValueError(f"the bounds {list(self.int)} are no multiples of {self.step}")
        return self

    def draw(self, chance: random.Random) -> Any:
        """Return a random value of the range."""
        if self.choice:
            return chance.choice(self.choice)
        if self.int:
            low, high = self.int
            return chance.randrange(low, high + 1, self.step)
        return chance.uniform(*(self.uniform or self.loguniform or (0.0, 0.0)))

    def extremes(self) -> list[Any]:
        """Return the values that the field must accept for the whole range to be valid."""
        return list(self.choice or self.uniform or self.loguniform or self.int or ())

    def allows(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.choice:
            return value in self.choice

        low, high = self.uniform or self.loguniform or self.int or (0, 0)
        if self.int and (not isinstance(value, Whole) or value % self.step):
            return False
        return isinstance(value, (float, Whole)) and low <= value <= high

    def examples(self) -> list[Any]:
        """Return values from all over the range: all of them where they are few, else as many as show what it holds."""
        if self.choice:
            return list(self.choice)
        if self.int:
            numbers = range(self.int[0], self.int[1] + 1, self.step)
            if len(numbers) <= EXAMPLES:
                return list(numbers)
            return [numbers[i] for i in _spread(len(numbers))]

        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        inner_shares = [i / (EXAMPLES - 1) for i in range(1, EXAMPLES - 1)]
        if self.loguniform:
            inner = [low * (high / low) ** share for share in inner_shares]
        else:
            inner = [low + (high - low) * share for share in inner_shares]
        return [low, *inner, high]  # the ends as they are, since rounding could leave the range


def _spread(count: int) -> list[int]:
    """Return positions from the first to the last of so many, evenly."""
    return sorted({round(i * (count - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)})
