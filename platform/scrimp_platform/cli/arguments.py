"""What several commands have in common: the types of their arguments, and options such as `--storage`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from scrimp_trainers.common.files import expand_home, expand_name


def parse_numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Read numbers that commas separate."""
    if not text:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 250,1000,4000") from None


class _Path(click.Path):
    """A path in which `~` is the home folder, even where the shell does not expand it, as in `--storage=~/runs`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(expand_home(value)), param, ctx)


class _NameOrPath(click.ParamType[str]):
    """A name, or a path whose `~` is expanded."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return expand_name(value)


class FiniteNumber(click.FloatRange):
    """A finite number in a range; click's own range check accepts `nan` and often `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert what was given, or fail with a message."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Gpus(click.IntRange):
    """A number of GPUs, or `auto`."""

    def __init__(self) -> None:
        super().__init__(1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert what was given, or fail with a message."""
        return value if value == "auto" else super().convert(value, param, ctx)


class NewTrials(click.IntRange):
    """A number of trials, or one to add, such as `+4`, which stays text."""

    def __init__(self) -> None:
        super().__init__(1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert what was given, or fail with a message."""
        number = super().convert(value, param, ctx)
        return f"+{number}" if str(value).startswith("+") else number


FOLDER = _Path(path_type=Path)
FILE = _Path(path_type=Path, exists=True)
NAME = _NameOrPath()
STORAGE = click.option(
    "--storage",
    type=FOLDER,
    envvar="SCRIMP_STORAGE",
    show_envvar=True,
    default=Path("runs"),
    show_default=True,
    help="Folder that holds all sweeps.",
)


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

READING = (
    click.option("--size", type=click.IntRange(1), help="Height and width to resize to; most points of a drawing."),
    click.option("--first", type=click.IntRange(1), help="Images of the source to read, the first ones in its order."),
    click.option(
        "--labels", type=NAME, metavar="none|folder|strokes|FILE", help="Source of the classes.  [default: detected]"
    ),
    click.option("--label-column", metavar="NAME", help="Column of the labels in that FILE, or in a table of images."),
    click.option("--classes", type=NAME, metavar="FILE", help="Take only the classes that FILE lists, one a line."),
    click.option("--flat", is_flag=True, help="Take the images of all subfolders, without classes."),
    click.option(
        "--frames", type=click.Choice(["first", "all"]), default="first", help="Pages or frames to take of a file."
    ),
    click.option(
        "--captions", type=click.Choice(["none"]), help="Leave captions out.  [default: those beside the images]"
    ),
    click.option(
        "--near",
        type=FiniteNumber(0, 255),
        help="Keep images on one side of the split if their mean difference is at most this, of 255; 0: only equal "
        "ones.  [default: 8; drawings 0]",
    ),
    click.option("--depth16", type=click.Choice(["scale"]), help="Scale 16-bit images to 8 bits: 65,535 becomes 255."),
    click.option("--background", metavar="COLOUR", help="Background of transparent images: a name or #rrggbb."),
    click.option(
        "--max-pixels", type=click.IntRange(1), help="Most pixels that an image may have.  [default: 89,478,485]"
    ),
    click.option("--reader", metavar="FILE:CLASS", help="An own reader of the source, my_parts:MyReader; see --parts."),
)
"""The options that say how a source is read."""


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `READING`, in this order."""
    for option in reversed(READING):
        command = option(command)
    return command
