"""What the smaller commands do; `main.py` names their arguments, `sweep.py` has the large one.

Whatever a user can get wrong is checked before torch is imported, which takes seconds.
"""

import csv
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from scrimp_platform import model as models
from scrimp_platform import operations, store
from scrimp_platform.cli import terminal
from scrimp_platform.model import Model
from scrimp_platform.report import goals, leaderboard
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import Line
from scrimp_trainers.data import manifest
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.techniques import Coreset


def prepare(source: str, out: Path, codec: str | None, encoder: str | None, **options: Any) -> None:
    """Make a dataset, and fill its cache of latents if an autoencoder is named."""
    from scrimp_trainers import ingest as preparing
    from scrimp_trainers.data.options import Options

    the_codec = operations.codec_of(codec, encoder)
    with terminal.progress() as progress:
        made = preparing.prepare(source, out, Options(**options), progress)
    terminal.show_dataset(out, made)
    if the_codec.on:
        with terminal.progress() as progress:
            operations.encode(out, the_codec, progress)
        terminal.say(f"latents in {out / 'cache'}")


def train(
    recipe: str, data: Path, out: Path, kimg: float | None, seed: int, extractor: str | None, samples: int
) -> None:
    """Train one repeat without Ray. A finished one is scored, or continued if it is to be longer."""
    the_recipe = recipes.load(recipe)
    if kimg:
        the_recipe = operations.lengthened(the_recipe, kimg)
    facts = manifest.load(data)
    scoring = operations.scoring_of(facts, extractor=extractor, samples=samples) if extractor else None
    earlier = metrics_log.read(out / "metrics.jsonl")
    lines = operations.train(the_recipe, data, out, seed, scoring)
    line: Line = {}
    with terminal.progress("kimg") as progress:
        for line in lines:
            if "note" in line:
                terminal.say(line["note"])
            else:
                progress(line["kimg"], the_recipe.training.kimg)
    if metrics_log.read(out / "metrics.jsonl") == earlier:
        terminal.say(f"{out}: was finished already; nothing was left to train or to score")
    if the_recipe.sparsity.on:
        with (out / "layers.csv").open(newline="") as file:
            terminal.show_layers(csv.DictReader(file))
    terminal.show_values(line)
    terminal.say(f"model in {out / 'model'}")


def sample(model: Path, out: Path, number: int, seed: int, steps: int | None, batch_size: int) -> None:
    """Draw images from a model as PNGs and one grid."""
    models.require(model)
    if out.exists():
        raise UserError(f"{out}: exists already; name a folder that does not")
    from scrimp_trainers import sampling

    images = Model.load(model).batches(number, seed=seed, steps=steps, batch_size=batch_size)
    with terminal.progress() as progress:
        sampling.save_images(operations.counted(images, number, progress), out)
    terminal.say(f"{number} images and grid.png in {out}")


def evaluate(
    model: Path,
    data: Path,
    seed: int,
    grid: Path | None,
    **scoring_values: Any,
) -> None:
    """Score a model against a dataset."""
    models.require(model)
    scoring = operations.scoring_of(manifest.load(data), **scoring_values)
    if grid and not grid.absolute().parent.is_dir():
        raise UserError(f"--grid {grid}: its folder does not exist")
    from scrimp_trainers.metrics.memorisation import neighbour_grid

    with terminal.progress() as progress:
        values, scores = operations.evaluate(Model.load(model), data, scoring, seed, progress)
    terminal.show_values(values)
    if grid:
        neighbour_grid(scores.samples, scores.nearest).save(grid, "PNG")
        terminal.say(f"samples, each beside its nearest training image, in {grid}")


def score(data: Path, seed: int, out: Path | None, **coreset_values: Any) -> None:
    """Score a dataset's training images, and show which of them a coreset keeps."""
    try:
        coreset = Coreset(**coreset_values)
    except ValidationError as error:
        raise UserError(recipes.explain(error)) from None
    facts = manifest.load(data)
    if coreset.score != "random":
        operations.scoring_of(facts, extractor=coreset.features, weights=coreset.weights)
    if out and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist")
    from scrimp_trainers.common import device
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.precompute.coreset import score
    from scrimp_trainers.precompute.coreset_picture import picture

    dataset = open_dataset(data)
    with terminal.progress() as progress:
        scored = score(dataset, coreset, device.select_device(), seed, progress)
    out = out or scored.file.with_suffix(".png")
    try:
        picture(dataset, coreset, scored).save(out, "PNG")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from None
    terminal.show_coreset(scored)
    if scored.file.exists():  # not in a folder that cannot be written
        terminal.say(f"list     {scored.file}")
    terminal.say(f"picture  {out}")


def report(sweep: Path) -> None:
    """Write a sweep's leaderboard and report anew from what is on disk."""
    folder = SweepFolder(sweep)
    space = records.space_of(folder)
    from scrimp_platform.sweep import conclude

    outcome = store.read_sound(folder.outcome) or {"reason": "not over yet"}
    conclude(folder, space, outcome["reason"])


def rank_again(sweep: Path, objectives: Sequence[str], constraints: Sequence[str]) -> None:
    """Print how a sweep's trials rank by other objectives or constraints; nothing is trained or written."""
    folder = SweepFolder(sweep)
    space = goals.replaced(records.space_of(folder), objectives, constraints)
    known = records.read_as_observer(folder)
    goals.require_measured(space, known.trials)
    terminal.show_ranking(folder, leaderboard.rank(known.trials, space), space)
    terminal.show_problems(known.problems)


def sync(sweep: Path, tracking_uri: str | None) -> None:
    """Send MLflow what it does not have of a sweep that has ended."""
    from scrimp_platform.tracking import mirror

    folder = SweepFolder(sweep.expanduser().absolute())
    records.space_of(folder)
    with terminal.progress("runs") as progress:
        link = mirror.sync(folder, Storage(folder.path.parent), tracking_uri, progress)
    terminal.say(f"MLflow: {link}")


def status(storage: Path) -> None:
    """Print how the sweeps of a storage folder stand."""
    from scrimp_platform.cli import standings, status

    folder = Storage(storage.expanduser())
    if not folder.sweeps():
        raise UserError(f"--storage {storage}: no sweep there; name the folder that holds them, or set SCRIMP_STORAGE")
    standings.show(*status.unfinished(folder))


def ui(storage: Path, service: bool) -> None:
    """Serve MLflow for a storage folder until Ctrl-C or a polite kill, or have systemd do so."""
    if not storage.is_dir():
        raise UserError(f"--storage {storage}: no such folder; a sweep makes it")
    if service:
        from scrimp_cluster.service import UNIT, install

        if error := install(Path(sys.executable).with_name("scrimp"), storage.absolute()):
            raise UserError(f"--service: {error}; docs/cluster.md has a way without systemd")
        terminal.say(f"MLflow serves {storage} from now on, also after a reboot: `systemctl --user status {UNIT}`")
        return
    from scrimp_platform.tracking import mlflow_server

    mlflow_server.check_storage(storage.absolute())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = mlflow_server.ensure(Storage(storage.absolute()))
    try:
        server.wait()
        terminal.say(f"MLflow serves {storage} at {server.uri} until Ctrl-C")
        terminal.say(f"user name {mlflow_server.USER}, password in {server.folder / mlflow_server.PASSWORD}")
        server.watch(terminal.say)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def doctor(storage: Path, data: Path | None, tracking_uri: str | None) -> bool:
    """Examine every node of the cluster and print what is found; false if something stops a sweep."""
    if storage.exists() and not storage.is_dir():
        raise UserError(f"--storage {storage}: not a folder")
    if data:
        manifest.load(data)
    from scrimp_platform import cluster
    from scrimp_platform.tracking import mlflow_server

    uri = mlflow_server.check_address(tracking_uri) if tracking_uri is not None else ""
    from scrimp_cluster.doctor import examine, missing_nodes
    from scrimp_cluster.faults import Fault

    with cluster.connect() as nodes:
        report = examine(nodes, storage.expanduser().absolute(), data and data.absolute())
        report.head.extend(missing_nodes(nodes))
    if uri and not mlflow_server.answers(uri):
        remedy = "start it, or train all the same: it hears of everything later"
        report.head.append(Fault("MLflow", f"{uri} does not answer", remedy, stops=False))
    terminal.show_report(report)
    return not any(fault.stops for fault in report.faults)


def list_spaces() -> None:
    """Print the spaces that come with Scrimp."""
    terminal.show_list({name: spaces.load_space(name).about for name in spaces.names()})


def show_space(name: str, as_yaml: bool) -> None:
    """Print one space, as a table or as the YAML that it is."""
    space = spaces.load_space(name)
    if as_yaml:
        click.echo(spaces.space_yaml(name), nl=False)
    else:
        terminal.show_space(space)


def list_recipes() -> None:
    """Print the presets."""
    terminal.show_list({name: recipes.load(name).about for name in recipes.presets()})


def show_schema() -> None:
    """Print the recipe's JSON schema."""
    click.echo(json.dumps(recipes.Recipe.model_json_schema(), indent=2))
