"""The bodies of the commands. `main.py` declares their arguments; `scrimp sweep` itself is in sweep.py.

User input is checked before torch is imported, because the import takes seconds.
"""

import csv
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from scrimp_platform import operations, recommended, store
from scrimp_platform.cli import doctor_view, terminal
from scrimp_platform.model import Model, require_model
from scrimp_platform.report import goals, leaderboard
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces import space as spaces
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import expand_home
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.recipe import recipe as recipes


def prepare(source: str, out: Path, codec: str | None, encoder: str | None, **options: Any) -> None:
    """Prepare a dataset, and its cache of latents if a codec is given."""
    from scrimp_trainers import ingest
    from scrimp_trainers.data.options import Options

    codec_settings = operations.make_codec(codec, encoder)
    with terminal.progress() as progress:
        manifest = ingest.prepare(source, out, Options(**options), progress)
    terminal.show_dataset(out, manifest)
    terminal.say(f"look at {out / ingest.CONTACT_SHEET}")
    terminal.say(f"what to sweep on it: scrimp inspect {shlex.quote(str(out))}")

    if codec_settings.on:
        with terminal.progress() as progress:
            operations.encode(out, codec_settings, progress)
        terminal.say(f"latents in {out / 'cache'}")


def inspect(data: str, storage: Path, on: str | None, out: Path | None, **options: Any) -> None:
    """Print what is known of a dataset or source, and write it as a page if `out` is given."""
    from scrimp_trainers.data.options import Options

    if out and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist")
    from scrimp_platform import inspection
    from scrimp_platform.cli import inspection_view
    from scrimp_platform.report import inspection_page

    with terminal.progress() as progress:
        inspected = inspection.inspect(data, storage, Options(**options), on, progress)
    inspection_view.show(inspected)
    if out:
        inspection_page.write_page(inspected, out)
        terminal.say(f"page with a contact sheet of each class in {out}")


def train(
    recipe_name: str,
    data: Path,
    out: Path,
    kimg: float | None,
    seed: int,
    extractor: str | None,
    samples: int,
    rungs: tuple[float, ...] | None = None,
) -> None:
    """Train one repeat without Ray. A finished one is scored, or continued if it is to be longer."""
    recipe = recipes.load(recipe_name)
    if kimg:
        recipe = operations.with_length(recipe, kimg)
    manifest = manifests.load_manifest(data)
    scoring = None
    if extractor:
        scoring = operations.make_scoring(manifest, extractor=extractor, samples=samples)

    # Train, and show the progress.
    earlier = metrics_log.read_rows(out / "metrics.jsonl")
    rows = operations.train(recipe, data, out, seed, scoring, rungs=rungs or (), say=terminal.say)
    values: Mapping[str, Any] = {}
    with terminal.progress("kimg") as progress:
        for row in rows:
            progress(row.kimg, recipe.training.kimg)
            values = row.to_entries()

    # Show the result.
    if metrics_log.read_rows(out / "metrics.jsonl") == earlier:
        terminal.say(f"{out}: was finished already; nothing was left to train or to score")
    if recipe.sparsity.on:
        with (out / "layers.csv").open(newline="") as file:
            terminal.show_layers(csv.DictReader(file))
    terminal.show_values(values)
    selected = values.get(metrics_log.SELECTED)
    if selected:
        terminal.say(
            f"model in {out / 'model'}, {selected}; that score is optimistic, "
            f"`scrimp evaluate {out / 'model'} {data} --seed {seed + 1}` scores it by other samples"
        )
    else:
        terminal.say(f"model in {out / 'model'}")


def sample(
    model: Path, out: Path, number: int, seed: int, steps: int | None, batch_size: int, caption: tuple[str, ...]
) -> None:
    """Draw images from a model, or from the recommended one of a sweep, as PNGs and one grid."""
    model = _model_folder(model)
    if out.exists():
        raise UserError(f"{out}: exists already; choose another folder")
    from scrimp_trainers import sampling

    loaded = Model.load(model, captions=caption)
    items = loaded.items(number, seed=seed, steps=steps, batch_size=batch_size)
    with terminal.progress() as progress:
        sampling.save_items(operations.report_progress(items, number, progress), loaded.modality, out)
    terminal.say(f"{number} images and grid.png in {out}")


def evaluate(
    model: Path,
    data: Path | None,
    seed: int,
    grid: Path | None,
    **scoring_values: Any,
) -> None:
    """Score a model against a dataset; the recommended model of a sweep by default as the sweep scores."""
    chosen = {name: value for name, value in scoring_values.items() if value is not None}
    settings: dict[str, Any] = {"extractor": "inception", "samples": 50_000} | chosen
    if recommended.is_sweep(model):
        sweep = records.sweep_description(SweepFolder(model))
        data = data or Path(sweep["dataset"]["folder"])
        if "extractor" not in chosen:
            settings = _with_values(sweep["space"]["scoring"], chosen)
    if data is None:
        raise click.UsageError(f"{model}: not a sweep, which knows its dataset; name DATA, too")

    folder = _model_folder(model)
    scoring = operations.make_scoring(manifests.load_manifest(data), **settings)
    if grid and not grid.absolute().parent.is_dir():
        raise UserError(f"--grid {grid}: its folder does not exist")
    from scrimp_trainers.sampling import neighbour_grid

    with terminal.progress() as progress:
        values, scores = operations.evaluate(Model.load(folder), data, scoring, seed, progress)
    terminal.show_values(values)

    if grid:
        neighbour_grid(scores.samples, scores.nearest).save(grid, "PNG")
        terminal.say(f"samples, each beside its nearest training image, in {grid}")


def _with_values(scoring: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the scoring of a sweep with other values; all of its extractors score as many samples."""
    further = scoring["further"]
    if "samples" in chosen:
        further = [other | {"samples": chosen["samples"]} for other in further]
    return scoring | chosen | {"further": further}


def _model_folder(path: Path) -> Path:
    """Return a model's folder; of a sweep that of its recommended model, and say which one that is.

    Raises
    ------
    UserError
        If the folder holds neither a model nor a sweep with one.
    """
    if not recommended.is_sweep(path):
        require_model(path)
        return path
    chosen = recommended.find(SweepFolder(path))
    require_model(chosen.files.model)
    standing = "recommended" if chosen.final else "best so far"
    terminal.say(f"model of repeat {chosen.files.label}, whose trial is {standing}: {chosen.files.model}")
    return chosen.files.model


def tune(
    run: Path,
    data: Path,
    extractor: str,
    samples: int,
    weights: Path | None,
    batch_size: int,
    model: Path | None,
    **choices: Any,
) -> None:
    """Choose EMA width, guidance and sampler steps of a finished training, and print the table of all."""
    from scrimp_platform import tune

    manifest = manifests.load_manifest(data)
    scoring = operations.make_scoring(
        manifest, extractor=extractor, samples=samples, weights=weights, batch_size=batch_size
    )
    with terminal.progress() as progress:
        tuned = tune.tune(run, data, scoring, model=model, progress=progress, **choices)
    terminal.show_tuned(tuned)
    terminal.say(f"table in {tuned.model.with_name(store.TUNED_FILE)}")
    if model:
        terminal.say(f"model in {model}")


def score(data: Path, seed: int, out: Path | None, **coreset_values: Any) -> None:
    """Score a dataset's training images, and show which of them the coreset keeps."""
    coreset = operations.make_coreset(data, **coreset_values)
    if out and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist")
    with terminal.progress() as progress:
        scored = operations.score(data, coreset, seed, progress)

    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.precompute.coreset_picture import draw_picture

    out = out or scored.file.with_suffix(".png")
    try:
        draw_picture(open_dataset(data), coreset, scored).save(out, "PNG")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from None

    terminal.show_coreset(scored)
    if scored.file.exists():  # it does not if the dataset's folder is read-only
        terminal.say(f"list     {scored.file}")
    terminal.say(f"picture  {out}")


def report(sweep: Path) -> None:
    """Write a sweep's leaderboard and report again, from the files on disk."""
    folder = SweepFolder(sweep)
    space = records.space_of(folder)
    from scrimp_platform.sweep import conclude

    conclude(folder, space, records.last_ending(folder))


def rank_by_goals(sweep: Path, objectives: Sequence[str], constraints: Sequence[str]) -> None:
    """Print how a sweep's trials rank by other objectives or constraints; nothing is trained or written."""
    from scrimp_platform.cli import result_view

    folder = SweepFolder(sweep)
    space = goals.with_parsed_goals(records.space_of(folder), objectives, constraints)
    known = records.read_as_observer(folder)
    goals.require_measured(space, known.trials)
    result_view.show_ranking(folder, leaderboard.rank(known.trials, space), space)
    terminal.show_problems(known.problems)


def compare(sweeps: Sequence[Path]) -> None:
    """Print the winners of sweeps side by side."""
    from scrimp_platform.cli import compare_view
    from scrimp_platform.report import compare

    compare_view.show(compare.compare([SweepFolder(sweep) for sweep in sweeps]))


def replay(sweep: Path, methods: Sequence[str], seeds: int) -> None:
    """Print what other methods would have done on a sweep's curves; nothing is trained or written."""
    from scrimp_platform.cli import replay_view
    from scrimp_platform.search import replay

    folder = SweepFolder(sweep)
    with terminal.progress("searches") as progress:
        replayed = replay.replay(folder, methods or replay.USUAL, seeds, progress)
    replay_view.show_replay(folder, replayed)


def sync(sweep: Path, tracking_uri: str | None) -> None:
    """Send MLflow everything that it is missing of a sweep that has ended."""
    from scrimp_platform.tracking import mirror

    folder = SweepFolder(expand_home(sweep).absolute())
    records.space_of(folder)
    with terminal.progress("runs") as progress:
        link = mirror.sync_ended_sweep(folder, Storage(folder.path.parent), tracking_uri, progress)
    terminal.say(f"MLflow: {link}")


def status(storage: Path) -> None:
    """Print the status of the sweeps in a storage folder."""
    from scrimp_platform.cli import status, status_view

    status_view.show_storage(*status.read_storage(Storage(expand_home(storage))))


def set_limits(sweep: Path, assignments: Sequence[str]) -> None:
    """Change limits of a sweep's budget, each by a request."""
    for answer in operations.set_limits(sweep, assignments):
        terminal.say(answer)


def stop(sweep: Path, trial: int) -> None:
    """Stop a trial of a sweep."""
    terminal.say(operations.stop(sweep, trial))


def pause(sweep: Path) -> None:
    """Pause a sweep that runs."""
    terminal.say(operations.pause(sweep))


def ui(storage: Path, service: bool, port: int | None = None) -> None:
    """Serve MLflow for a storage folder until Ctrl-C or SIGTERM, or set up a systemd service that does."""
    if not storage.is_dir():
        raise UserError(f"--storage {storage}: no such folder; the first sweep creates it")
    if service:
        _install_service(storage)
    else:
        _serve(storage, port)


def show_study(sweep: Path, port: int | None) -> None:
    """Serve a sweep's search in optuna-dashboard until Ctrl-C."""
    from scrimp_platform import study_view

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with study_view.copied(SweepFolder(sweep)) as journal:
        server = study_view.start(journal, port)
        terminal.say(f"optuna-dashboard shows the search of {sweep} at {server.uri} until Ctrl-C")
        terminal.say("It shows a copy: changes made there do not reach the sweep")
        study_view.serve(server)


def _install_service(storage: Path) -> None:
    from scrimp_cluster.service import UNIT, install

    command = Path(sys.executable).with_name("scrimp")
    error = install(command, storage.absolute())
    if error:
        raise UserError(f"--service: {error}; docs/cluster.md describes a way without systemd")
    terminal.say(f"MLflow serves {storage} from now on, also after a reboot: `systemctl --user status {UNIT}`")


def _serve(storage: Path, port: int | None) -> None:
    from scrimp_platform.tracking import mlflow_server

    mlflow_server.check_storage_name(storage.absolute())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = mlflow_server.join_or_start(Storage(storage.absolute()), port)
    try:
        server.wait_until_ready()
        password_file = server.folder / mlflow_server.PASSWORD_FILE
        terminal.say(f"MLflow serves {storage} at {server.uri} until Ctrl-C")
        for name, link in mlflow_server.experiment_links(Storage(storage.absolute()), server.uri).items():
            terminal.say(f"training runs on {name}: {link}")
        terminal.say(f"user name {mlflow_server.USER_NAME}, password in {password_file}")
        server.monitor(terminal.say)
    except KeyboardInterrupt:
        pass
    finally:
        server.release()


def doctor(storage: Path, data: Path | None, tracking_uri: str | None) -> bool:
    """Examine every node of the cluster and print the result; return whether a sweep can run."""
    report = operations.examine(storage, data, tracking_uri)
    doctor_view.show_cluster_report(report)
    return not any(fault.stops for fault in report.faults)


def check(file: Path) -> bool:
    """Check the parts that a file defines and print the result; return whether all passed."""
    from scrimp_platform.check import check as outcomes

    passed = True
    for outcome in outcomes(file):
        terminal.say(f"{outcome.kind}  {outcome.what}  {outcome.fault or 'ok'}")
        passed = passed and not outcome.fault
    return passed


def list_spaces() -> None:
    """Print the spaces that come with Scrimp."""
    terminal.show_list({name: spaces.load_space(name).about for name in spaces.names()})


def show_space(name: str, as_yaml: bool) -> None:
    """Print one space, as a table or as YAML."""
    space = spaces.load_space(name)
    if as_yaml:
        click.echo(spaces.space_yaml(name), nl=False)
    else:
        from scrimp_platform.cli import plan_view

        plan_view.show_space(space)


def show_forecast(name: str, machine: str, data: Path | None) -> None:
    """Print what a sweep of a space would take on a machine that is not here."""
    from scrimp_platform.machine import parse_machine

    on = parse_machine(machine)
    space = spaces.load_space(name)
    given = manifests.load_manifest(data) if data else None

    from scrimp_platform.cli import forecast_view
    from scrimp_platform.search import forecast

    manifest = given or forecast.made_up_manifest(space)
    forecast_view.show_forecast(forecast.forecast(space, manifest, on))


def list_recipes() -> None:
    """Print the presets."""
    terminal.show_list({name: recipes.load(name).about for name in recipes.presets()})


def show_schema() -> None:
    """Print the recipe's JSON schema."""
    click.echo(json.dumps(recipes.Recipe.model_json_schema(), indent=2))
