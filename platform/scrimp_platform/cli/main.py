"""The command line. Every command imports what it needs only when it runs: `--help` and mistakes answer at once."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="scrimp")
def scrimp() -> None:
    """Find the cheapest recipe that still trains a good diffusion model."""


def _rungs(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 250,1000,4000") from None


class _Path(click.Path):
    """A path in which `~` is the home folder, also where the shell leaves it alone, as in `--storage=~/runs`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(Path(value).expanduser()), param, ctx)


class _Name(click.ParamType[str]):
    """A name, or a path as above."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(Path(value).expanduser()) if value.startswith("~") else value


class _Number(click.FloatRange):
    """A finite number: `nan` lies in every range and `inf` in most."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


FOLDER = _Path(path_type=Path)
FILE = _Path(path_type=Path, exists=True)
NAME = _Name()
STORAGE = click.option(
    "--storage",
    type=FOLDER,
    envvar="SCRIMP_STORAGE",
    show_envvar=True,
    default=Path("runs"),
    show_default=True,
    help="Folder of all sweeps.",
)


@scrimp.command("sweep", context_settings={"allow_extra_args": True})
@click.option(
    "--space", type=NAME, default="quickstart", show_default=True, help="What to search: a name or a YAML file."
)
@click.option("--data", type=NAME, default="digits", show_default=True, help="A prepared dataset, or digits.")
@click.option("--trials", type=click.IntRange(1), help="Recipes to try.")
@click.option("--repeats", type=click.IntRange(1), help="Seeds that a leader gets, the one of the search included.")
@click.option("--rungs", metavar="KIMG,..", callback=_rungs, help="Marks at which repeats are scored.")
@click.option("--name", help="Name of the sweep.  [default: SPACE-DATA]")
@STORAGE
@click.option("--tracking-uri", metavar="URI", help="An MLflow server.  [default: one of its own]")
@click.option("--warm-start", type=FILE, multiple=True, metavar="SWEEP_DIR", help="Try this sweep's leaders first.")
@click.option("--max-gpu-hours", type=_Number(0, min_open=True), help="Device-hours to spend at most.")
@click.option("--gpus-per-repeat", type=click.IntRange(1), help="GPUs of one repeat.  [default: all of a node]")
@click.option("--dry-run", is_flag=True, help="Print the plan and its cost; start nothing.")
@click.option("--fresh", is_flag=True, help="Start anew beside an earlier sweep of this name.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything.")
@click.pass_context
def sweep_command(context: click.Context, **options: Any) -> None:
    """Search a space on a dataset, repeat the leaders, report the winner. The same command resumes."""
    if context.args:
        raise click.UsageError(f"{context.args[0]}: belongs to no option; quote what holds spaces: --data 'my data'")
    from scrimp_platform.plan import SweepOptions
    from scrimp_platform.sweep import sweep

    sweep(SweepOptions(**options))


def _load_own_parts(_context: click.Context, _option: click.Parameter, files: tuple[Path, ...]) -> None:
    from scrimp_trainers.common import parts

    parts.load_files(files)


OWN_PARTS = click.option(
    "--parts",
    type=FILE,
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_load_own_parts,
    help="A Python file with own parts that are needed; it is run.",
)


@scrimp.command()
@click.argument("source", type=NAME)
@click.argument("out", type=FOLDER)
@click.option("--size", type=click.IntRange(1), help="Height and width: centre crop, then Lanczos.")
@click.option("--limit", type=click.IntRange(1), help="Training images to keep, drawn at random.")
@click.option("--per-class", type=click.IntRange(1), help="Training images of each class to keep.")
@click.option("--holdout", type=_Number(0), help="Images never trained on: a count, or a share below 1.")
@click.option(
    "--labels", type=NAME, metavar="none|folder|FILE", help="Where classes come from.  [default: what is found]"
)
@click.option("--flat", is_flag=True, help="Take all images, at whatever depth, without classes of folders.")
@click.option(
    "--frames", type=click.Choice(["first", "all"]), default="first", help="Pages or frames of a file to take."
)
@click.option("--reference", type=NAME, metavar="SOURCE", help="Images to compare with.  [default: the training set]")
@click.option("--name", help="Name in reports.  [default: OUT's]")
@click.option(
    "--near",
    type=_Number(0, 255),
    default=8,
    show_default=True,
    help="Largest mean difference, of 255, of images that are kept on one side of the split; 0: equal ones alone.",
)
@click.option("--depth16", type=click.Choice(["scale"]), help="Scale 16-bit images to 8 bits: 65,535 becomes 255.")
@click.option("--background", metavar="COLOUR", help="Put transparent images on this: a name or #rrggbb.")
@click.option("--max-pixels", type=click.IntRange(1), help="Pixels that an image may have.  [default: 89,478,485]")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used; dataset.json lists them.")
@click.option("--reader", metavar="FILE:CLASS", help="An own reader of the source, my_parts:MyReader; see --parts.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw.")
@click.option(
    "--classifier/--no-classifier",
    default=None,
    help="Train a small CNN on the labels.  [default: train it; scores use it if it is better than chance]",
)
@click.option("--codec", type=click.Choice(["kl", "tiny"]), help="Encode the images, too, for training on latents.")
@click.option("--encoder", type=NAME, metavar="FOLDER|ID", help="Its autoencoder.  [default: sd-vae-ft-mse]")
@OWN_PARTS
def prepare(source: str, out: Path, **options: Any) -> None:
    """Make a dataset of SOURCE: a folder, zip, tar or npz of images, CIFAR-10, idx, WebDataset shards, or digits."""
    from scrimp_platform.cli import commands

    commands.prepare(source, out, **options)


@scrimp.command()
@click.argument("recipe", type=NAME)
@click.argument("data", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--kimg",
    type=_Number(0, min_open=True),
    help="Length, in thousands of images, and the most that reweighting's reference and proxy get.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the repeat.")
@click.option("--extractor", help="Score the result with this feature extractor.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Images to score.")
def train(recipe: str, data: Path, out: Path, **options: Any) -> None:
    """Train RECIPE (a preset or a YAML file) on DATA, in OUT. The same command resumes.

    A finished run is scored with --extractor, and continued with a larger --kimg.
    """
    from scrimp_platform.cli import commands

    commands.train(recipe, data, out, **options)


@scrimp.command()
@click.argument("model", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("-n", "--number", type=click.IntRange(1), default=64, show_default=True, help="Images to sample.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images at once.")
@OWN_PARTS
def sample(model: Path, out: Path, **options: Any) -> None:
    """Draw images from MODEL as PNGs and one grid, in OUT."""
    from scrimp_platform.cli import commands

    commands.sample(model, out, **options)


@scrimp.command()
@click.argument("model", type=FOLDER)
@click.argument("data", type=FOLDER)
@click.option("--extractor", default="inception", show_default=True, help="The feature extractor.")
@click.option("--samples", type=click.IntRange(1), default=50_000, show_default=True, help="Images to score.")
@click.option("--weights", type=FILE, help="The extractor's weight file.")
@click.option("--threshold", type=_Number(), help="Similarity above which a sample counts as memorised.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images at once.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@click.option("--grid", type=FOLDER, help="Write samples beside their nearest training images here (PNG).")
@OWN_PARTS
def evaluate(model: Path, data: Path, **options: Any) -> None:
    """Score MODEL against DATA: fidelity, memorisation, cost."""
    from scrimp_platform.cli import commands

    commands.evaluate(model, data, **options)


@scrimp.command()
@click.argument("data", type=FOLDER)
@click.option("--features", default="inception", show_default=True, help="The surrogate whose features are scored.")
@click.option("--weights", type=FILE, help="The surrogate's weight file.")
@click.option("--score", default="gaussian", show_default=True, help="gaussian, ppca, knn, moderate, closest, random.")
@click.option("--covariance", default="ridge", show_default=True, help="Of the Gaussian: ridge, or shrunk.")
@click.option("--keep", type=_Number(), default=0.1, show_default=True, help="Share of the images to keep.")
@click.option("--per-class/--global", default=True, show_default=True, help="The same share of every class, or not.")
@click.option("--side", default="high", show_default=True, help="Keep the high scores or the low ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the score random.")
@click.option("--out", type=FOLDER, metavar="PNG", help="The picture.  [default: beside the list]")
@OWN_PARTS
def score(data: Path, **options: Any) -> None:
    """Score DATA's training images; list and picture those that a coreset keeps."""
    from scrimp_platform.cli import commands

    commands.score(data, **options)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option(
    "--objective", "objectives", multiple=True, metavar="SCORE:minimize|maximize", help="Rank by this instead."
)
@click.option("--constraint", "constraints", multiple=True, metavar="'SCORE<=LIMIT'", help="Keep this limit instead.")
def report(sweep: Path, objectives: tuple[str, ...], constraints: tuple[str, ...]) -> None:
    """Write SWEEP's leaderboard and report anew from what is on disk, also while it runs.

    With --objective or --constraint, print how the same trials rank by these in place of the space's own. Nothing is
    trained and no file changes.
    """
    from scrimp_platform.cli import commands

    if objectives or constraints:
        commands.rank_again(sweep, objectives, constraints)
    else:
        commands.report(sweep)


@scrimp.command()
@click.argument("sweep", type=FOLDER)
@click.option("--tracking-uri", metavar="URI", help="An MLflow server.  [default: that of SWEEP's storage]")
def sync(sweep: Path, tracking_uri: str | None) -> None:
    """Send MLflow what it does not have of SWEEP, which must have ended."""
    from scrimp_platform.cli import commands

    commands.sync(sweep, tracking_uri)


@scrimp.command()
@STORAGE
def status(storage: Path) -> None:
    """Print what runs, what is done and what is left of the sweeps in a storage folder."""
    from scrimp_platform.cli import commands

    commands.status(storage)


@scrimp.command()
@STORAGE
@click.option("--service", is_flag=True, help="Let systemd do so, now and after each reboot.")
def ui(storage: Path, service: bool) -> None:
    """Serve MLflow for a storage folder until Ctrl-C."""
    from scrimp_platform.cli import commands

    commands.ui(storage, service)


@scrimp.command()
@STORAGE
@click.option("--data", type=FOLDER, help="A prepared dataset that every node must see.")
@click.option("--tracking-uri", metavar="URI", help="An MLflow server that the sweep would write to.")
def doctor(storage: Path, data: Path | None, tracking_uri: str | None) -> None:
    """Examine every node that a sweep would run on, and say what to mend; exit status 1 if something stops it."""
    from scrimp_platform.cli import commands

    if not commands.doctor(storage, data, tracking_uri):
        sys.exit(1)


@scrimp.command("spaces")
@click.argument("name", type=NAME, required=False)
@click.option("--yaml", "as_yaml", is_flag=True, help="Print NAME as YAML, to start your own from.")
def spaces_command(name: str | None, as_yaml: bool) -> None:
    """List the search spaces, or print the space NAME as a table."""
    from scrimp_platform.cli import commands

    if name:
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


def rejoined(words: Sequence[str]) -> list[str]:
    """Put the values of options together again that `ray submit` took apart at their spaces, since it drops quotes."""
    whole: list[str] = []
    for word in words:
        if whole and not word.startswith("--") and (not whole[-1].startswith("--") or "=" in whole[-1]):
            whole[-1] += f" {word}"
        else:
            whole.append(word)
    return whole


def main(arguments: list[str] | None = None, command: click.Command = scrimp) -> None:
    """Run a command; a user's mistake is one line and exit status 2, Ctrl-C one and 130, SIGTERM one and 143."""
    from scrimp_cluster import proxies, temporary
    from scrimp_platform import interrupt
    from scrimp_platform.storage_loss import StorageLost
    from scrimp_trainers.common.errors import Diverged, UserError
    from scrimp_trainers.common.files import no_room

    interrupt.listen()
    proxies.bypass()
    temporary.shorten(lambda line: click.echo(f"scrimp: {line}", err=True))
    try:
        command.main(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        _leave(error.format_message(), 2)
    except UserError as error:
        _leave(str(error), 2)
    except PermissionError as error:
        _leave(f"{error}; ask its owner, or name another place", 2)
    except StorageLost as error:
        _leave(str(error), 1)
    except Diverged as error:
        _leave(f"training diverged: {error}", 1)
    except (click.Abort, KeyboardInterrupt) as error:  # click makes the one of the other
        _leave("interrupted; run the same command again to resume", interrupt.exit_status(error.__cause__ or error))
    except Exception as error:
        if not no_room(error):
            raise
        _leave(f"{error}; with room there, the same command goes on", 1)


def _leave(message: str, status: int) -> None:
    click.echo(f"scrimp: {' '.join(message.split())}", err=True)
    sys.exit(status)
