"""The recipe of reweighting's reference and proxy, without torch: a mistake in it answers before anything starts."""

from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.errors import UserError
from scrimp_trainers.recipe import Recipe, load
from scrimp_trainers.techniques.settings import Reweighting


def check(settings: Reweighting, manifest: Manifest) -> None:
    """Refuse class weights that this dataset or this recipe cannot have.

    Raises
    ------
    UserError
        If the dataset has no labels or one class alone, or the recipe cannot be loaded or has a technique.
    """
    if not settings.on:
        return
    if len(manifest.classes or []) < 2:
        raise UserError(
            f"reweighting.method: dataset {manifest.name} has no classes to weigh; "
            "prepare it from labelled images or use `none`"
        )
    recipe_of(settings)


def recipe_of(settings: Reweighting) -> Recipe:
    """Return the recipe by which reference and proxy are trained: told classes or not, as it says.

    Raises
    ------
    UserError
        If it cannot be loaded, or has a technique: the two are trained without any.
    """
    recipe = load(settings.recipe)
    techniques = [name for name in Recipe.model_fields if getattr(getattr(recipe, name), "on", False)]
    if techniques:
        raise UserError(
            f"reweighting.recipe {settings.recipe}: has {', '.join(techniques)}; reference and proxy are trained "
            "without techniques, name a recipe without them"
        )
    return recipe.replace({"about": "", "training.kimg": settings.kimg})
