"""One repeat, from its seed or its last checkpoint to its model. `scrimp train` and a sweep's workers call it."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch

from scrimp_trainers.common import ranks
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.errors import UserError
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
    rung_samples: int | None = None,
    scoring: Scoring | None = None,
    objective: str | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
    checkpoint_seconds: float = 60.0,
    device: torch.device | str | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Generator[MetricsRow, None, None]:
    """Train a repeat, or resume it, and yield its rows of metrics as they are written.

    There is a row at every tick and at every rung. At a rung it also holds the scores, and it is on disk together with
    a checkpoint before it is yielded.

    A resumed repeat first yields the rows of the rungs that it has passed. A finished repeat that was trained without
    scores is scored now if `scoring` is given; one whose recipe only became longer is continued.

    In a process group every rank calls this, and rank 0 writes.

    Parameters
    ----------
    folder
        Where to write recipe.yaml, environments.json, metrics.jsonl, checkpoint/, snapshots/, samples/, samples.png
        and neighbours.png, and model/ at the end.
    rungs_kimg
        When the model is scored. The end of the recipe's training is always a rung.
    rung_samples
        How many samples are scored at rungs before the end; None: as many as there, `scoring.samples`.
    objective, direction
        The score that decides which checkpoint is `checkpoint/best`, which is exported with `training.select: best`.
        Scores of fewer samples than those at the end take no part in that.
    checkpoint_seconds
        Time between checkpoints, in addition to those at rungs; more if one costs more than a fiftieth of it.
    say
        Called with a message if a checkpoint was damaged, or code or libraries have changed since the last attempt.

    Raises
    ------
    UserError
        If the recipe does not fit the dataset, or the folder holds another repeat, or one that was trained for longer.
    Diverged
        If the loss is not finite or has exploded.
    """
    if recipe.training.select == "best" and not (scoring and objective):
        raise UserError("training.select: best chooses among scores; name an extractor, or set it to last")

    # Prepare what the recipe's techniques need: coreset, codec, class weights.
    device = select_device(device)
    prepared = prepare_techniques(recipe, dataset, seed, device, *ranks.rank_and_world())

    # Start, or resume from the last checkpoint.
    options = {"rung_samples": rung_samples, "device": device}
    with closing(Session(recipe, dataset, folder, seed, prepared, scoring, **options)) as session:
        note = session.resume()
        if note:
            say(note)
        rows = session.progress.lines
        yield from [row for row in rows if row.rung is not None]

        # Train; score at each rung.
        steps = session.steps()
        for images, rung in session.due_rows(rungs_kimg):
            session.train_to(images, steps, checkpoint_seconds)
            row = session.metrics_row(rung)
            if rung is not None:
                row = session.score_rung(row)
                row = session.with_best(row, objective, direction)
            session.write_row(row)
            if rung is not None:
                session.save_if_best(row, objective)
                session.save("last")
            with session.pause():
                yield row

        # Score a model that was trained without scores.
        if scoring and not rows[-1].extractor:
            row = session.score_rung(rows[-1])
            row = session.with_best(row, objective, direction)
            session.replace_last_row(row)
            session.save("last")
            with session.pause():
                yield row

        # Export the last model, or on request that of the best rung.
        if recipe.training.select == "best":
            session.export(session.load_best(str(objective)))
        else:
            session.export(rows[-1])
