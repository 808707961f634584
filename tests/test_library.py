"""`import scrimp`: cheap, typed, documented, and nothing that the command line does otherwise."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import TREE, make_space, write_sweep
from trainers_small import small

import scrimp
from scrimp import sweeps, trainings
from scrimp_platform import interrupt, job, plan
from scrimp_platform import sweep as the_sweep
from scrimp_platform.cli import main
from scrimp_platform.report import leaderboard
from scrimp_platform.search import records, replay
from scrimp_platform.store import SweepFolder
from scrimp_platform.sweep_record import sweep_record
from scrimp_trainers.data.options import Options

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray", "mlflow", "optuna", "diffusers", "numpy", "pydantic")
MOST_S = 0.1


@pytest.fixture(scope="module")
def trained(digits_dataset, tmp_path_factory) -> Path:
    """Folder of a training of 64 images."""
    folder = tmp_path_factory.mktemp("library") / "trained"
    list(scrimp.train(small(), digits_dataset, folder, seed=3))
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> SweepFolder:
    """A sweep whose curves are made up."""
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", make_space())


def test_to_import_it_costs_next_to_nothing():
    code = (
        "import sys, time; before = time.perf_counter(); import scrimp; took = time.perf_counter() - before; "
        f"print(took, [name for name in {HEAVY} if name in sys.modules])"
    )
    # The best of three: how long one takes says how busy the machine is.
    answers = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)]
    assert min(float(answer.split()[0]) for answer in answers) < MOST_S
    assert {answer.split(maxsplit=1)[1].strip() for answer in answers} == {"[]"}


def test_every_public_name_is_there_and_described():
    assert set(scrimp.__all__) <= set(dir(scrimp))
    for name in scrimp.__all__:
        assert inspect.getdoc(getattr(scrimp, name)), name
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        scrimp.swep  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_page_names_every_public_name_and_nothing_else():
    headings = re.findall(r"^## `(\w+)`$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(scrimp.__all__)


@pytest.mark.parametrize("name", [name for name in scrimp.__all__ if inspect.isfunction(getattr(scrimp, name))])
def test_the_page_names_every_parameter(name):
    section = (ROOT / "docs" / "api.md").read_text().split(f"## `{name}`")[1].split("\n## ")[0]
    signature = section.split("```python\n")[1].split("```")[0]
    for parameter in inspect.signature(getattr(scrimp, name)).parameters.values():
        default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}".replace("'", '"')
        assert f"{parameter.name}{default}" in signature, parameter
        assert re.search(rf"^.*\b{parameter.name}\b", inspect.getdoc(getattr(scrimp, name)) or "", re.MULTILINE)


def test_every_command_is_a_call():
    others = {"report": "Result", "sample": "Model", "set": "set_limits"}
    for name in main.scrimp.commands:
        if name != "ui":  # it serves until it is stopped
            assert others.get(name, name) in scrimp.__all__


def test_score_has_the_options_of_the_command_with_its_defaults():
    of_command = main.score.make_context("score", ["."]).params
    parameters = inspect.signature(scrimp.score).parameters
    assert {*of_command, "progress"} == {*parameters, "out"}
    for name in parameters.keys() & of_command.keys() - {"data"}:
        assert parameters[name].default == of_command[name], name


def test_prepare_has_the_options_of_the_command_with_its_defaults():
    parameters = inspect.signature(scrimp.prepare).parameters
    for option in fields(Options):
        if option.name != "workers":  # the command has none either
            assert parameters[option.name].default == option.default, option.name


def test_sweep_has_the_options_of_the_command_with_its_defaults():
    parameters = inspect.signature(scrimp.sweep).parameters
    for option in fields(plan.SweepOptions):
        if option.name != "dry_run":
            default = parameters[option.name].default
            assert (Path(default) if option.name == "storage" else default) == option.default, option.name


def test_replay_has_the_options_of_the_command_with_its_defaults():
    parameters = inspect.signature(scrimp.replay).parameters
    options = {option.name: option for option in main.replay.params}
    assert parameters["methods"].default == replay.USUAL
    assert parameters["seeds"].default == options["seeds"].default
    assert all(name in str(options["methods"].to_info_dict()["help"]) for name in replay.METHODS)


def test_prepare_makes_a_dataset_that_opens(tmp_path):
    made = scrimp.prepare("digits", tmp_path / "digits", limit=40, classifier=False)
    images, labels, _ = scrimp.open_dataset(tmp_path / "digits").images("train")
    assert images.shape == (40, 1, 8, 8)
    assert labels is not None
    assert made == scrimp.open_dataset(str(tmp_path / "digits"))


def test_a_training_yields_its_lines_and_the_same_call_resumes(trained, digits_dataset, tmp_path):
    lines = list(scrimp.train(small(), digits_dataset.folder, tmp_path / "again", seed=3))
    assert lines[-1].kimg == pytest.approx(0.04)
    assert list(scrimp.train(small(), digits_dataset, tmp_path / "again", seed=3)) == lines[-1:]

    first, again = (scrimp.load_model(folder / "model").sample(4, seed=1) for folder in (trained, tmp_path / "again"))
    assert np.array_equal(first, again)


def test_a_training_can_be_longer_than_its_recipe(digits_dataset, tmp_path):
    *_, last = scrimp.train(small(), digits_dataset, tmp_path / "longer", kimg=0.08)
    assert last.images == 80


def test_a_model_samples_by_seed_and_number(trained):
    model = scrimp.load_model(str(trained / "model"), device="cpu")
    images = model.sample(5, seed=1, steps=2, batch_size=2)
    assert (images.shape, images.dtype) == ((5, 1, 8, 8), np.uint8)
    assert np.array_equal(model.sample(3, seed=1, steps=2), images[:3])
    assert not np.array_equal(model.sample(5, seed=2, steps=2), images)
    assert model.recipe == small()


def test_a_model_or_its_folder_is_scored(scored_digits, trained):
    scores = scrimp.evaluate(trained / "model", scored_digits, extractor="classifier", samples=20)
    assert scores["samples"] == 20
    assert scores["fd_classifier"] > 0
    assert scores["parameters"] >= scores["nonzero_parameters"] > 0
    assert scores == scrimp.evaluate(
        scrimp.load_model(trained / "model"), scored_digits.folder, extractor="classifier", samples=20
    )


def test_a_recipe_and_a_space_are_loaded_built_and_written(tmp_path):
    recipe = scrimp.Recipe.load("tiny-edm").replace({"optimizer.lr": 0.01})
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    assert scrimp.Recipe.load(tmp_path / "mine.yaml") == recipe

    space = scrimp.Space.of(**TREE)
    assert space == make_space()
    (tmp_path / "space.yaml").write_text(space.to_yaml())
    assert scrimp.Space.load(tmp_path / "space.yaml") == space
    assert "optimizer.lr" in scrimp.Space.load("quickstart").search


MISTAKES = [
    (lambda there: scrimp.Recipe.load("nope"), "recipe nope: no such preset or file"),
    (lambda there: scrimp.Recipe.load("tiny-edm").replace({"optimizer.speed": 1}), r"optimizer\.speed: a recipe"),
    (lambda there: scrimp.Recipe(optimizer={"lr": -1}), r"^optimizer\.lr: Input should be greater than 0, not -1$"),  # type: ignore
    (lambda there: scrimp.Recipe(sampler={"kind": "ddim"}), r"^sampler\.kind: 'ddim' needs a chain of steps"),  # type: ignore
    (lambda there: scrimp.Space.load("nope"), "space nope: no such space or file"),
    (lambda there: scrimp.Space.of(**TREE | {"search": {"speed": {"uniform": [0, 1]}}}), "space: speed: a recipe has"),
    (lambda there: scrimp.Space(**TREE | {"search": {}}), "^a space needs fields to search, or arms to compare$"),  # type: ignore
    (lambda there: scrimp.prepare("nothing", there / "out"), "nothing: no such folder or file"),
    (lambda there: scrimp.prepare("digits", there / "out", encoder="vae"), "--encoder needs --codec"),
    (lambda there: scrimp.prepare("digits", there / "out", codec="vqgan"), r"codec\.kind: Input should be"),  # type: ignore
    (lambda there: scrimp.open_dataset(there), r"not a dataset \(no dataset\.json\)"),
    (lambda there: scrimp.train("tiny-edm", there, there / "out"), r"not a dataset \(no dataset\.json\)"),
    (lambda there: scrimp.load_model(there), r"not a model \(no network's config\.json\)"),
    (lambda there: scrimp.evaluate(there, there), r"not a dataset \(no dataset\.json\)"),
    (lambda there: scrimp.sweep("nope"), "space nope: no such space or file"),
    (lambda there: scrimp.sweep(data=there), "not a dataset; make one with `scrimp prepare"),
    (lambda there: scrimp.sweep(storage=there, trials=0), r"budget\.trials: Input should be greater than or equal"),
    (lambda there: scrimp.sweep(storage=there, rungs=[3, 2]), r"budget: rungs_kimg must rise, not \[3\.0, 2\.0\]"),
    (lambda there: scrimp.sweep(storage=there, gpus_per_repeat=0), "--gpus-per-repeat 0: must be at least 1"),
    (lambda there: scrimp.sweep(storage=there, seed=-1), "--seed -1: must be at least 0"),
    (lambda there: scrimp.Result.load(there), r"not the folder of a sweep \(no sweep\.json\)"),
    (lambda there: scrimp.replay(there), r"not the folder of a sweep \(no sweep\.json\)"),
    (lambda there: scrimp.replay(there, methods=["best"]), "--method best: no such method; there are scrimp, halving"),
    (lambda there: scrimp.replay(there, seeds=0), "--seeds 0: must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, mistake, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(scrimp.UserError, match=message) as raised:
        mistake(tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"), [({"n": 0}, "n: must be at least 1"), ({"n": 2, "steps": 0}, r"sampler\.steps")]
)
def test_what_a_model_cannot_sample_is_refused(trained, values, message):
    with pytest.raises(scrimp.UserError, match=message):
        scrimp.load_model(trained / "model").sample(**values)


def test_a_finished_training_is_not_scored_in_two_ways(scored_digits, tmp_path):
    list(scrimp.train(small(), scored_digits, tmp_path / "out", extractor="classifier", samples=20))
    with pytest.raises(scrimp.UserError, match="finished, and scored by 20 samples"):
        scrimp.train(small(), scored_digits, tmp_path / "out", extractor="classifier", samples=30)


def assert_equal(one, other):
    """Compare results by all that they tell; numbers that are missing are nan, which equals nothing."""
    assert repr(one) == repr(other)
    assert str(one.leaderboard) == str(other.leaderboard)


def test_a_result_says_what_the_report_says(swept):
    result, space = scrimp.Result.load(swept.path), make_space()
    rows = leaderboard.rank(records.read_records(swept).trials, space)
    assert (result.reason, result.verdict, result.problems) == ("complete", leaderboard.verdict(rows, space), ())
    assert_equal(result, scrimp.Result.load(str(swept.path)))

    best = rows[0]
    assert result.best_recipe == scrimp.Recipe.load(swept.repeat(best.number, 0).recipe)
    with pytest.raises(scrimp.UserError, match="not a model"):  # these curves are made up
        result.model()


def test_the_leaderboard_is_that_of_the_csv_with_and_without_pandas(swept, monkeypatch):
    pandas = pytest.importorskip("pandas")
    space = make_space()
    leaderboard.write_csv(leaderboard.rank(records.read_records(swept).trials, space), space, swept)
    result, written = scrimp.Result.load(swept.path), pandas.read_csv(swept.leaderboard)
    frame = result.leaderboard
    assert isinstance(frame, pandas.DataFrame)
    pandas.testing.assert_frame_equal(frame, written, check_dtype=False)

    monkeypatch.setitem(sys.modules, "pandas", None)
    entries = result.leaderboard
    assert isinstance(entries, list)
    assert [entry["trial"] for entry in entries] == list(written["trial"])
    assert list(entries[0]) == list(written.columns)


def test_a_result_writes_its_report_again(swept):
    swept.report.unlink(missing_ok=True)
    scrimp.Result.load(swept.path).write_report()
    assert "<html" in swept.report.read_text()
    assert swept.leaderboard.is_file()


def test_presets_and_spaces_are_listed():
    assert scrimp.recipes()["edm"] == scrimp.Recipe.load("edm").about
    assert scrimp.spaces()["quickstart"] == scrimp.Space.load("quickstart").about


def test_the_status_of_a_storage_is_read(swept, tmp_path):
    found = scrimp.status(swept.path.parent)
    assert (found.unfinished, found.complete, found.problems) == ([], [swept.path.name], [])
    with pytest.raises(scrimp.UserError, match="no sweep there"):
        scrimp.status(tmp_path)


def test_images_are_scored_and_a_part_is_kept(scored_digits, tmp_path):
    folder = shutil.copytree(scored_digits.folder, tmp_path / "digits")
    scored = scrimp.score(folder, features="classifier", keep=0.25)
    assert scored.kept.mean() == pytest.approx(0.25, abs=0.02)
    assert scored.scores[scored.kept].mean() > scored.scores[~scored.kept].mean()
    with pytest.raises(scrimp.UserError, match="keep: "):
        scrimp.score(folder, keep=2)


def test_a_file_of_own_parts_is_checked(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(space, seed, number):\n    return {}\n")
    (outcome,) = scrimp.check(tmp_path / "mine.py")
    assert (outcome.kind, outcome.what) == ("mine:broken", "proposer")
    assert outcome.fault


def test_a_result_ranks_by_other_goals(swept):
    result = scrimp.Result.load(swept.path)
    smallest = result.rank({"parameters": "minimize"}, {"fd_classifier": {"max": 1000}})
    assert "parameters" in smallest.verdict
    assert smallest.space.constraints["fd_classifier"].max == 1000
    assert_equal(result.rank(), result)
    with pytest.raises(scrimp.UserError, match="kd_classifier: was not measured in this sweep"):
        result.rank({"kd_classifier": "minimize"})


def test_a_sweep_that_ends_early_says_why(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(), most=3, reason="interrupted")
    result = scrimp.Result.load(folder.path)
    assert result.reason == "interrupted"
    folder.outcome.unlink()
    assert scrimp.Result.load(folder.path).reason == "not over yet"


def test_without_a_winner_there_is_no_model(tmp_path):
    result = scrimp.Result.load(write_sweep(tmp_path / "sweep", make_space(), lambda repeat: "Diverged", 4).path)
    assert result.best_recipe is None
    with pytest.raises(scrimp.UserError, match="no best model; No trial has been trained to the end"):
        result.model()


def test_damaged_records_leave_the_best_open(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space())
    best = leaderboard.rank(records.read_records(folder).trials, make_space())[0]
    (folder.trial(best.number) / "trial.json").write_text("{}")
    result = scrimp.Result.load(folder.path)
    assert result.best_recipe is None
    assert len(result.problems) == 1


@pytest.mark.parametrize("status", [1, 130])
def test_a_sweep_that_does_not_end_well_returns_its_result(swept, monkeypatch, status):
    asked = []

    def run_sweep(options):
        asked.append(options)
        return the_sweep.Ending(swept, status)

    monkeypatch.setattr(the_sweep, "run_sweep", run_sweep)
    space = make_space()
    result = scrimp.sweep(space, "digits", rungs=[1, 2], warm_start=["earlier"])
    assert_equal(result, scrimp.Result.load(swept.path))
    assert asked == [plan.SweepOptions(space=space, rungs=(1, 2), warm_start=(Path("earlier"),))]


def test_a_space_made_in_python_is_planned_like_one_of_a_file(scored_digits, tmp_path):
    options = plan.SweepOptions(space=make_space(), data=str(scored_digits.folder), storage=tmp_path / "runs", trials=5)
    the_plan = plan.make_plan(options)
    assert the_plan.folder.path.name == "space-digits"
    assert sweep_record(the_plan)["space_name"] == "space"

    words = job.arguments(the_plan)
    file = Path(words[words.index("--space") + 1])
    again = plan.make_plan(plan.SweepOptions(space=str(file), data=options.data, storage=options.storage, trials=5))
    assert (again.space, again.folder) == (the_plan.space, the_plan.folder)


def test_outside_the_main_thread_signals_stay_as_they_are():
    import signal

    before, raised = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def work():
        try:
            with interrupt.contained(), interrupt.deferred(lambda: None):
                interrupt.listen()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not raised
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_process_that_goes_on_gets_its_handlers_back_and_no_noted_signal():
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.contained():
        interrupt.listen()
        with interrupt.deferred(lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.requested() == signal.SIGTERM
    assert interrupt.requested() is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_readmes_example_runs_as_it_stands(tmp_path):
    section = (ROOT / "README.md").read_text().split("## As a library")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 25
    (tmp_path / "example.py").write_text(code)
    # Not in a cluster that somebody has started on this machine.
    with tempfile.TemporaryDirectory(prefix="ray-") as apart:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_TMPDIR": apart, "MPLBACKEND": "agg"}
        answer = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
    assert answer.returncode == 0, answer.stderr
    result = scrimp.Result.load(tmp_path / "runs" / "two-trials")
    assert result.reason == "complete"
    assert result.verdict in answer.stdout
    assert result.model().sample(2).shape == (2, 1, 8, 8)
    assert (tmp_path / "leaderboard.png").stat().st_size > 1000


def test_nothing_public_lies_beside_the_public_names():
    for module in (sweeps, trainings):
        names = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        public = {name for name in names if not name.startswith("_")}
        assert public - {"dataset_folder"} <= set(scrimp.__all__)
