"""What the smaller commands do; `cli.py` names their arguments, `sweep.py` has the large one."""

from pathlib import Path
from typing import Any

import click

from scrimp_platform import terminal
from scrimp_trainers import recipe as recipe_files
from scrimp_trainers.data import manifest
from scrimp_trainers.errors import UserError


def train(
    recipe: str, data: Path, out: Path, kimg: float | None, seed: int, extractor: str | None, samples: int
) -> None:
    """Train one repeat without Ray."""
    the_recipe = recipe_files.load(recipe)
    if kimg:
        the_recipe = the_recipe.replace({"training.kimg": kimg})
    facts = manifest.load(data)
    scoring = _scoring(extractor, facts, samples=samples) if extractor else None
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import run

    total = the_recipe.training.kimg
    line: dict[str, Any] = {}
    with terminal.progress("kimg") as report:
        lines = run(the_recipe, open_dataset(data), out, seed, rungs_kimg=[total], scoring=scoring)
        for line in lines:
            report(round(line["kimg"]), round(total))
    _print_scores(line)
    click.echo(f"model in {out / 'model'}")


def sample(model: Path, out: Path, number: int, seed: int, steps: int | None, batch_size: int) -> None:
    """Draw images from a model as PNGs and a grid."""
    _require_model(model)
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    from scrimp_trainers import sample as sampling
    from scrimp_trainers.export import load_model

    loaded = load_model(model)
    recipe = loaded.recipe.replace({"sampler.steps": steps}) if steps else loaded.recipe
    with terminal.progress() as report:
        batches = sampling.generate(loaded, recipe, number, seed=seed, batch_size=batch_size)
        sampling.save_pngs(_counted(batches, number, report), out)


def _counted(batches, number, report):
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        report(done, number)
