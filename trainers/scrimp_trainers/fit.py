"""Check whether a recipe fits a dataset, before anything starts and without importing torch."""

from pathlib import Path

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.data.manifest import CAPTIONED, RESIDENT, Manifest
from scrimp_trainers.data.modalities.modality import has_mirror, modality_of, train_bytes
from scrimp_trainers.metrics.extractors.extractor import facts
from scrimp_trainers.metrics.names import fault_of_own
from scrimp_trainers.recipe.recipe import Recipe, reference_recipe
from scrimp_trainers.recipe.sections import Conditioning
from scrimp_trainers.recipe.techniques import Coreset, Patches, Reweighting


def check_fit(recipe: Recipe, manifest: Manifest) -> None:
    """Require that the recipe can be trained on the dataset.

    Raises
    ------
    UserError
        If it cannot. The message names the field of the recipe, what the dataset has instead, and what to do.
    """
    if recipe.codec.modality not in manifest.kinds:
        raise UserError(
            f"codec.kind: {recipe.codec.kind!r} is for {recipe.codec.modality}, but dataset {manifest.name} is of "
            f"{manifest.modality}; use a codec for them"
        )
    _check_conditioning(recipe.conditioning, manifest)
    if recipe.training.flip and not has_mirror(modality_of(manifest)):
        raise UserError(
            f"training.flip: {manifest.modality} of dataset {manifest.name} have no mirror images; turn it off"
        )

    # Techniques that run before training.
    check_class_weights(recipe.reweighting, manifest)
    if recipe.reweighting.on:
        samples_by_weight = recipe.reweighting.enters == "sampling"
        if samples_by_weight and not recipe.codec.caches and train_bytes(manifest) > RESIDENT:
            raise UserError(
                f"reweighting.enters: dataset {manifest.name} is too large to draw its images by weight, more than "
                f"{RESIDENT >> 30} GiB; use `loss`"
            )
        check_fit(reference_recipe(recipe.reweighting), manifest)
    _check_coreset(recipe.coreset, manifest)

    # The sides of the images, or latents, that the network is trained on.
    shape = parts.module("codecs", recipe.codec.part).shape(recipe.codec, modality_of(manifest).shape)
    if not shape:
        return  # the codec is not available locally
    side = shape[-1]
    multiple = recipe.network.multiple
    if side % multiple:
        raise UserError(
            f"dataset {manifest.name}: its size {side} is not a multiple of {multiple}, as network.kind "
            f"{recipe.network.kind} needs; prepare it with such a --size"
        )
    _check_patches(recipe.patches, side, multiple)
    if recipe.ood.on and any(size % 2 for size in step_sides(recipe.patches, side)):
        raise UserError(f"ood.weight: a jigsaw of four needs an even side, not {side}; set it to 0 or change the size")


def _check_conditioning(settings: Conditioning, manifest: Manifest) -> None:
    """Require the labels or captions that the network takes, and the text encoder if it is in a folder."""
    if settings.classes and not manifest.classes:
        raise UserError(f"dataset {manifest.name} has no classes, but the recipe sets conditioning.classes")
    if settings.text and CAPTIONED not in manifest.kinds:
        raise UserError(f"dataset {manifest.name} has no captions, but the recipe sets conditioning.text")
    if settings.text and Path(settings.text).is_absolute():
        text_files.of_setting(settings.text)  # it is no name of the hub's


def _check_coreset(settings: Coreset, manifest: Manifest) -> None:
    """Require that the dataset has the network of its own by which the coreset is scored."""
    own = facts(settings.features).own
    if settings.on and settings.score != "random" and own:
        fault = fault_of_own(own, manifest)
        if fault:
            raise UserError(f"coreset.features: {fault}")


def check_class_weights(settings: Reweighting, manifest: Manifest) -> None:
    """Require that the class weights can be computed for this dataset.

    Raises
    ------
    UserError
        If the dataset has fewer than two classes, the reference's recipe cannot be loaded or uses a technique, or a
        reference trained before is missing or of no use.
    """
    if not settings.on:
        return
    if len(manifest.classes or []) < 2:
        raise UserError(
            f"reweighting.method: dataset {manifest.name} has no classes to weigh; "
            "prepare it from labelled images or use `none`"
        )
    reference_recipe(settings)
    if settings.reference is None:
        return
    if settings.method == "group_dro":
        raise UserError("reweighting.reference: group_dro has no reference; leave it out, or use dro")
    if not (settings.reference / "recipe.yaml").is_file():
        raise UserError(
            f"reweighting.reference: {settings.reference} is not a model (it has no recipe.yaml); name the model "
            "folder of a repeat"
        )


def step_sides(patches: Patches, side: int) -> list[int]:
    """Return the sides that a training step may have: the whole image's `side`, and those of the patches."""
    return [side, *(round(share * side) for share in patches.sizes if patches.on)]


def _check_patches(patches: Patches, side: int, multiple: int) -> None:
    """Require patch sizes that the network can process."""
    for fraction, size in zip(patches.sizes, step_sides(patches, side)[1:], strict=False):
        if not size or size % multiple:
            nearest = min(max(round(size / multiple), 1) * multiple, side)
            raise UserError(
                f"patches.sizes: {fraction:g} of {side} pixels are {size}, but this network takes multiples of "
                f"{multiple}; the nearest is {nearest / side:.6g}"
            )
