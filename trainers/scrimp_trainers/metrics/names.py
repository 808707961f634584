"""How a model is scored, and which names its scores bear.

`fid`, `kid` and the like mean Inception-v3 through torch-fidelity and nothing else. Over another extractor the same
formulas bear its name: `fd_classifier`, `kd_dinov2`.
"""

import pkgutil
import re
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import CAPTIONED, Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.metrics import families
from scrimp_trainers.metrics.extractors.extractor import facts
from scrimp_trainers.recipe.scoring import SMALLEST, Builtin, Extractor, Scoring


def named(score: str, extractor: Extractor) -> str:
    """Name a score over an extractor: `fd` is `fid` over inception, `fd_dinov2` over dinov2."""
    own = facts(extractor).score_names
    if own is not None:
        quantity, *rest = score.split("_")
        return "_".join([own.get(quantity, quantity), *rest])
    score, is_deviation, _ = score.partition("_std")
    suffix = extractor.replace(":", "_")  # of a user's own, my_parts:Edges
    return f"{score}_{suffix}{is_deviation}"


def fidelity_names(extractor: Extractor) -> list[str]:
    """Names of the scores against the reference set that this extractor always gives."""
    scores = ["fd", "kd", "kd_std", "isc", "precision", "recall"]
    if not facts(extractor).logits:
        scores.remove("isc")
    return [named(score, extractor) for score in scores]


FIDELITY: dict[Extractor, list[str]] = {extractor: fidelity_names(extractor) for extractor in get_args(Builtin)}
"""The scores against the reference set that each extractor of Scrimp's gives."""


PIXELS = "pixel_copied_fraction"
"""The score that no extractor has a part in."""


_SCORE = re.compile(r"(.*?)(_holdout|_real|_class_\w+)?")
"""A score, and whether it is that of held-out images, of reference images or of a class."""


def memorisation_names(extractor: Extractor) -> list[str]:
    """Names of the scores against the training set; `<name>_holdout` is the same for held-out images.

    Those of `vitg14` and `sscd`, which are a paper's, bear their names; of the others the first is ours.
    """
    suffix = f"_{extractor}" if facts(extractor).names_memorisation else ""
    return [f"memorized_fraction{suffix}", f"similarity_mean{suffix}", PIXELS]


COST = [
    "kimg",
    "seconds",
    "device_hours",
    "parameters",
    "nonzero_parameters",
    "train_flops",
    "sample_flops",
]
"""What a repeat costs."""

CLASS_SMALLEST = 50
"""Fewest samples and reference images of every class for class-wise scores."""


def score_names(scoring: Scoring) -> list[str]:
    """Names of the scores that such a scoring gives, without the held-out controls and those of classes.

    With several extractors each of them is in full.
    """
    if scoring.further:
        names = [in_full(name, each.extractor) for each in scoring.each for name in _names_of_one(each)]
        return list(dict.fromkeys(names))
    return _names_of_one(scoring)


def in_full(name: str, extractor: Extractor) -> str:
    """Return a score's name with its extractor, as `memorized_fraction_inception_holdout`, if it is not in it already.

    Only `pixel_copied_fraction` is the same for all.
    """
    score, kind = _SCORE.fullmatch(name).groups("")  # type: ignore[union-attr]
    suffix = "_" + extractor.replace(":", "_")
    return name if score == PIXELS or suffix in score else f"{score}{suffix}{kind}"


def _names_of_one(scoring: Scoring) -> list[str]:
    """Return the names of scores that the first extractor gives by itself."""
    further = [name for kind in scoring.also for name in family(kind).names(scoring.extractor)]
    return [*fidelity_names(scoring.extractor), *memorisation_names(scoring.extractor), *further]


def family(kind: str) -> Any:
    """Return the module, or a user's own class, of further scores of this name.

    It has `names(extractor)`, which costs no import of torch, and `scores(compared)`, which returns their values.

    Raises
    ------
    UserError
        If there is none.
    """
    if kind not in _families() and not parts.is_own(kind):
        raise UserError(f"scoring.also: there are no scores {kind!r}; use {', '.join(_families())}")
    return parts.module("metrics.families", kind)


def needs(scoring: Scoring, what: str) -> bool:
    """Whether a further score needs something: HOLDOUT images, STATISTICS of items, or CAPTIONS of samples."""
    return any(getattr(family(kind), f"NEEDS_{what}", False) for kind in scoring.also)


def _families() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(families.__path__)]


def class_name(extractor: Extractor, label: int | None = None) -> str:
    """Name of the Fréchet distance within a class, `fid_class_3`, or of their mean, `fid_class_mean`."""
    return f"{named('fd', extractor)}_class_{'mean' if label is None else label}"


def real_name(extractor: Extractor, which: str) -> str:
    """Name of the Fréchet distance of real images: `fid_real` of reference images, `fid_holdout` of held-out ones."""
    return f"{named('fd', extractor)}_{which}"


def class_mean(scoring: Scoring) -> list[str]:
    """Names of the mean Fréchet distance within a class, one an extractor."""
    if scoring.further:
        return [in_full(class_name(each.extractor), each.extractor) for each in scoring.each]
    return [class_name(scoring.extractor)]


def class_wise(scoring: Scoring, manifest: Manifest) -> bool:
    """Whether a class-conditional model can be scored by class: each class needs `CLASS_SMALLEST` images."""
    counts = manifest.splits[manifest.reference].per_class or []
    samples = scoring.samples // len(counts) if counts else 0
    return min([samples, *counts]) >= CLASS_SMALLEST


def check_scoring(scoring: Scoring, manifest: Manifest) -> None:
    """Refuse scores that this dataset cannot have.

    Raises
    ------
    UserError
        If it has no classifier although one is asked for, or too few images to compare with.
    """
    for other in scoring.further:
        check_scoring(other, manifest)

    own = facts(scoring.extractor).own
    if own:
        fault = fault_of_own(own, manifest)
        if fault:
            raise UserError(f"extractor {scoring.extractor}: {fault}")
        if scoring.weights is not None:
            raise UserError(f"weights {scoring.weights}: the {own} is the dataset's own; leave `weights` out")
    for kind in scoring.also:
        _check_family(kind, scoring.extractor, manifest)
    count = manifest.splits[manifest.reference].count
    if count < SMALLEST:
        raise UserError(
            f"dataset {manifest.name}: {count} reference images are too few to score; {SMALLEST} are needed"
        )


def fault_of_own(own: Literal["classifier", "encoder"], manifest: Manifest) -> str:
    """Return why a dataset's own network cannot be used, and what to do; empty if it can."""
    dataset = f"dataset {manifest.name}"
    if own == "classifier":
        if manifest.classifier is None:
            other = "contrastive" if manifest.encoder else "inception"
            return (
                f"{dataset} has no classifier, because it has no labels or was prepared without one; prepare it again "
                f"with labels, or use {other}"
            )
        if not manifest.classifier.usable:
            return (
                f"that of {dataset} is no better than always naming the largest class; use inception, or prepare the "
                "dataset with --classifier to use it all the same"
            )
        return ""
    if manifest.encoder is None:
        other = "classifier" if manifest.classifier else "inception"
        return f"{dataset} has no contrastive encoder, which datasets without labels get; use {other}"
    if manifest.encoder.unseen:
        return f"that of {dataset} does not see {' and '.join(manifest.encoder.unseen)}; use inception"
    return ""


def _check_family(kind: str, extractor: Extractor, manifest: Manifest) -> None:
    """Refuse further scores for which this dataset, or this extractor, lacks something."""
    part = family(kind)
    if getattr(part, "NEEDS_HOLDOUT", False) and "holdout" not in manifest.splits:
        raise UserError(
            f"scoring.also {kind}: dataset {manifest.name} has no held-out images; prepare it with --holdout"
        )
    if getattr(part, "NEEDS_STATISTICS", False) and not hasattr(modality_of(manifest), "statistics"):
        raise UserError(f"scoring.also {kind}: is not for {manifest.modality} as in dataset {manifest.name}")
    if not getattr(part, "NEEDS_CAPTIONS", False):
        return
    if CAPTIONED not in manifest.kinds:
        raise UserError(f"scoring.also {kind}: dataset {manifest.name} has no captions; leave it out")
    if not facts(extractor).reads_captions:
        raise UserError(f"scoring.also {kind}: extractor {extractor} reads no captions; use clip")


def check_classes(names: Collection[str], scoring: Scoring, manifest: Manifest, conditional: bool) -> None:
    """Refuse objectives and constraints on class-wise scores that this dataset, or this model, cannot have.

    Parameters
    ----------
    conditional
        Whether the model is class-conditional.

    Raises
    ------
    UserError
        If one of the names is a class-wise score, and there would be none.
    """
    name = next((name for name in class_mean(scoring) if name in names), None)
    if name is None:
        return
    if not conditional:
        raise UserError(f"{name}: needs a class-conditional model; set conditioning.classes")
    if not class_wise(scoring, manifest):
        classes = len(manifest.classes or [])
        raise UserError(
            f"{name}: needs {CLASS_SMALLEST} samples and {CLASS_SMALLEST} reference images of each of the "
            f"{classes} classes of dataset {manifest.name}; score {CLASS_SMALLEST * classes} samples or take "
            f"{score_names(scoring)[0]}"
        )


def scores_captions(scoring: Scoring, captioned: bool) -> bool:
    """Whether a score needs the captions of samples.

    Raises
    ------
    UserError
        If the model is not `captioned`: its samples are drawn of none.
    """
    asked = any(needs(each, "CAPTIONS") for each in scoring.each)
    if asked and not captioned:
        raise UserError("scoring.also clip_score: needs samples of captions; set conditioning.text, or leave it out")
    return asked


def require_objectives(names: Iterable[str], scoring: Scoring) -> None:
    """Refuse objectives and constraints that no scored repeat would ever report.

    Raises
    ------
    UserError
        If one is another extractor's score (`fid` without `inception`), or nothing that is measured.
    """
    own = [*score_names(scoring), *class_mean(scoring)]
    for name in names:
        full = [in_full(name, each.extractor) for each in scoring.each]
        if name not in own and scoring.further and set(full) & set(own):
            raise UserError(
                f"{name}: several extractors score here; name it in full: {' or '.join(n for n in full if n in own)}"
            )
        others = [ext for ext, scores in FIDELITY.items() if name in scores or name == class_name(ext)]
        if name in own or name in COST or name == "loss":
            continue
        if others:
            raise UserError(
                f"{name}: is measured with extractor {others[0]}, but this dataset is scored with "
                f"{scoring.extractors}; use {own[0]}, or extractor {others[0]}"
            )
        for kind in _families():
            if name in family(kind).names(scoring.extractor):
                raise UserError(f"{name}: is not measured unless asked for; set scoring.also to [{kind}]")
        raise UserError(f"{name}: no such score; there are {', '.join([*own, *COST, 'loss'])}")
