"""The constraints of a space: limits of scores that a trial must keep."""

from pydantic import model_validator

from scrimp_trainers.recipe.sections import Positive, Section


class Bound(Section):
    """A limit that a trial must keep to be eligible."""

    max: float | None = None
    """Largest value allowed."""
    min: float | None = None
    """Smallest value allowed."""
    max_ratio: Positive | None = None
    """Largest value allowed, as a multiple of what the base recipe costs on the sweep's dataset; the plan turns it into
    `max`."""
    min_ratio: Positive | None = None
    """Smallest value allowed, likewise."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Bound":
        if all(value is None for value in (self.max, self.min, self.max_ratio, self.min_ratio)):
            raise ValueError("a constraint needs max, min, max_ratio or min_ratio")
        return self

    @property
    def relative(self) -> bool:
        """Whether a limit is a multiple of what the base recipe costs."""
        return self.max_ratio is not None or self.min_ratio is not None

    def resolved(self, cost: float) -> "Bound":
        """Return the bound with its ratios as limits, given the base recipe's cost."""
        limits: dict[str, float] = {}
        if self.max_ratio is not None:
            limits["max"] = self.max_ratio * cost
        if self.min_ratio is not None:
            limits["min"] = self.min_ratio * cost
        return self.model_copy(update=limits)

    def excess(self, value: float) -> float:
        """By which share of the limit a value breaks it; 0 or less where it is kept. A limit of 0 counts as 1."""
        above = float("-inf")
        below = float("-inf")
        if self.max is not None:
            above = (value - self.max) / (abs(self.max) or 1.0)
        if self.min is not None:
            below = (self.min - value) / (abs(self.min) or 1.0)
        return max(above, below)
