"""One repeat, from its seed or its last checkpoint to its model: what `scrimp train` and a sweep's workers run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from scrimp_trainers.common import ranks
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.training.session import Session


def train_repeat(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    seed: int,
    *,
    rungs_kimg: Sequence[float],
    scoring: Scoring | None = None,
    objective: str | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
    checkpoint_seconds: float = 60.0,
    device: torch.device | str | None = None,
) -> Iterator[MetricsRow]:
    """Train a repeat, or go on with it, and yield its lines as they are written.

    A line is due at every tick and at every rung; at a rung it holds the scores and, as `rung`, its kimg, and is on
    disk with a checkpoint before it is yielded. A repeat that is continued first yields again the lines of the rungs
    behind it; where a checkpoint was damaged, or other code or libraries go on, the very first line says so as
    `note`, and holds nothing else. A finished repeat that was trained without scores is scored if `scoring` asks
    for it; one whose recipe is longer now, and otherwise the same, is continued. In a process group every rank runs
    this, and rank 0 writes.

    Parameters
    ----------
    folder
        Gets recipe.yaml, environments.json, metrics.jsonl, checkpoint/, samples/, samples.png and neighbours.png, and
        model/ at the end.
    rungs_kimg
        Where the model is scored. The end of the recipe's training always is one.
    objective, direction
        The score by which `checkpoint/best` is kept.
    checkpoint_seconds
        Time between checkpoints, beside those at rungs.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, or the folder holds another repeat, or one that was trained for longer.
    Diverged
        If the loss is no longer finite or has exploded.
    """
    # Prepare what the recipe's techniques need: coreset, codec, class weights.
    device = select_device(device)
    prepared = prepare_techniques(recipe, dataset, seed, device, *ranks.rank_and_world())

    # Start, or resume from the last checkpoint.
    repeat = Session(recipe, dataset, folder, seed, prepared, scoring, device=device)
    if note := repeat.resume():
        yield {"note": note}
    known = repeat.progress.lines
    yield from [line for line in known if "rung" in line]

    # Train; score at each rung.
    steps = repeat.steps()
    for images, rung in repeat.marks(rungs_kimg):
        repeat.train_to(images, steps, checkpoint_seconds)
        line = repeat.line()
        if rung is not None:
            line |= {"rung": float(rung)} | repeat.score(rung)
            line |= repeat.best(line, objective, direction)
        repeat.write(line)
        if rung is not None:
            repeat.keep_best(line, objective)
            repeat.save("last")
        with repeat.pause():
            yield line

    # Score, if nobody has; and export.
    if scoring and "extractor" not in known[-1]:  # it was trained without scores
        line = known[-1] | repeat.score(known[-1]["rung"])
        line |= repeat.best(line, objective, direction)
        repeat.rewrite_last(line)
        repeat.save("last")
        with repeat.pause():
            yield line

    repeat.export(known[-1])
