"""Whether a recipe fits a dataset: what can be known before anything starts, and without torch."""

from scrimp_trainers.codecs import pretrained
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import RESIDENT, Manifest
from scrimp_trainers.recipe.recipe import Recipe, reference_recipe
from scrimp_trainers.recipe.techniques import Patches, Reweighting


def check_fit(recipe: Recipe, facts: Manifest) -> None:
    """Refuse a dataset on which the recipe cannot be trained.

    Raises
    ------
    UserError
        Names the field of the recipe, what the dataset has instead, and what to do.
    """
    if recipe.conditioning.classes and not facts.classes:
        raise UserError(f"dataset {facts.name} has no classes, but the recipe sets conditioning.classes")
    check_class_weights(recipe.reweighting, facts)
    by_chance = recipe.reweighting.on and recipe.reweighting.enters == "sampling"
    if by_chance and not recipe.codec.on and facts.train_bytes > RESIDENT:
        raise UserError(
            f"reweighting.enters: dataset {facts.name} is too large to draw its images by chance, more than "
            f"{RESIDENT >> 30} GiB; use `loss`"
        )
    if recipe.reweighting.on:
        check_fit(reference_recipe(recipe.reweighting), facts)
    scored = recipe.coreset.on and recipe.coreset.score != "random"
    if scored and recipe.coreset.features == "classifier" and not facts.classifier:
        raise UserError(f"coreset.features: dataset {facts.name} has no classifier; use another surrogate")
    if scored and recipe.coreset.features == "classifier" and facts.classifier and not facts.classifier.usable:
        raise UserError(
            f"coreset.features: the classifier of dataset {facts.name} is no better than always naming the largest "
            "class; use another surrogate, or prepare the dataset with --classifier to use it all the same"
        )
    latents = pretrained.latent_shape(recipe.codec, facts.size) if recipe.codec.on else None
    if recipe.codec.on and not latents:
        return  # the hub knows
    side = latents[1] if latents else facts.size
    multiple = recipe.network.multiple
    if side % multiple:
        raise UserError(
            f"dataset {facts.name}: its size {side} is not a multiple of {multiple}, as network.kind "
            f"{recipe.network.kind} needs; prepare it with a --size that is"
        )
    _check_parts(recipe.patches, side, multiple)
    if recipe.ood.on and any(size % 2 for size in step_sides(recipe.patches, side)):
        raise UserError(f"ood.weight: a jigsaw of four needs an even side, not {side}; set it to 0 or change the size")


def check_class_weights(settings: Reweighting, manifest: Manifest) -> None:
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
    reference_recipe(settings)


def step_sides(patches: Patches, side: int) -> list[int]:
    """Return the sides in pixels, of images of `side` pixels, that a training step may have."""
    return [side, *(round(share * side) for share in patches.sizes if patches.on)]


def _check_parts(patches: Patches, side: int, multiple: int) -> None:
    for share, size in zip(patches.sizes, step_sides(patches, side)[1:], strict=False):
        if not size or size % multiple:
            nearest = min(max(round(size / multiple), 1) * multiple, side)
            raise UserError(
                f"patches.sizes: {share:g} of {side} pixels are {size}, but this network takes multiples of "
                f"{multiple}; the nearest is {nearest / side:.6g}"
            )
