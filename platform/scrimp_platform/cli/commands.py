"""What the smaller commands do; `main.py` names their arguments, `sweep.py` has the large one.

Whatever a user can get wrong is checked before torch is imported, which takes seconds.
"""

import csv
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from scrimp_platform import store
from scrimp_platform.cli import terminal
from scrimp_platform.report import goals, leaderboard
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_trainers import fit
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import Line
from scrimp_trainers.data import manifest
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.recipe.techniques import Codec, Coreset

if TYPE_CHECKING:
    from torch import Tensor

    from scrimp_trainers.networks.unet import UNet


def prepare(source: str, out: Path, codec: str | None, encoder: str | None, **options: Any) -> None:
    """Make a dataset, and fill its cache of latents if an autoencoder is named."""
    from scrimp_trainers import ingest as preparing
    from scrimp_trainers.codecs import pretrained
    from scrimp_trainers.data.options import Options

    if encoder and not codec:
        raise UserError("--encoder needs --codec, which says of what kind it is")
    encoder = encoder or Codec().encoder
    the_codec = Codec.model_validate({"kind": codec or "none", "encoder": encoder, "decoder": encoder})
    if the_codec.on:
        pretrained.find(the_codec, "encoder")  # before the images are read, which can take long
    with terminal.progress() as progress:
        made = preparing.prepare(source, out, Options(**options), progress)
    terminal.show_dataset(out, made)
    if the_codec.on:
        from scrimp_trainers.codecs.cache import open_latents
        from scrimp_trainers.common.device import select_device
        from scrimp_trainers.data.dataset import open_dataset

        with terminal.progress() as progress:
            open_latents(open_dataset(out), the_codec, select_device(), progress=progress)
        terminal.say(f"latents in {out / 'cache'}")


def train(
    recipe: str, data: Path, out: Path, kimg: float | None, seed: int, extractor: str | None, samples: int
) -> None:
    """Train one repeat without Ray. A finished one is scored, or continued if it is to be longer."""
    the_recipe = recipes.load(recipe)
    if kimg:
        the_recipe = the_recipe.replace({"training.kimg": kimg})
        if the_recipe.reweighting.on:
            the_recipe = the_recipe.replace({"reweighting.kimg": min(kimg, the_recipe.reweighting.kimg)})
    facts = manifest.load(data)
    scoring = _scoring(facts, extractor=extractor, samples=samples) if extractor else None
    fit.check(the_recipe, facts)
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.run import run

    total = the_recipe.training.kimg
    earlier = metrics_log.read(out / "metrics.jsonl")
    if scoring:
        _refuse_second_score(earlier, out, data, total, scoring)
    line: Line = {}
    with terminal.progress("kimg") as progress:
        for line in run(the_recipe, open_dataset(data), out, seed, rungs_kimg=[total], scoring=scoring):
            if "note" in line:
                terminal.say(line["note"])
            else:
                progress(line["kimg"], total)
    if metrics_log.read(out / "metrics.jsonl") == earlier:
        terminal.say(f"{out}: was finished already; nothing was left to train or to score")
    if the_recipe.sparsity.on:
        with (out / "layers.csv").open(newline="") as file:
            terminal.show_layers(csv.DictReader(file))
    terminal.show_values(line)
    terminal.say(f"model in {out / 'model'}")


def _refuse_second_score(earlier: list[Line], out: Path, data: Path, kimg: float, scoring: Scoring) -> None:
    """Refuse to score a finished run in another way: its last line and its model card hold one score."""
    last = earlier[-1] if earlier else {}
    if "extractor" not in last or last["images"] < kimg * 1000:
        return
    if (last["extractor"], last["samples"]) != (scoring.extractor, scoring.samples):
        raise UserError(
            f"{out}: finished, and scored by {last['samples']:g} samples with extractor {last['extractor']}; "
            f"use `scrimp evaluate {out / 'model'} {data}` for other scores"
        )


def sample(model: Path, out: Path, number: int, seed: int, steps: int | None, batch_size: int) -> None:
    """Draw images from a model as PNGs and one grid."""
    _require_model(model)
    if out.exists():
        raise UserError(f"{out}: exists already; name a folder that does not")
    from scrimp_trainers import sampling
    from scrimp_trainers.export import load_codec, load_model

    network, recipe = load_model(model)
    network = _on_device(network)
    codec = load_codec(model, recipe, network.unet.device)
    if steps:
        recipe = recipe.replace({"sampler.steps": steps})
    with terminal.progress() as progress:
        images = sampling.generate(network, recipe, number, seed=seed, batch_size=batch_size, codec=codec)
        sampling.save_images(_counted(images, number, progress), out)
    terminal.say(f"{number} images and grid.png in {out}")


def evaluate(
    model: Path,
    data: Path,
    seed: int,
    grid: Path | None,
    **scoring_values: Any,
) -> None:
    """Score a model against a dataset."""
    _require_model(model)
    facts = manifest.load(data)
    scoring = _scoring(facts, **scoring_values)
    if grid and not grid.absolute().parent.is_dir():
        raise UserError(f"--grid {grid}: its folder does not exist")
    from scrimp_trainers import sampling
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.export import check_images, load_codec, load_model
    from scrimp_trainers.metrics import cost
    from scrimp_trainers.metrics.memorisation import neighbour_grid
    from scrimp_trainers.metrics.score import Scorer

    network, recipe = load_model(model)
    network = _on_device(network)
    codec = load_codec(model, recipe, network.unet.device)
    check_images(model, network, codec, facts)
    scorer = Scorer(open_dataset(data), scoring, network.unet.device)
    with terminal.progress() as progress:
        images = sampling.generate(
            network, recipe, scoring.samples, seed=seed, batch_size=scoring.batch_size, codec=codec
        )
        scores = scorer.score(_counted(images, scoring.samples, progress), classes=network.classes)
    parameters = {"parameters": cost.parameters(network), "nonzero_parameters": cost.nonzero_parameters(network)}
    terminal.show_values(scores.values | parameters | {"nfe": recipe.nfe})
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
        _scoring(facts, extractor=coreset.features, weights=coreset.weights)
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
    known = records.look(folder)
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
    terminal.show_list({name: spaces.load(name).about for name in spaces.names()})


def show_space(name: str, as_yaml: bool) -> None:
    """Print one space, as a table or as the YAML that it is."""
    space = spaces.load(name)
    if as_yaml:
        click.echo(spaces.text(name), nl=False)
    else:
        terminal.show_space(space)


def list_recipes() -> None:
    """Print the presets."""
    terminal.show_list({name: recipes.load(name).about for name in recipes.presets()})


def show_schema() -> None:
    """Print the recipe's JSON schema."""
    click.echo(json.dumps(recipes.Recipe.model_json_schema(), indent=2))


def _scoring(facts: Manifest, **values: Any) -> Scoring:
    try:
        scoring = Scoring(**values)
    except ValidationError as error:
        raise UserError(recipes.explain(error)) from None
    names.check(scoring, facts)
    return scoring


def _require_model(model: Path) -> None:
    if not (model / "unet" / "config.json").is_file():
        raise UserError(f"{model}: not a model (no unet/config.json); name the model folder of a repeat")


def _on_device(network: "UNet") -> "UNet":
    import torch

    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def _counted(batches: "Iterable[Tensor]", total: int, progress: Callable[[float, float], None]) -> "Iterator[Tensor]":
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        progress(done, total)
