"""Constraints on costs that are counted before training: ratios become numbers, what no recipe can keep is refused."""

from collections.abc import Callable
from typing import Any

from scrimp_platform.report import formatting
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.recipe.recipe import Recipe

KNOWN = ("parameters", "nonzero_parameters", "train_flops", "sample_flops")
DECISIVE = ("network", "sparsity", "patches", "codec", "conditioning", "mafp", "sampler", "training", "diffusion")
"""Sections of a recipe on which these costs depend."""

Costs = Callable[[Recipe], dict[str, float] | None]


def resolve(space: Space, manifest: Manifest) -> Space:
    """Return the space with its relative constraints as numbers for this dataset.

    Raises
    ------
    UserError
        If a constraint is relative to what is not counted, or no recipe of the space can keep it on this dataset.
    """
    for name, bound in space.constraints.items():
        if bound.relative and name not in KNOWN:
            raise UserError(f"constraints.{name}: a ratio needs a cost that is counted: {', '.join(KNOWN)}")
    if not any(name in KNOWN for name in space.constraints):
        return space

    from scrimp_trainers.training import expected_cost  # it imports torch

    known: dict[str, dict[str, float] | None] = {}

    def costs(recipe: Recipe) -> dict[str, float] | None:
        key = recipe.to_yaml()
        if key not in known:
            known[key] = expected_cost.costs(recipe, manifest, space.scoring.samples)
        return known[key]

    base = costs(space.base())
    if base is None:
        relative = [name for name, bound in space.constraints.items() if bound.relative]
        if relative:
            raise UserError(f"constraints.{relative[0]}: only the hub knows this autoencoder's latents; name a folder")
        return space

    bounds = {
        name: bound.resolved(base[name]) if bound.relative else bound for name, bound in space.constraints.items()
    }
    resolved = space.model_copy(update={"constraints": bounds})
    for name in [name for name in KNOWN if name in bounds]:
        _refuse_unkeepable(resolved, name, costs, manifest)
    return resolved


def _refuse_unkeepable(space: Space, name: str, costs: Costs, manifest: Manifest) -> None:
    bound = space.constraints[name]
    for side, sign, extreme in (("max", 1, "least"), ("min", -1, "most")):
        limit = getattr(bound, side)
        if limit is None:
            continue
        value, values = _extreme(space, name, sign, costs)
        if sign * value > sign * limit:
            given = ", ".join(f"{path} {formatting.number(setting)}" for path, setting in values.items())
            raise UserError(
                f"constraints.{name}: no recipe of this space keeps {formatting.limit(bound)} "
                f"on dataset {manifest.name}; the {extreme} is {value:.4g}, with {given or 'the base recipe'}"
            )


def _extreme(space: Space, name: str, sign: int, costs: Costs) -> tuple[float, dict[str, Any]]:
    """Return the lowest (sign 1) or highest cost that the space holds, and the values of fields that give it.

    One field after the other takes its best value, twice around, since costs rise or fall with each field by itself.
    """
    base = space.base()
    best: dict[str, Any] = {}

    def cost(values: dict[str, Any]) -> float:
        try:
            known = costs(base.replace(values))
        except UserError:  # a contradiction, which is not proposed
            known = None
        return sign * known[name] if known else float("inf")

    lowest = cost(best)
    for _ in range(2):
        for path, span in space.search.items():
            if path.partition(".")[0] not in DECISIVE or path not in space.active({**_usual(space), **best}):
                continue
            for value in span.extremes():
                tried = {**best, path: value}
                if (spent := cost(tried)) < lowest:
                    lowest, best = spent, tried
    return sign * lowest, best


def _usual(space: Space) -> dict[str, Any]:
    """Return a value for each field that may be a condition of another: that which makes most fields searched."""
    return {other: allowed[0] for span in space.search.values() for other, allowed in span.when.items()}
