"""What arguments and options of several commands have in common: their types, and `--storage` and `--parts`."""

import math
from pathlib import Path
from typing import Any

import click


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
        return super().convert(str(Path(value).expanduser()), param, ctx)


class _NameOrPath(click.ParamType[str]):
    """A name, or a path whose `~` is expanded."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith("~"):
            return str(Path(value).expanduser())
        return value


class FiniteNumber(click.FloatRange):
    """A finite number in a range; click's own range check accepts `nan` and often `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert what was given, or fail with a message."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


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
