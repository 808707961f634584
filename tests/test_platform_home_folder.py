"""`~` is the home folder wherever a path is given: on the command line, in recipes and spaces, and in Python."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from pydantic import TypeAdapter

import scrimp
from scrimp_platform.cli import main
from scrimp_platform.cli.arguments import NAME, parse_numbers
from scrimp_spaces.space import Space
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.sections import Section

FILE = "~/own.py"
NO_PATHS = {
    "background",
    "caption",
    "constraints",
    "covariance",
    "extractor",
    "features",
    "label_column",
    "limits",
    "machine",
    "methods",
    "name",
    "objectives",
    "on",
    "reader",
    "score",
    "side",
    "tracking_uri",
    "until_gain",
}
"""Arguments of commands that are text and no path. A new one is added here, or has the type of paths."""
REQUIRED = {"limits": "budget.trials=1", "trial": "1"}
NO_PATH_FIELDS = {
    "Range.paper",
    "Recipe.about",
    "Scoring.also",
    "Scoring.extractor",
    "Space.about",
    "Space.proposals",
    "Sparsity.exclude",
}
"""Fields of recipes and spaces that are text and no path."""
COMMANDS = list(main.scrimp.commands.values())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("")
    return tmp_path


# --- the command line


def is_path(parameter: click.Parameter) -> bool:
    return isinstance(parameter.type, (click.Path, type(NAME)))


def is_text(parameter: click.Parameter) -> bool:
    return parameter.type is click.STRING and parameter.callback is not parse_numbers


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_text_that_a_command_takes_is_a_path_or_known_to_be_none(command: click.Command):
    for parameter in command.params:
        if is_text(parameter):
            assert parameter.name in NO_PATHS, f"{command.name} {parameter.name}: give it the type FOLDER, FILE or NAME"
        shown = f"{parameter.metavar} {getattr(parameter, 'help', '')}"
        if any(word in shown for word in ("FOLDER", "DIR", "PNG", ".html")):
            assert is_path(parameter), f"{command.name} {parameter.name}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_path_that_a_command_takes_may_begin_with_a_tilde(command: click.Command, home: Path, monkeypatch):
    loaded: list[Path] = []
    monkeypatch.setattr(parts, "load_files", loaded.extend)

    arguments: list[str] = []
    paths: list[click.Parameter] = []
    for parameter in command.params:
        if is_path(parameter):
            paths.append(parameter)
            value = FILE
        elif parameter.required:
            value = REQUIRED[str(parameter.name)]
        else:
            continue
        arguments += [parameter.opts[0], value] if isinstance(parameter, click.Option) else [value]

    with command.make_context(command.name, arguments) as context:
        for parameter in paths:
            given = context.params[parameter.name] if parameter.expose_value else tuple(loaded)
            values = given if isinstance(given, tuple) else (given,)
            assert [str(value) for value in values] == [str(home / "own.py")], parameter.name


def test_the_storage_in_the_environment_may_begin_with_a_tilde(home: Path, monkeypatch, capsys):
    monkeypatch.setenv("SCRIMP_STORAGE", "~/runs")
    with pytest.raises(SystemExit):
        main.main(["status"])
    assert str(home / "runs") in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["status", "--storage"], ["recipes"]])
def test_a_home_folder_of_nobody_is_one_line(arguments, capsys):
    path = "~nobody-here/lab"
    with pytest.raises(SystemExit) as ending:
        main.main([*arguments, path])
    assert ending.value.code == 2
    line = f"scrimp: {path}: there is no user of this name; write ./{path} if it is a file\n"
    assert capsys.readouterr().err == line


# --- recipes and spaces


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        if section.__module__.startswith(("scrimp_trainers.recipe.", "scrimp_spaces.")):
            yield section
            yield from sections(section)


def leaves(annotation: Any) -> Iterator[Any]:
    """What a field's values consist of; keys are left out."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return
    if get_origin(annotation) is dict:
        arguments = arguments[1:]
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from leaves(argument)


def text_fields() -> dict[str, Any]:
    return {
        f"{section.__name__}.{name}": field
        for section in sections()
        for name, field in section.model_fields.items()
        if any(leaf in (str, Path) for leaf in leaves(field.annotation))
    }


def test_every_path_in_a_recipe_or_space_may_begin_with_a_tilde(home: Path):
    fields = text_fields()
    assert fields.keys() >= {*NO_PATH_FIELDS, "Space.recipe", "Space.parts", "Autoencoder.encoder", "Coreset.weights"}
    for name in fields.keys() - NO_PATH_FIELDS:
        field = fields[name]
        several = get_origin(field.annotation) is tuple
        read = TypeAdapter(field.rebuild_annotation()).validate_python([FILE] if several else FILE)
        values = read if several else (read,)
        assert [str(value) for value in values] == [str(home / "own.py")], name


def test_a_space_in_the_home_folder_and_its_recipe(home: Path, capsys):
    (home / "lab.yaml").write_text(
        "recipe: ~/base.yaml\nsearch: {network.channels: {choice: [16, 24]}}\n"
        "objectives: {fd_classifier: minimize}\nscoring: {extractor: classifier}\n"
    )
    (home / "base.yaml").write_text("codec: {kind: kl, encoder: ~/vae, decoder: ~/vae}\n")
    main.main(["spaces", "~/lab.yaml"])
    assert "16 or 24" in capsys.readouterr().out
    space = Space.load("~/lab.yaml")
    assert space.recipe == str(home / "base.yaml")
    assert recipes.load("~/base.yaml").codec.model_dump()["encoder"] == str(home / "vae")


# --- Python


TEXTS: dict[str, Any] = {"labels": "~/labels", "classes": "~/classes"}
CALLS = {
    "check": lambda: scrimp.check("~/file"),
    "compare": lambda: scrimp.compare("~/sweeps", "~/sweeps"),
    "doctor": lambda: scrimp.doctor("~/storage", data="~/data"),
    "evaluate": lambda: scrimp.evaluate("~/model", "~/dataset", weights="~/weights"),
    "inspect": lambda: scrimp.inspect("~/data", out="~/out", storage="~/storage", **TEXTS),
    "load_model": lambda: scrimp.load_model("~/folder"),
    "load_parts": lambda: scrimp.load_parts("~/files"),
    "open_dataset": lambda: scrimp.open_dataset("~/folder"),
    "pause": lambda: scrimp.pause("~/sweep"),
    "prepare": lambda: scrimp.prepare(
        "~/source", "~/out", reference="~/reference", codec="kl", encoder="~/encoder", **TEXTS
    ),
    "replay": lambda: scrimp.replay("~/sweep"),
    "score": lambda: scrimp.score("~/data", weights="~/weights"),
    "set_limits": lambda: scrimp.set_limits("~/sweep", {"budget.trials": 1}),
    "status": lambda: scrimp.status("~/storage"),
    "stop": lambda: scrimp.stop("~/sweep", 0),
    "sweep": lambda: scrimp.sweep("~/space", "~/data", storage="~/storage", warm_start=["~/warm_start"]),
    "sync": lambda: scrimp.sync("~/sweep"),
    "train": lambda: scrimp.train("~/recipe", "~/dataset", "~/folder"),
    "tune": lambda: scrimp.tune("~/run", "~/dataset", weights="~/weights", model="~/model"),
}
"""Each path of a call is named after its parameter."""
OTHERS = {"recipes", "spaces"}
"""Functions that take no path."""


def refuse(*_: Any, **__: Any) -> None:
    raise UserError("as far as the test goes")


def nothing(*_: Any, **__: Any) -> None:
    return None


def paths_of(name: str) -> set[str]:
    """The parameters of a function that are paths: by their types, or because the command's are."""
    taken = inspect.signature(getattr(scrimp, name)).parameters
    typed = {key for key, parameter in taken.items() if "PathLike" in str(parameter.annotation)}
    command = main.scrimp.commands.get(name)
    options = {str(parameter.name) for parameter in command.params if is_path(parameter)} if command else set()
    return typed | (options & taken.keys())


def test_every_function_is_called():
    functions = {name for name in scrimp.__all__ if inspect.isfunction(getattr(scrimp, name))}
    assert CALLS.keys() == functions - OTHERS
    assert not any(paths_of(name) for name in OTHERS)


@pytest.fixture
def expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths that were expanded. Functions are refused where they would begin to work, if not before."""
    paths: set[str] = set()
    expanduser = Path.expanduser

    def noted(path: Path) -> Path:
        paths.add(str(path))
        return expanduser(path)

    monkeypatch.setattr(Path, "expanduser", noted)
    (home / "recipe").write_text("about: a recipe\n")
    monkeypatch.setattr("scrimp.sweeps._require_free_ray", refuse)
    for checked in (
        "scrimp_platform.inspection.inspect",
        "scrimp_platform.operations.names.check_scoring",
        "scrimp_trainers.codecs.autoencoder_files.find",
        "scrimp_trainers.data.manifest.load_manifest",
    ):
        monkeypatch.setattr(checked, nothing)
    for work in (
        "scrimp_platform.operations.examine",
        "scrimp_platform.operations.score",
        "scrimp_platform.operations.train",
        "scrimp_platform.report.inspection_page.write_page",
        "scrimp_platform.tune.tune",
        "scrimp_trainers.ingest.prepare",
    ):
        monkeypatch.setattr(work, refuse)
    return paths


@pytest.mark.parametrize("name", CALLS)
def test_every_path_of_a_function_may_begin_with_a_tilde(name: str, expanded: set[str]):
    with contextlib.suppress(Exception):
        CALLS[name]()
    assert expanded >= {f"~/{path}" for path in paths_of(name)}


def test_the_folder_of_a_model_may_begin_with_a_tilde(home: Path):
    with pytest.raises(UserError, match=f"{re.escape(str(home))}/model: not a model"):
        scrimp.Model.load("~/model")
