"""The command line. A command imports what it needs only when it runs, so that `--help` and errors answer at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scrimp_platform.cli.arguments import (
    FILE,
    FOLDER,
    NAME,
    OWN_PARTS,
    STORAGE,
    FiniteNumber,
    Gpus,
    NewTrials,
    parse_numbers,
    reading_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="scrimp")
def scrimp() -> None:
    """Find the cheapest recipe that still trains a good diffusion model."""


@scrimp.command("sweep", context_settings={"allow_extra_args": True})
@click.option(
    "--space", type=NAME, default="quickstart", show_default=True, help="Search space: a name or a YAML file."
)
@click.option("--data", type=NAME, default="digits", show_default=True, help="Folder of a prepared dataset, or digits.")
@click.option(
    "--trials", type=NewTrials(), metavar="N|+N", help="Number of recipes to try; +N adds to those that the sweep has."
)
@click.option("--repeats", type=click.IntRange(1), help="Seeds per leading trial, including that of the search.")
@click.option(
    "--rungs", metavar="KIMG,..", callback=parse_numbers, help="Training lengths at which repeats are scored."
)
@click.option("--name", help="Name of the sweep.  [default: SPACE-DATA]")
@STORAGE
@click.option("--tracking-uri", metavar="URI", help="An MLflow server.  [default: start one]")
@click.option(
    "--warm-start",
    type=FOLDER,
    multiple=True,
    metavar="SWEEP_DIR|all",
    help="Begin with what this earlier sweep found, or all in the storage.",
)
@click.option("--max-gpu-hours", type=FiniteNumber(0, min_open=True), help="Maximum device-hours to spend.")
@click.option(
    "--until-gain", metavar="SHARE", help="End the search once 10 more trials are expected to gain less, such as 0.5%."
)
@click.option(
    "--gpus-per-repeat",
    type=Gpus(),
    metavar="N|auto",
    help="GPUs per repeat; auto: all of a node, one, or a share, whichever is measured to finish most.  [default: all]",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and its cost, and start nothing.")
@click.option("--fresh", is_flag=True, help="Start a new sweep beside an earlier one of this name.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search and all training."
)
@click.pass_context
def sweep_command(context: click.Context, **options: Any) -> None:
    """Search a space on a dataset, repeat the best trials, and recommend one.

    Run the same command again to resume.
    """
    if context.args:
        raise click.UsageError(
            f"{context.args[0]}: belongs to no option; quote values that contain spaces: --data 'my data'"
        )
    from scrimp_platform.plan import SweepOptions
    from scrimp_platform.sweep import run_command

    run_command(SweepOptions(**options))


@scrimp.command()
@click.argument("source", type=NAME)
@click.argument("out", type=FOLDER)
@reading_options
@click.option("--limit", type=click.IntRange(1), help="Training images to keep, drawn at random.")
@click.option("--per-class", type=click.IntRange(1), help="Training images to keep per class.")
@click.option("--holdout", type=FiniteNumber(0), help="Images to hold out: a number, or a fraction below 1.")
@click.option("--reference", type=NAME, metavar="SOURCE", help="Images to score against.  [default: the training set]")
@click.option("--name", help="Name in reports.  [default: that of OUT]")
@click.option("--skip-bad", is_flag=True, help="Skip unusable images; dataset.json lists them.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random choices.")
@click.option(
    "--classifier/--no-classifier",
    default=None,
    help="Train a small CNN to score with, by labels or contrast.  [default: train it; use it if it is useful]",
)
@click.option("--codec", type=click.Choice(["kl", "tiny", "vq"]), help="Also encode the images, to train on latents.")
@click.option("--encoder", type=NAME, metavar="FOLDER|ID", help="Autoencoder of the codec.  [default: sd-vae-ft-mse]")
@OWN_PARTS
def prepare(source: str, out: Path, **options: Any) -> None:
    """Make the dataset OUT from SOURCE.

    SOURCE is a folder, zip or tar of images, or npz, npy, parquet, Arrow or tables of pixels, or CIFAR-10, idx, LSUN
    or WebDataset shards, or the name digits; or pen drawings: Quick, Draw! ndjson, npz as sketch-rnn's, SVG files of
    strokes such as KanjiVG's.
    """
    from scrimp_platform.cli import commands

    commands.prepare(source, out, **options)


@scrimp.command()
@click.argument("data", type=NAME, metavar="DATA|SOURCE")
@click.option("--out", type=FOLDER, metavar="PAGE.html", help="Write it as a page, too, with pictures of each class.")
@click.option("--on", metavar="2x24GB", help="Machines that hours are reckoned for.  [default: those at hand]")
@STORAGE
@reading_options
@OWN_PARTS
def inspect(data: str, out: Path | None, storage: Path, on: str | None, **options: Any) -> None:
    """Show what is in a dataset, or in a source before it is prepared, and advise what to sweep on it.

    Of a SOURCE nothing is written, and the options say how it is read, as in scrimp prepare. The advice has its
    reasons: plain rules about the number, size and labels of the images, and earlier sweeps in the storage.
    """
    from scrimp_platform.cli import commands

    commands.inspect(data, storage, on, out, **options)


@scrimp.command()
@click.argument("recipe", type=NAME)
@click.argument("data", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--kimg",
    type=FiniteNumber(0, min_open=True),
    help="Training length in thousands of images; caps that of reweighting's reference and proxy, too.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the repeat.")
@click.option("--extractor", help="Score the result with this feature extractor.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Number of samples to score.")
@click.option("--rungs", metavar="KIMG,..", callback=parse_numbers, help="Training lengths at which to score, too.")
def train(recipe: str, data: Path, out: Path, **options: Any) -> None:
    """Train RECIPE (a preset or a YAML file) on DATA and write the files to OUT.

    Run the same command again to resume. A finished run is scored with --extractor, and continued with a larger --kimg.
    """
    from scrimp_platform.cli import commands

    commands.train(recipe, data, out, **options)


@scrimp.command()
@click.argument("model", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("-n", "--number", type=click.IntRange(1), default=64, show_default=True, help="Number of images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images per batch.")
@click.option("--caption", multiple=True, help="Caption to draw; several in turn.  [default: some of the training's]")
@OWN_PARTS
def sample(model: Path, out: Path, **options: Any) -> None:
    """Draw images from MODEL; write them to OUT as PNGs and one grid.

    MODEL is the folder of a model, or of a sweep, whose recommended model is taken.
    """
    from scrimp_platform.cli import commands

    commands.sample(model, out, **options)


@scrimp.command()
@click.argument("model", type=FOLDER)
@click.argument("data", type=FOLDER, required=False)
@click.option("--extractor", help="Feature extractor.  [default: inception, or that of the sweep]")
@click.option(
    "--samples", type=click.IntRange(1), help="Number of samples to score.  [default: 50,000, or as the sweep]"
)
@click.option("--weights", type=FILE, help="Weight file of the extractor.")
@click.option("--threshold", type=FiniteNumber(), help="Similarity above which a sample counts as memorised.")
@click.option("--batch-size", type=click.IntRange(1), help="Images per batch.  [default: 256, or as the sweep]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@click.option("--grid", type=FOLDER, help="PNG to write: samples and their nearest training images.")
@OWN_PARTS
def evaluate(model: Path, data: Path | None, **options: Any) -> None:
    """Score MODEL against DATA: fidelity, memorisation and cost.

    MODEL is the folder of a model, or of a sweep: then its recommended model is scored, by default on the sweep's
    dataset and as the sweep scores.
    """
    from scrimp_platform.cli import commands

    commands.evaluate(model, data, **options)


@scrimp.command()
@click.argument("run", type=FOLDER)
@click.argument("data", type=FOLDER)
@click.option(
    "--width",
    "widths",
    metavar="WIDTH,..",
    callback=parse_numbers,
    help="Widths of the average to try, as shares of the training.  [default: 0.03 to 0.2, as the snapshots allow]",
)
@click.option(
    "--guidance", metavar="SCALE,..", callback=parse_numbers, help="Guidance to try.  [default: the recipe's]"
)
@click.option(
    "--steps", metavar="STEPS,..", callback=parse_numbers, help="Sampling steps to try.  [default: the recipe's]"
)
@click.option("--extractor", default="inception", show_default=True, help="Feature extractor.")
@click.option(
    "--samples", type=click.IntRange(1), default=5000, show_default=True, help="Number of samples for each score."
)
@click.option("--weights", type=FILE, help="Weight file of the extractor.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images per batch.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the samples of the choice; the next one is that of the samples of the final score.",
)
@click.option("--model", type=FOLDER, help="Folder to write what was chosen to, as a new model.")
@OWN_PARTS
def tune(run: Path, data: Path, **options: Any) -> None:
    """Choose the EMA width, guidance and sampler steps of RUN's model by its scores against DATA, without training.

    RUN is a finished training with ema.snapshots, or a sweep of such: then it is the typical repeat of the best trial.
    The table of all scores is written to RUN as tuned.json.
    """
    from scrimp_platform.cli import commands

    commands.tune(run, data, **options)


@scrimp.command()
@click.argument("data", type=FOLDER)
@click.option("--features", default="inception", show_default=True, help="Surrogate that extracts the features.")
@click.option("--weights", type=FILE, help="Weight file of the surrogate.")
@click.option("--score", default="gaussian", show_default=True, help="gaussian, ppca, knn, moderate, closest, random.")
@click.option("--covariance", default="ridge", show_default=True, help="For gaussian: ridge or shrunk.")
@click.option("--keep", type=FiniteNumber(), default=0.1, show_default=True, help="Fraction of the images to keep.")
@click.option(
    "--per-class/--global",
    default=None,
    help="Keep this fraction of each class, or of all images.  [default: as the score was published]",
)
@click.option("--side", default="high", show_default=True, help="Keep the high or the low scores.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for --score random.")
@click.option("--out", type=FOLDER, metavar="PNG", help="Picture to write.  [default: beside the list]")
@OWN_PARTS
def score(data: Path, **options: Any) -> None:
    """Score DATA's training images; write a list and a picture of those that a coreset keeps."""
    from scrimp_platform.cli import commands

    commands.score(data, **options)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option(
    "--objective", "objectives", multiple=True, metavar="SCORE:minimize|maximize", help="Rank by this instead."
)
@click.option("--constraint", "constraints", multiple=True, metavar="'SCORE<=LIMIT'", help="Apply this instead.")
def report(sweep: Path, objectives: tuple[str, ...], constraints: tuple[str, ...]) -> None:
    """Write SWEEP's leaderboard and report again from its files, even while it runs.

    With --objective or --constraint, print how the same trials rank by these instead of the space's own. Nothing is
    trained and no file changes.
    """
    from scrimp_platform.cli import commands

    if objectives or constraints:
        commands.rank_by_goals(sweep, objectives, constraints)
    else:
        commands.report(sweep)


@scrimp.command()
@click.argument("sweeps", type=FOLDER, nargs=-1, required=True, metavar="SWEEP..")
def compare(sweeps: tuple[Path, ...]) -> None:
    """Put the winners of sweeps side by side: scores with intervals, costs and settings.

    Scores that were not measured alike (dataset, extractor, number of samples, ..) are shown apart, and it says why.
    """
    from scrimp_platform.cli import commands

    commands.compare(sweeps)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="scrimp, halving, random, qmc, tpe, tpe-halving or gp; may be repeated.  "
    "[default: scrimp, halving, random and tpe]",
)
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="Seeds of each method.")
def replay(sweep: Path, methods: tuple[str, ...], seeds: int) -> None:
    """Tell what other methods would have done on SWEEP's curves: when they find a recipe as good. Nothing is trained.

    SWEEP must be finished. random, qmc, tpe and gp train every recipe to the end; halving is random recipes, stopped as
    SWEEP stops them.
    """
    from scrimp_platform.cli import commands

    commands.replay(sweep, methods, seeds)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option("--tracking-uri", metavar="URI", help="An MLflow server.  [default: that of SWEEP's storage]")
def sync(sweep: Path, tracking_uri: str | None) -> None:
    """Send MLflow everything that it is missing of SWEEP, which must have ended."""
    from scrimp_platform.cli import commands

    commands.sync(sweep, tracking_uri)


@scrimp.command()
@STORAGE
def status(storage: Path) -> None:
    """Print what is running, finished and left to do in the sweeps of a storage folder."""
    from scrimp_platform.cli import commands

    commands.status(storage)


@scrimp.command("set")
@click.argument("sweep", type=FOLDER)
@click.argument("limits", metavar="LIMIT=VALUE...", nargs=-1, required=True)
def set_command(sweep: Path, limits: tuple[str, ...]) -> None:
    """Change limits of SWEEP's budget, also while it runs.

    For example: scrimp set runs/lab-photos budget.trials=40. Limits are budget.trials, budget.repeats,
    budget.max_gpu_hours and budget.until_gain; `none` removes one. The sweep's command keeps what was set, unless its
    own option is changed later.
    """
    from scrimp_platform.cli import commands

    commands.set_limits(sweep, limits)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option("--trial", type=click.IntRange(0), required=True, help="Number of the trial.")
def stop(sweep: Path, trial: int) -> None:
    """Stop a trial of SWEEP for good.

    It is trained no further and gets no more repeats; the scores that it has keep counting.
    """
    from scrimp_platform.cli import commands

    commands.stop(sweep, trial)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
def pause(sweep: Path) -> None:
    """Pause SWEEP until its command is run again.

    It may run on any node that shares the folder. What is trained resumes from its checkpoints.
    """
    from scrimp_platform.cli import commands

    commands.pause(sweep)


@scrimp.command()
@STORAGE
@click.option("--service", is_flag=True, help="Run it as a systemd service, also after a reboot.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1.  [default: 5000, or a free one]")
@click.option("--study", type=FOLDER, metavar="SWEEP", help="Show the search of SWEEP in optuna-dashboard instead.")
def ui(storage: Path, service: bool, port: int | None, study: Path | None) -> None:
    """Serve MLflow for a storage folder until Ctrl-C, and print where its training runs are."""
    if service and (port or study):
        raise click.UsageError("--service: takes neither --port nor --study")
    from scrimp_platform.cli import commands

    if study:
        commands.show_study(study, port)
    else:
        commands.ui(storage, service, port)


@scrimp.command()
@STORAGE
@click.option("--data", type=FOLDER, help="A prepared dataset that every node must be able to read.")
@click.option("--tracking-uri", metavar="URI", help="An MLflow server to try to reach.")
def doctor(storage: Path, data: Path | None, tracking_uri: str | None) -> None:
    """Examine every node that a sweep would run on, and print the faults and how to fix them.

    The exit status is 1 if a fault prevents a sweep.
    """
    from scrimp_platform.cli import commands

    if not commands.doctor(storage, data, tracking_uri):
        sys.exit(1)


@scrimp.command()
@click.argument("file", type=FILE)
def check(file: Path) -> None:
    """Check the parts of your own that FILE defines, as docs/extending.md describes; exit status 1 if one fails.

    FILE is run.
    """
    from scrimp_platform.cli import commands

    if not commands.check(file):
        sys.exit(1)


@scrimp.command("spaces")
@click.argument("name", type=NAME, required=False)
@click.option("--yaml", "as_yaml", is_flag=True, help="Print NAME as YAML, as a template for your own.")
@click.option("--on", "machine", metavar="2x24GB", help="Print what a sweep of NAME takes on such a machine.")
@click.option("--data", type=FOLDER, help="Dataset for --on.  [default: one such as NAME is made for]")
def spaces_command(name: str | None, as_yaml: bool, machine: str | None, data: Path | None) -> None:
    """List the search spaces, or print the space NAME as a table.

    With --on nothing is trained or measured, and no GPU is needed: memory is counted, times are reckoned.
    """
    from scrimp_platform.cli import commands

    if machine and (as_yaml or not name):
        raise click.UsageError("--on takes the NAME of a space, and not --yaml")
    if data and not machine:
        raise click.UsageError("--data is for --on; write a machine, such as --on 2x24GB")
    if name and machine:
        commands.show_forecast(name, machine, data)
    elif name:
        commands.show_space(name, as_yaml)
    else:
        commands.list_spaces()


@scrimp.command("recipes")
@click.argument("name", type=NAME, required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors.")
def recipes_command(name: str | None, schema: bool) -> None:
    """List the presets, or print the recipe NAME as YAML with all its fields."""
    from scrimp_platform.cli import commands

    if schema:
        commands.show_schema()
    elif name:
        from scrimp_trainers.recipe import recipe

        click.echo(recipe.load(name).to_yaml(), nl=False)
    else:
        commands.list_recipes()


def rejoin_values(words: Sequence[str]) -> list[str]:
    """Rejoin option values that contain spaces: `ray submit` drops the quotes, so they arrive split."""
    arguments: list[str] = []
    for word in words:
        follows_value = bool(arguments) and (not arguments[-1].startswith("--") or "=" in arguments[-1])
        if follows_value and not word.startswith("--"):
            arguments[-1] += f" {word}"
        else:
            arguments.append(word)
    return arguments


def main(arguments: list[str] | None = None, command: click.Command = scrimp) -> None:
    """Run a command.

    An expected error prints one line. The exit status is 2 after a user's error, 130 after Ctrl-C, 143 after SIGTERM
    and 1 after the others.
    """
    from scrimp_cluster import proxies, temporary
    from scrimp_platform import interrupt
    from scrimp_platform.storage_loss import StorageLost
    from scrimp_trainers.common.errors import Diverged, UserError
    from scrimp_trainers.common.files import is_disk_full

    interrupt.listen()
    proxies.bypass()
    temporary.shorten(lambda line: click.echo(f"scrimp: {line}", err=True))
    try:
        command.main(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        _exit(error.format_message(), 2)
    except UserError as error:
        _exit(str(error), 2)
    except PermissionError as error:
        _exit(f"{error}; ask its owner, or choose another place", 2)
    except StorageLost as error:
        _exit(str(error), 1)
    except Diverged as error:
        _exit(f"training diverged: {error}", 1)
    except (click.Abort, KeyboardInterrupt) as error:  # click turns KeyboardInterrupt into Abort
        _exit("interrupted; run the same command again to resume", interrupt.exit_status(error.__cause__ or error))
    except Exception as error:
        if not is_disk_full(error):
            raise
        _exit(f"{error}; free some space and run the same command again to resume", 1)


def _exit(message: str, status: int) -> None:
    click.echo(f"scrimp: {' '.join(message.split())}", err=True)
    sys.exit(status)
