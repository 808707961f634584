"""EMA width, guidance and sampler steps of a finished training, chosen after it: `scrimp tune`.

None of them needs another training. Every combination is scored by one set of samples, and the best one of these by
another set, as a score by which something was chosen is optimistic.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_platform import store
from scrimp_platform.model import Model, require_model
from scrimp_platform.operations import Evaluation, ReportProgress
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring

if TYPE_CHECKING:
    from scrimp_trainers.training.snapshots import Snapshots

USUAL_WIDTHS = (0.03, 0.05, 0.07, 0.10, 0.14, 0.20)
"""Those that are tried by default, as far as the snapshots allow."""
SHOWN_CAPTIONS = 64
"""Captions that a new model keeps."""


@dataclass(frozen=True)
class Setting:
    """What is chosen."""

    width: float | None
    """Of the average of the weights; None: the average that the training made by itself."""
    guidance: float
    steps: int

    def describe(self) -> str:
        """Return it in words."""
        average = "the average as trained" if self.width is None else f"width {self.width:g}"
        return f"{average}, guidance {self.guidance:g}, {self.steps} steps"


@dataclass(frozen=True)
class Candidate:
    """A setting and its score by the samples of the choice."""

    setting: Setting
    nfe: int
    score: float


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    model: Path
    """The model that was tuned."""
    score: str
    """The name of the score by which was chosen; lower is better."""
    candidates: tuple[Candidate, ...]
    chosen: Setting
    values: dict[str, Any]
    """The scores of what was chosen, by samples that had no part in the choice."""
    values_before: dict[str, Any]
    """The scores of the model as it was, by the same samples."""


def tune(
    run: Path,
    data: Path,
    scoring: Scoring,
    *,
    widths: Sequence[float] | None = None,
    guidance: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
    seed: int = 0,
    model: Path | None = None,
    device: str | None = None,
    progress: ReportProgress | None = None,
) -> Tuned:
    """Score every combination of width, guidance and steps, and score the best one by samples of `seed + 1`.

    The table of all is written into the training's folder, and what was chosen as a new model into the folder `model`.

    Parameters
    ----------
    run
        The folder of a finished training, or of a sweep: there the typical repeat of its best trial is tuned.
    widths, guidance, steps
        What is tried. By default `USUAL_WIDTHS`, and the recipe's own guidance and steps. The average that the training
        made by itself is always tried, too.

    Raises
    ------
    UserError
        If the training is not finished or has no snapshots, a width cannot be made of these, or a value is not allowed.
    """
    folder = training(run)
    if model and model.exists():
        raise UserError(f"--model {model}: exists already; choose another folder")
    from scrimp_trainers.training.snapshots import Snapshots
    from scrimp_trainers.training.state import count_steps

    length = recipes.read(folder / "model" / "recipe.yaml").training
    snapshots = Snapshots.find(folder, count_steps(length) * length.batch_size)
    if widths is None:
        widths = [width for width in USUAL_WIDTHS if snapshots.can_make(width)]
    for width in widths:
        snapshots.require(width)

    before = Model.load(folder / "model", device)
    own = Setting(None, before.recipe.sampler.guidance, before.recipe.sampler.steps)
    grid = itertools.product([None, *widths], guidance or [own.guidance], steps or [own.steps])
    settings = [Setting(width, scale, _whole(count)) for width, scale, count in grid]
    recipe_of = {setting: _recipe(before.recipe, setting) for setting in settings}

    # Choose by one set of samples.
    evaluation = Evaluation.open(before, data, scoring)
    score = names.fidelity_names(scoring.extractor)[0]
    if scoring.further:
        score = names.in_full(score, scoring.extractor)
    weights = _Weights(before, snapshots)
    sets = len(recipe_of) + 2
    candidates: list[Candidate] = []
    for place, (setting, recipe) in enumerate(recipe_of.items()):
        part = _part(progress, place, sets, scoring.samples)
        values, _ = evaluation.score(weights.model(setting, recipe), seed, part)
        candidates.append(Candidate(setting, recipe.nfe, float(values[score])))
    best = min(candidates, key=lambda candidate: (_finite(candidate.score), candidate.nfe))
    if not math.isfinite(best.score):
        raise UserError(f"{folder}: {score} is not finite with any of the settings; nothing can be chosen by it")

    # Score that, and the model as it was, by another.
    part = _part(progress, sets - 2, sets, scoring.samples)
    values_before, _ = evaluation.score(weights.model(own, before.recipe), seed + 1, part)
    part = _part(progress, sets - 1, sets, scoring.samples)
    chosen = weights.model(best.setting, recipe_of[best.setting])
    values, _ = evaluation.score(chosen, seed + 1, part)
    tuned = Tuned(folder / "model", score, tuple(candidates), best.setting, values, values_before)
    _write(folder / store.TUNED_FILE, tuned, scoring, data, seed, length.kimg)
    if model:
        _export(model, chosen, tuned, data)
    return tuned


def training(run: Path) -> Path:
    """Return the folder of the training that is meant, which has to be finished."""
    from scrimp_platform import recommended

    if recommended.is_sweep(run):
        return training(recommended.find(SweepFolder(run)).files.path)
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: neither a training (no recipe.yaml) nor a sweep (no {store.SWEEP_FILE})")
    if not (run / "model").is_dir():
        raise UserError(f"{run}: has no model/ yet; finish the training first")
    require_model(run / "model")
    return run


def _whole(steps: float) -> int:
    if steps != int(steps):
        raise UserError(f"steps {steps:g}: not a whole number")
    return int(steps)


def _finite(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _recipe(recipe: Recipe, setting: Setting) -> Recipe:
    return recipe.replace({"sampler.guidance": setting.guidance, "sampler.steps": setting.steps})


class _Weights:
    """A model's network, whose weights are exchanged for those of other widths."""

    def __init__(self, model: Model, snapshots: "Snapshots") -> None:
        self._model = model
        self._snapshots = snapshots
        self._own = {name: weight.detach().cpu().clone() for name, weight in model.network.named_parameters()}
        self._width: float | None = None

    def model(self, setting: Setting, recipe: Recipe) -> Model:
        """Return the model with a setting; the one that was returned before has then the same weights."""
        from scrimp_trainers.training.snapshots import put

        if setting.width != self._width:
            self._put_own()
            self._width = setting.width
            if setting.width is not None:
                average = self._snapshots.average(setting.width)
                put(average, self._model.network, recipe, self._snapshots.repeat)
        return replace(self._model, recipe=recipe)

    def _put_own(self) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self._model.network.named_parameters():
                weight.copy_(self._own[name])


def _part(progress: ReportProgress | None, place: int, sets: int, samples: int) -> ReportProgress | None:
    """Return what one of several sets of samples reports to, so that all of them together advance from 0 to 1."""
    if progress is None:
        return None
    return lambda done, _: progress(place * samples + done, sets * samples)


def _write(file: Path, tuned: Tuned, scoring: Scoring, data: Path, seed: int, kimg: float) -> None:
    candidates = [asdict(own.setting) | {"nfe": own.nfe, tuned.score: own.score} for own in tuned.candidates]
    store.write_json(
        file,
        {
            "chosen": asdict(tuned.chosen),
            "chosen_by": {"score": tuned.score, "seed": seed},
            "scored_with_seed": seed + 1,
            "scores": tuned.values,
            "scores_before": tuned.values_before,
            "scoring": scoring.model_dump(mode="json"),
            "dataset": str(data),
            "kimg": kimg,
            "candidates": candidates,
        },
    )


def _export(folder: Path, model: Model, tuned: Tuned, data: Path) -> None:
    from scrimp_trainers.data.manifest import load_manifest
    from scrimp_trainers.export import export_model

    width = {} if tuned.chosen.width is None else {"ema_width": tuned.chosen.width}
    how = f"width, guidance and steps are the best of {len(tuned.candidates)} by {tuned.score} of other samples"
    captions: Sequence[str] = getattr(model.conditioner, "captions", ())
    scores = tuned.values | width | {"tuned": how}
    export_model(folder, model.network, model.recipe, load_manifest(data), scores, captions[:SHOWN_CAPTIONS])
