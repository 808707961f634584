"""What a person sees of a finished sweep in MLflow and in its report, in a headless Chromium: `make browser-test`.

Each test leaves a screenshot; `make browser-test` prints where they are.
"""

from pathlib import Path

import pytest
from made_up_sweep import make_space, write_sweep
from test_platform_registry import name_of, with_model
from test_trainers_export import MANIFEST, awake
from trainers_small import small

from scrimp_platform.report import leaderboard, page
from scrimp_platform.search import records
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import columns, mlflow_server
from scrimp_platform.tracking.mirror import Mirror

pytestmark = pytest.mark.browser

DESKTOP = {"width": 1600, "height": 1000}
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 60_000
SPACE = make_space(budget={"trials": 6})


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def server(storage):
    server = mlflow_server.join_or_start(Storage(storage))
    server.wait_until_ready()
    server.log_in()
    yield server
    server.release()


@pytest.fixture(scope="module")
def sweep(storage, server) -> SweepFolder:
    folder = write_sweep(storage / "made-up", SPACE)
    page.write_report(folder)
    Mirror(folder, server.uri).sync("complete")
    return folder


@pytest.fixture(scope="module")
def with_registered_model(storage, server) -> SweepFolder:
    recipe = small("tiny-ddpm", sampler__steps=4)
    folder = with_model(storage, awake(recipe), recipe, MANIFEST)
    Mirror(folder, server.uri).sync("complete")
    return folder


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(chromium, server, storage, request):
    """A browser's first visit; at the end it takes a screenshot."""
    password = (server.folder / mlflow_server.PASSWORD_FILE).read_text()
    login = {"username": mlflow_server.USER_NAME, "password": password}
    context = chromium.new_context(http_credentials=login, viewport=getattr(request, "param", DESKTOP))
    context.set_default_timeout(PATIENCE_MS)
    seen = context.new_page()
    yield seen
    seen.screenshot(path=storage / f"{request.node.name}.png")
    context.close()


def list_of_runs(server, storage: Path, dataset: str) -> str:
    return mlflow_server.experiment_links(Storage(storage), server.uri)[dataset]


def open_run(look, server, storage: Path, dataset: str, *names: str) -> None:
    """Open a run from the list: a sweep, or below it a trial, or below that a repeat."""
    look.goto(list_of_runs(server, storage, dataset))
    for name in names[:-1]:
        row = look.locator(".ag-row", has=look.get_by_role("link", name=name, exact=True)).first
        row.get_by_role("button").first.click()
    look.get_by_role("link", name=names[-1], exact=True).first.click()
    look.get_by_text("About this run").wait_for()


def test_the_list_begins_on_the_side_of_training_with_the_sweeps_columns(look, server, storage, sweep):
    look.goto(list_of_runs(server, storage, "digits"))
    look.get_by_text("fd_classifier_mean", exact=True).first.wait_for()
    places = [look.get_by_text(name, exact=True).first.bounding_box() for name in columns.shown(SPACE)[:4]]
    lefts = [place["x"] for place in places if place]
    assert len(lefts) == 4
    assert lefts == sorted(lefts)
    assert not look.get_by_text("Welcome to MLflow Assistant").is_visible()
    assert look.get_by_text("Model registry").is_visible()
    assert not look.get_by_text("Judges").is_visible()


def test_a_sweeps_run_begins_with_its_verdict_and_has_its_chart(look, server, storage, sweep):
    open_run(look, server, storage, "digits", "made-up")
    rows = leaderboard.rank(records.read_records(sweep).trials, SPACE)
    look.get_by_text(leaderboard.verdict(rows, SPACE)).first.wait_for()
    assert not look.get_by_text("Judges").is_visible()
    look.get_by_text("Model metrics").first.click()
    look.get_by_text("fd_classifier_best_so_far", exact=True).first.wait_for()
    look.locator(".js-plotly-plot").first.wait_for()


def test_trials_lie_in_the_sweep_and_repeats_in_the_trial(look, server, storage, sweep):
    open_run(look, server, storage, "digits", "made-up", "trial 0", "repeat 0.0")
    look.get_by_text("optimizer.lr").first.wait_for()


def test_the_samples_of_a_repeat_are_shown(look, server, storage, sweep):
    open_run(look, server, storage, "digits", "made-up", "trial 0", "repeat 0.0")
    look.get_by_text("Model metrics").first.click()
    look.mouse.move(900, 700)
    look.mouse.wheel(0, 10_000)
    look.locator("img[src*='samples']").first.wait_for()


def test_two_repeats_are_compared(look, server, storage, sweep):
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], "tags.`scrimp.key` LIKE '%.0'", max_results=2)
    chosen = ",".join(f'"{run.info.run_id}"' for run in runs)
    look.goto(f'{server.uri}/#/compare-runs?runs=[{chosen}]&experiments=["{experiment.experiment_id}"]')
    for run in runs:
        look.get_by_text(run.info.run_name).first.wait_for()
    look.get_by_text("fd_classifier", exact=True).first.wait_for()


def test_the_registered_model_has_its_aliases(look, server, storage, with_registered_model):
    look.goto(f"{server.uri}/#/models/{name_of(with_registered_model)}")
    look.get_by_text("recommended").first.wait_for()
    look.get_by_text("best").first.wait_for()


@pytest.mark.parametrize("look", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])
def test_the_report_fits_its_window(look, sweep):
    look.goto(sweep.report.as_uri())
    look.locator(".js-plotly-plot").first.wait_for()
    assert look.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
