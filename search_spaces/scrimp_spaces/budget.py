"""The budget of a space: trials, rungs, repeats, hours."""

import itertools
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from scrimp_trainers.recipe.scoring import SMALLEST
from scrimp_trainers.recipe.sections import Count, Positive, Section


def _share(value: Any) -> Any:
    """Read a percentage, `0.5%`, as the share that it is."""
    if isinstance(value, str) and value.endswith("%"):
        return float(value.removesuffix("%")) / 100
    return value


class Budget(Section):
    """How much a sweep may try and spend; it ends at whichever limit comes first."""

    trials: Count | None = 20
    """Recipes to propose; null: as many as `max_gpu_hours` allows."""
    rungs_kimg: Annotated[tuple[Positive, ...], Field(min_length=1)] = (250.0, 1000.0, 4000.0)
    """Marks, in thousands of images, at which a repeat is scored; the last is the length of the training."""
    rung_shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    """In place of `rungs_kimg`: the marks as shares of `training.kimg` of the recipe with its `override`. From them
    `rungs_kimg` follows when the space is loaded."""
    rung_samples: Annotated[int, Field(ge=SMALLEST)] | None = None
    """Samples that are scored at rungs below the last; null: `scoring.samples`, as at the last. Scores of another
    number of samples are other scores, which are compared with each other only."""
    reduction: Annotated[float, Field(ge=1)] = 3.0
    """Successive halving: of the trials at a rung, the best 1/reduction go on; 1 stops none."""
    leaders: Count = 3
    """Trials that enter the race."""
    repeats: Count = 5
    """Seeds that a trial of the race gets at most: the one by which the search chose it, and fresh ones for its mean.
    Of arms all are fresh."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts at a repeat that failed through no fault of its recipe."""
    patience_minutes: Positive = 30.0
    """Time without progress after which a repeat is taken to hang: its process is ended, and it is tried again."""
    max_gpu_hours: Positive | None = None
    """Device-hours of training and scoring (of CPU workers where there is no GPU)."""
    race_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of `max_gpu_hours` that is kept for the race."""
    until_gain: Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)] | None = None
    """The search ends once ten more trials are expected to improve the best score by less than this share of it, such
    as `0.5%`."""
    max_hours: Positive | None = None
    """Hours on the clock, for each run of the sweep's command."""

    @model_validator(mode="before")
    @classmethod
    def _rungs_or_shares(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "rungs_kimg" in tree and tree.get("rung_shares") is not None:
            raise ValueError("rungs are in kimg or shares of the training, so set rungs_kimg or rung_shares, not both")
        return tree

    @model_validator(mode="after")
    def _shares_rise(self) -> "Budget":
        if any(low >= high for low, high in itertools.pairwise(self.rung_shares or ())):
            raise ValueError(f"rung_shares must rise, not {list(self.rung_shares or ())}")
        return self

    @model_validator(mode="after")
    def _rungs_rise(self) -> "Budget":
        if any(low >= high for low, high in itertools.pairwise(self.rungs_kimg)):
            raise ValueError(f"rungs_kimg must rise, not {list(self.rungs_kimg)}")
        return self

    @model_validator(mode="after")
    def _ends(self) -> "Budget":
        if self.trials is None and self.max_gpu_hours is None:
            raise ValueError("without a number of trials, the budget needs max_gpu_hours")
        return self
