"""What has to be trained before a recipe is: the reference and the proxy of its class weights. Free of torch."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from scrimp_trainers.recipe.recipe import Recipe, reference_recipe

Kind = Literal["reference", "proxy"]
PROXY_WORK = 4 / 3
"""A step of a proxy also passes through its reference: four passes instead of a training's three."""


@dataclass(frozen=True)
class Need:
    """A training that comes before a recipe's. On one dataset, trainings of the same key are the same."""

    kind: Kind
    key: str
    kimg: float

    @property
    def name(self) -> str:
        """Its kind and key, as in `reference-1f3a90bc`."""
        return f"{self.kind}-{self.key}"


def reference_equivalent(kind: Kind, kimg: float) -> float:
    """Return the length of a reference's training, in kimg, that takes as long."""
    return kimg * PROXY_WORK if kind == "proxy" else kimg


def needs(recipe: Recipe, seed: int) -> list[Need]:
    """Return what a repeat of this seed needs, in the order in which it is trained."""
    settings = recipe.reweighting
    if not settings.on:
        return []

    reference = reference_recipe(settings).to_yaml()
    # A random coreset depends on the seed; the others are the same for all repeats.
    coreset = recipe.coreset.model_dump(mode="json") if recipe.coreset.on else None
    coreset_seed = seed if recipe.coreset.on and recipe.coreset.score == "random" else None
    model = str(settings.reference)
    proxy = [reference, model, settings.family, settings.eta, settings.smoothing, coreset, coreset_seed]

    trained = [Need("reference", _key(reference), settings.kimg)] if settings.trains_reference else []
    return [*trained, Need("proxy", _key(proxy), settings.kimg)]


def _key(depends_on: Any) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:8]
