"""Constraints on costs that are known before training.

Ratios become numbers, and what no recipe of the space can keep is refused before the sweep begins. A proposal that
breaks one is not trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

from scrimp_platform.report import formatting
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.recipe.recipe import Recipe

EXPECTED_COSTS = ("parameters", "nonzero_parameters", "train_flops", "sample_flops")
COST_SECTIONS = (
    "network",
    "sparsity",
    "patches",
    "masking",
    "codec",
    "conditioning",
    "mafp",
    "sampler",
    "training",
    "diffusion",
)
"""Sections of a recipe on which these costs depend."""

Costs = Callable[[Recipe], dict[str, float] | None]


def known_costs(space: Space, manifest: Manifest, recipe: Recipe) -> dict[str, float]:
    """Return what a recipe costs on a dataset, by name, as far as the space limits it and it is known before training.

    Nothing is known if the codec is not available here.
    """
    names = [name for name in space.constraints if name in EXPECTED_COSTS]
    if not names:
        return {}

    from scrimp_trainers.training import expected_cost  # it imports torch

    costs = expected_cost.expected_costs(recipe, manifest, space.scoring.samples) or {}
    return {name: costs[name] for name in names if name in costs}


def broken_constraint(space: Space, costs: Mapping[str, float]) -> str:
    """Return in words which constraint these costs break; empty if they keep all."""
    for name, cost in costs.items():
        bound = space.constraints[name]
        if bound.excess(cost) > 0:
            return f"its {name} would be {cost:.4g}, and the space asks for {formatting.bound(bound)}"
    return ""


def resolve(space: Space, manifest: Manifest) -> Space:
    """Return the space with its relative constraints as numbers for this dataset.

    Raises
    ------
    UserError
        If a constraint is a ratio of another score, or no recipe of the space can keep it on this dataset.
    """
    relative = [name for name, bound in space.constraints.items() if bound.relative]
    for name in relative:
        if name not in EXPECTED_COSTS:
            raise UserError(f"constraints.{name}: a ratio needs one of {', '.join(EXPECTED_COSTS)}")
    if not any(name in EXPECTED_COSTS for name in space.constraints):
        return space

    from scrimp_trainers.training import expected_cost  # it imports torch

    cache: dict[str, dict[str, float] | None] = {}

    def costs(recipe: Recipe) -> dict[str, float] | None:
        key = recipe.to_yaml()
        if key not in cache:
            cache[key] = expected_cost.expected_costs(recipe, manifest, space.scoring.samples)
        return cache[key]

    base = costs(space.base())
    if base is None:
        if relative:
            raise UserError(f"constraints.{relative[0]}: this autoencoder must be a local folder for that; name one")
        return space

    bounds = space.constraints | {name: space.constraints[name].resolved(base[name]) for name in relative}
    resolved = space.model_copy(update={"constraints": bounds})
    for name in filter(bounds.__contains__, EXPECTED_COSTS):
        _require_satisfiable(resolved, name, costs, manifest)
    return resolved


def _require_satisfiable(space: Space, name: str, costs: Costs, manifest: Manifest) -> None:
    bound = space.constraints[name]
    for side, sign, extreme in (("max", 1, "least"), ("min", -1, "most")):
        limit = getattr(bound, side)
        if limit is None:
            continue
        value, values = _extreme(space, name, sign, costs)
        if sign * value > sign * limit:
            settings = ", ".join(f"{path} {formatting.number(setting)}" for path, setting in values.items())
            raise UserError(
                f"constraints.{name}: no recipe of this space keeps {formatting.bound(bound)} "
                f"on dataset {manifest.name}; the {extreme} is {value:.4g}, with {settings or 'the base recipe'}"
            )


def _extreme(space: Space, name: str, sign: int, costs: Costs) -> tuple[float, dict[str, Any]]:
    """Return the lowest (sign 1) or highest (sign -1) cost in the space, and the values of fields that give it.

    Coordinate descent, twice around: costs are monotonic in each field by itself.
    """
    base = space.base()
    best: dict[str, Any] = {}

    def cost(values: dict[str, Any]) -> float:
        try:
            expected = costs(base.replace(values))
        except UserError:  # a contradiction, which is not proposed
            expected = None
        return sign * expected[name] if expected else float("inf")

    lowest = cost(best)
    for _ in range(2):
        for path, span in space.search.items():
            if path.partition(".")[0] not in COST_SECTIONS or path not in space.active({**_satisfied(space), **best}):
                continue
            for value in span.extremes():
                candidate = {**best, path: value}
                candidate_cost = cost(candidate)
                if candidate_cost < lowest:
                    lowest = candidate_cost
                    best = candidate
    return sign * lowest, best


def _satisfied(space: Space) -> dict[str, Any]:
    """Return, for each field on which conditions depend, a value with which the last of these conditions holds."""
    return {other: allowed[0] for span in space.search.values() for other, allowed in span.when.items()}
