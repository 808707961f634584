"""The report's page: everything promised is on it, in every state of a sweep, and nothing comes from elsewhere."""

import csv
import html
import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import made_up_sweep
import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from made_up_rows import make_row
from made_up_sweep import TREE, make_dataset, make_space, write_sweep
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from scrimp_platform import store
from scrimp_platform.cli import commands
from scrimp_platform.report import (
    classwise,
    cost_plots,
    field_plots,
    formatting,
    hours,
    importance,
    leaderboard,
    page,
    pictures,
    plots,
    scale,
    sections,
)
from scrimp_platform.report.layers import read_layers
from scrimp_platform.search import curves, posterior, records
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import DamagedRecord

SECTIONS = [
    *("next", "facts", "leaderboard", "scale", "race", "samples"),
    *("training", "search", "cost", "faults", "origin"),
]
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Reads a page: its text without scripts and styles, the ids, what it refers to; and that its tags are balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.stack
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        found = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "a":
            self.links += found
        else:
            self.loaded += found

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] not in (["script"], ["style"]):
            self.words.append(data)
        elif self.stack[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data


def read_page(folder: SweepFolder) -> Page:
    page.write_report(folder)
    return Page(folder.report.read_text())


def traces(figure: go.Figure) -> list[Any]:
    return list(figure.data)


def fate(repeat: records.Repeat) -> str:
    if repeat.trial == 3:
        return "step 412: loss is <b>nan</b>"
    return "its worker died" if (repeat.trial, repeat.attempt) == (1, 1) else ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep that ran to its end."""
    space = make_space(budget={"trials": 16, "leaders": 4})
    folder = write_sweep(tmp_path_factory.mktemp("runs") / "made-up", space, fate)
    folder.repeat(1, 0).error.write_text("Traceback\n  in worker\nConnectionError: the node went away\n")
    return folder


@pytest.fixture(scope="module")
def seen(whole: SweepFolder) -> Page:
    return read_page(whole)


def test_every_section_is_there_once_and_the_verdict_on_top(whole, seen):
    space = make_space(budget={"trials": 16, "leaders": 4})
    rows = leaderboard.rank(records.read_records(whole).trials, space)
    assert [name for name in seen.ids if name in SECTIONS] == SECTIONS
    assert leaderboard.verdict(rows, space) in seen.text[:400]
    assert rows[0].repeat_count >= 2
    for row in rows:
        assert leaderboard.score_text(row, "fd_classifier") in seen.text


def test_the_page_needs_no_network(whole, seen):
    assert seen.loaded
    assert all(source.startswith("data:") for source in seen.loaded)
    assert whole.report.read_text().count("plotly.js v") == 1


def test_of_many_trials_the_first_are_shown_until_all_are_asked_for(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "AT_FIRST", 5)
    page.write_report(whole)
    rows = re.findall(r'data-status="\w+"( hidden)?>', whole.report.read_text())
    assert rows == [""] * 5 + [" hidden"] * 11
    monkeypatch.undo()
    page.write_report(whole)


IN_BROWSER = """<script>
addEventListener("load", () => {
  const table = document.querySelector("#leaderboard table");
  const form = document.querySelector("#leaderboard form");
  const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => +row.cells[1].textContent);
  const button = (name) => [...table.querySelectorAll("th button")].find((each) => each.textContent === name);
  const type = (words) => {
    form.elements.words.value = words;
    form.dispatchEvent(new Event("input"));
    return shown();
  };
  const said = { first: shown() };
  button("parameters").click();
  said.up = shown();
  said.sorted = button("parameters").closest("th").getAttribute("aria-sort");
  button("parameters").click();
  said.down = shown();
  button("#").click();
  said.bound = type("repeats>=2");
  said.word = type("pruned dropout<0.15");
  said.none = type("nothing<1");
  said.message = form.querySelector("output").value;
  type("");
  form.elements.status.value = "beaten";
  form.dispatchEvent(new Event("input"));
  said.status = shown();
  said.drawn = document.querySelectorAll(".js-plotly-plot .main-svg").length > 0;
  document.documentElement.innerHTML = `<pre id="said">${JSON.stringify(said)}</pre>`;
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_in_a_browser_the_leaderboard_sorts_and_filters(whole, seen, tmp_path):
    page_with_script = tmp_path / "report.html"
    page_with_script.write_text(whole.report.read_text().replace("</body>", f"{IN_BROWSER}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", page_with_script.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r'<pre id="said">(.*?)</pre>', dom)
    assert match
    said = json.loads(html.unescape(match[1]))

    rows = leaderboard.rank(records.read_records(whole).trials, make_space(budget={"trials": 16, "leaders": 4}))
    sizes = {row.number: row.parameters for row in rows}
    known = [number for number in sizes if math.isfinite(sizes[number])]
    unknown = [number for number in sizes if number not in known]
    assert said["first"] == [row.number for row in rows]
    assert said["up"] == sorted(known, key=lambda number: sizes[number]) + unknown
    assert said["sorted"] == "ascending"
    assert [sizes[number] for number in said["down"][: len(known)]] == sorted(
        map(sizes.__getitem__, known), reverse=True
    )
    assert said["down"][len(known) :] == unknown
    assert said["bound"] == [row.number for row in rows if row.repeat_count >= 2]
    low = [row.number for row in rows if row.trial.params["network.dropout"] < 0.15]
    assert said["word"] == [row.number for row in rows if row.status == "pruned" and row.number in low]
    assert (said["none"], said["message"]) == ([], "no column for nothing<1")
    assert said["status"] == [row.number for row in rows if row.status == "beaten"]
    assert said["drawn"]


def test_all_plots_have_their_data(seen):
    drawn = {name for name in seen.ids if name not in [*SECTIONS, "filter-help"]}
    assert drawn == {
        "fd_classifier-of-the-raced-trials", "fd_classifier-against-time", "fd_classifier-over-training",
        "Training-loss", "fd_classifier-by-trial", "Field-importance", "Searched-fields",
        "fd_classifier-by-optimizer-lr", "fd_classifier-by-network-channels", "fd_classifier-by-network-dropout",
        "fd_classifier-by-ema-halflife_kimg", "Device-hours-by-phase",
    }  # fmt: skip


def test_samples_of_the_three_best_each_rung_of_the_best_and_its_neighbours_are_embedded(seen):
    assert sum(source.startswith("data:image/png;base64,") for source in seen.loaded) == 3 + 4 + 1
    assert "1.2% of held-out images as a control" in seen.text


def test_links_lead_to_the_folders_of_trials_and_to_the_best_ones_files(tmp_path):
    folder = write_sweep(tmp_path / "my sweep", make_space(budget={"trials": 2, "repeats": 1}))
    folder.repeat(0, 0).model.mkdir()
    folder.repeat(1, 0).model.mkdir()
    store.write_json(folder.tracking, {"uri": "http://lab:5000", "experiment": "3"})
    commands.report(folder.path)
    seen = Page(folder.report.read_text())
    *local, runs = [link for link in seen.links if "trials/" in link or "://" in link][:4]
    assert local[0].endswith("/model/")
    assert runs.startswith("http://lab:5000/#/experiments/3")
    assert {"leaderboard.csv", "best_recipe.yaml", "trials/0000/", "trials/0001/"} <= set(seen.links)
    for link in seen.links:
        assert "://" in link or (folder.path / unquote(link)).exists()


def test_a_link_to_mlflow_is_an_address_of_the_web(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget={"trials": 1, "repeats": 1}))
    store.write_json(folder.tracking, {"uri": "javascript:alert(1)", "experiment": "3"})
    assert not [link for link in read_page(folder).links if "javascript" in link]


def test_what_a_killed_driver_left_running_takes_no_more_time(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(), most=1)
    files = folder.repeat(0, 0)
    store.write_json(files.record, store.read_json(files.record) | {"started": time.time() - 3600_000})
    commands.report(folder.path)
    with folder.leaderboard.open(newline="") as file:
        assert [row["gpu_hours"] for row in csv.DictReader(file)] == [""]
    text = Page(folder.report.read_text()).text
    assert "Repeats 1 waiting" in text
    assert "Device time 0 s" in text


def test_the_best_recipe_of_an_earlier_end_goes_when_none_is_best_any_more(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget={"trials": 1}), lambda repeat: "its worker died")
    folder.best_recipe.write_text("about: was best once\n")
    commands.report(folder.path)
    assert not folder.best_recipe.exists()


def test_failures_are_seen_with_their_cause_also_where_a_further_attempt_mended_them(seen):
    assert "step 412: loss is <b>nan</b>" in seen.text
    assert "ConnectionError: the node went away" in seen.text


def test_the_winner_can_be_used_as_the_page_says(tmp_path):
    folder = write_sweep(tmp_path / "runs" / "my sweep", make_space(budget={"trials": 1, "repeats": 1}))
    model = folder.repeat(0, 0).model
    model.mkdir()
    (model / "README.md").write_text("# Card\n```python\nimport torch  # <3\n```\n")
    text = read_page(folder).text
    dataset = tmp_path / "runs" / "datasets" / "digits"
    assert f"scrimp train '{folder.best_recipe}' {dataset} 'my sweep-again' --seed 1" in text
    assert f"scrimp sample '{folder.path}' 'my sweep-samples'" in text
    assert "&& scrimp train" in text  # twice as long: from the checkpoint
    assert "import torch # <3" in text


def test_names_from_the_data_are_escaped(tmp_path):
    search = {"optimizer.kind": {"choice": ["adam", "adamw"]}, **TREE["search"]}
    folder = write_sweep(tmp_path / "sweep", make_space(search=search, budget={"trials": 4}))
    evil = "<script>alert('x')</script>&amp;"
    sweep = store.read_json(folder.description)
    sweep["name"] = sweep["dataset"]["name"] = evil
    make_dataset(Path(sweep["dataset"]["folder"]), evil)
    sweep["space"]["about"] = evil
    store.write_json(folder.description, sweep)
    seen = read_page(folder)
    assert "alert('x')</script>" not in folder.report.read_text()
    assert seen.text.count(evil) >= 4


@pytest.mark.parametrize(
    ("most", "says"),
    [
        (0, "No trial has begun."),
        (1, "No trial has been trained to the end: 1 running."),
        (18, "in the repeat by which it was chosen"),
        (20, "leads with"),
    ],
)
def test_a_sweep_that_was_interrupted_has_a_true_page(tmp_path, most, says):
    folder = write_sweep(tmp_path / "sweep", make_space(), most=most, reason="interrupted")
    seen = read_page(folder)
    assert says in seen.text
    assert re.search(r"Ended early, .* UTC: interrupted", seen.text)
    assert "with probability" not in seen.text
    assert [name for name in SECTIONS if name in seen.ids or name == "scale"] == SECTIONS


def test_a_sweep_that_still_runs_says_so(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(), most=3)
    folder.outcome.unlink()
    assert "Not ended: this is what is known so far" in read_page(folder).text


def test_several_objectives_and_a_constraint_have_their_plots_and_columns(tmp_path):
    space = make_space(
        objectives={"fd_classifier": "minimize", "train_flops": "minimize"},
        constraints={"memorized_fraction": {"max": 0.029}},
    )
    seen = read_page(write_sweep(tmp_path / "sweep", space))
    assert {"fd_classifier-against-train_flops", "train_flops-by-trial"} <= set(seen.ids)
    assert "Pareto front" in seen.text
    assert "memorized_fraction at most 0.029" in seen.text


@pytest.fixture(scope="module")
def constrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Space]:
    """A sweep of which some trials violate a constraint."""
    space = make_space(constraints={"memorized_fraction": {"max": 0.024}}, proposals="random")
    return write_sweep(tmp_path_factory.mktemp("runs") / "constrained", space), space


def test_every_plot_tells_which_trials_are_infeasible(constrained):
    folder, space = constrained
    trials = records.read_records(folder).trials
    rows = leaderboard.rank(trials, space)
    broken = plots.infeasible(rows)
    assert broken
    assert broken < {row.number for row in rows if row.finished}

    figures = {
        "history": plots.history(trials, rows, space, "fd_classifier"),
        "curves": plots.learning_curves(trials, rows, space, "fd_classifier"),
        "tradeoff": plots.tradeoff(rows, space, "fd_classifier"),
    }
    for name, figure in figures.items():
        (own,) = [trace for trace in traces(figure) if trace.name == "infeasible"]
        numbers = {int(re.match(r"trial (\d+)", text)[1]) for text in own.hovertext if text}  # type: ignore[index]
        assert numbers == broken, name
        (front,) = [trace for trace in traces(figure) if trace.name == "Pareto front"] or [None]
        if front:
            assert not set(own.y) & set(front.y)
    lines = traces(field_plots.parallel_coordinates(rows, space, "fd_classifier"))
    dotted = [text for trace in lines if trace.line.dash == "dot" for text in trace.hovertext if text]
    assert {int(text.split(",")[0].removeprefix("trial ")) for text in dotted} == broken


def test_the_best_so_far_keeps_the_constraints(constrained):
    folder, space = constrained
    trials = records.read_records(folder).trials
    rows = leaderboard.rank(trials, space)
    (best,) = [
        trace for trace in traces(plots.history(trials, rows, space, "fd_classifier")) if trace.name == "best so far"
    ]
    broken = plots.infeasible(rows)
    feasible = [trial.repeats[0].score("fd_classifier", 60.0) for trial in trials if trial.number not in broken]
    assert min(best.y) == min(score for score in feasible if math.isfinite(score))


def test_real_images_stand_beside_the_scores(tmp_path, monkeypatch):
    plain = made_up_sweep.curve

    def curve(*arguments: Any) -> Any:
        for row in plain(*arguments):
            if row.rung is not None:
                row.scores.update(fd_classifier_real=2.125, fd_classifier_holdout=4.5, reference_samples=1617.0)
            yield row

    monkeypatch.setattr(made_up_sweep, "curve", curve)
    space = make_space(budget={"trials": 3, "leaders": 2})
    folder = write_sweep(tmp_path / "sweep", space)
    seen = read_page(folder)
    assert "It is not FID" in seen.text
    assert "reference images against other reference images 2.12 808 at random against the 809 others" in seen.text
    assert "held-out images against the reference images 4.50" in seen.text

    trials = records.read_records(folder).trials
    rows = leaderboard.rank(trials, space)
    (own,) = scale.scales(rows, space, None)
    assert [(mark.short, mark.value) for mark in own.real] == [("real against real", 2.125), ("held-out images", 4.5)]
    real = {mark.short: mark.value for mark in own.real}
    figure = plots.learning_curves(trials, rows, space, "fd_classifier", real)
    assert {trace.name: set(trace.y) for trace in traces(figure) if trace.name in real} == {
        "real against real": {2.125},
        "held-out images": {4.5},
    }


def test_a_sweep_from_before_real_images_were_measured_says_so(seen):
    assert "scored before Scrimp measured it" in seen.text


def test_scores_of_no_frechet_distance_have_no_scale(constrained):
    folder, space = constrained
    rows = leaderboard.rank(records.read_records(folder).trials, space)
    assert scale.scales(rows, space.model_copy(update={"objectives": {"train_flops": "minimize"}}), None) == []


def worked(phase: Any, seconds: float, spent: float, stints: list[list[Any]]) -> records.Repeat:
    """A repeat that saw 20 kimg at 1,000 images a second, with rungs at 10 and 20 kimg."""
    rows = {kimg: make_row(kimg=kimg, seconds=seconds * kimg / 20, rung=kimg) for kimg in (10.0, 20.0)}
    return records.Repeat(0, 0, 0, phase, "finished", spent=spent, devices=2, stints=stints, rungs=rows)


def test_hours_are_those_of_training_scoring_and_the_rest():
    search = worked("search", seconds=25.0, spent=36.0, stints=[])
    race = worked("race", seconds=20.0, spent=20.0, stints=[])
    known = records.Records([records.Trial(0, {}, repeats=[search, race])], [], [])
    first, second = hours.by_phase(known)
    assert [first.phase, second.phase] == ["search", "race"]
    assert [3600 * value for value in (first.training, first.scoring, first.other)] == pytest.approx([40, 10, 22])
    assert [3600 * value for value in (second.training, second.scoring, second.other)] == pytest.approx([40, 0, 0])
    assert first.total == search.device_hours


def test_the_work_of_nodes_is_all_of_their_stints():
    stints = [["a", 0.0, 48.0], ["a", 24.0, 72.0], ["b", 90.0, 96.0]]
    work = hours.by_node([worked("search", 20.0, 20.0, stints)])
    assert work is not None
    assert work.nodes == ["a", "b"]
    one, other = work.repeats
    assert sum(one) == pytest.approx(96)
    assert one[:24] == pytest.approx([1] * 24)
    assert one[24:48] == pytest.approx([2] * 24)
    assert sum(other) == pytest.approx(6)
    assert work.share == pytest.approx((72 / 96 + 6 / 96) / 2)
    assert hours.by_node([worked("search", 20.0, 20.0, [])]) is None


def test_where_and_when_devices_worked_is_drawn_with_names_escaped(whole, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    work = hours.by_node([worked("search", 20.0, 20.0, [[evil, 0.0, 7200.0]])])
    assert work is not None
    figure: Any = cost_plots.node_work(work)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 1)
    body = sections.make_plot("Nodes", "", figure, "").body
    assert body
    assert "<img" not in body


def test_densities_of_sparse_layers_and_the_coreset_are_shown(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget={"trials": 2, "leaders": 1}))
    table = "name,shape,masked,density,flops_share\nin.weight,3x3,False,1,0.1\n<b>mid</b>,3x3,True,0.25,0.9\n"
    for files in folder.repeats():
        files.layers.write_text(table)
        Image.new("RGB", (8, 8)).save(files.coreset_png)
    seen = read_page(folder)
    assert {"Density-by-layer", "coreset"} <= set(seen.ids)
    assert "what its coreset keeps most clearly" in seen.text
    assert "<b>mid" not in folder.report.read_text()
    layers = read_layers(folder.repeat(0, 0))
    assert [(layer.masked, layer.density) for layer in layers] == [(False, 1.0), (True, 0.25)]
    masked, dense = traces(cost_plots.layer_densities({0: layers}, {0: "#000000"}))
    assert (list(masked.y), list(dense.y)) == ([0.25], [1.0])


def test_a_damaged_table_of_layers_is_left_out(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget={"trials": 1, "repeats": 1}))
    folder.repeat(0, 0).layers.write_text("name,shape\nin.weight,3x3\n")
    assert read_layers(folder.repeat(0, 0)) == []


@pytest.fixture(scope="module")
def classed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Space]:
    """A sweep that was scored by class."""
    space = make_space(objectives={"fd_classifier_class_mean": "minimize"})
    return write_sweep(tmp_path_factory.mktemp("runs") / "by-class", space), space


def test_scores_within_classes_have_a_plot_and_a_table(classed):
    folder, space = classed
    seen = read_page(folder)
    assert {"classes", "fd_classifier-by-class"} <= set(seen.ids)
    rows = leaderboard.rank(records.read_records(folder).trials, space)
    names = [f"class {i}" for i in range(10)]
    found = classwise.class_scores(rows, plots.leader_colours(rows), names)
    assert found is not None
    assert (found.name, found.classes) == ("fd_classifier", names)
    raced = [row for row in rows if row.raced]
    assert list(found.trials) == list(found.means) == [row.number for row in raced]
    for row in raced:
        assert found.means[row.number] == row.summaries["fd_classifier_class_mean"]
        place = raced.index(row)
        samples = [[repeat.score("fd_classifier_class_7", 60.0) for repeat in one.counted] for one in raced]
        assert found.trials[row.number][7] == posterior.of_scores(samples, "minimize").summaries[place]
        assert formatting.interval(found.trials[row.number][7]) in seen.text


def test_the_plot_by_class_shows_the_tables_intervals(classed):
    folder, space = classed
    rows = leaderboard.rank(records.read_records(folder).trials, space)
    found = classwise.class_scores(rows, plots.leader_colours(rows), None)
    assert found is not None
    bars = traces(plots.class_bars(found, plots.leader_colours(rows)))
    assert len(bars) == len(found.trials) >= 2
    for bar, summaries in zip(bars, found.trials.values(), strict=True):
        assert list(bar.x) == [str(i) for i in range(10)]
        assert list(bar.y) == [summary.mean for summary in summaries]
        assert list(bar.error_y.array) == [summary.high - summary.mean for summary in summaries]
        assert list(bar.error_y.arrayminus) == [summary.mean - summary.low for summary in summaries]


def test_without_scores_within_classes_there_is_nothing_about_them(whole, seen):
    rows = leaderboard.rank(records.read_records(whole).trials, make_space())
    assert classwise.class_scores(rows, plots.leader_colours(rows), None) is None
    assert "classes" not in seen.ids


def test_conditional_fields_leave_a_gap_where_they_were_not_searched(tmp_path):
    decay = {"uniform": [0.0, 0.1], "when": {"optimizer.kind": ["adamw"]}}
    search = {"optimizer.kind": {"choice": ["adam", "adamw"]}, "optimizer.weight_decay": decay}
    space = make_space(search=search, budget={"trials": 8})
    folder = write_sweep(tmp_path / "sweep", space)
    rows = leaderboard.rank(records.read_records(folder).trials, space)
    decays = {}
    for trace in traces(field_plots.parallel_coordinates(rows, space, "fd_classifier")):
        for x, y, text in zip(trace.x, trace.y, trace.hovertext, strict=True):
            if x == 1:
                decays[text.split(",")[0]] = y
    assert {row.trial.params["optimizer.kind"] for row in rows} == {"adam", "adamw"}
    for row in rows:
        assert (decays[f"trial {row.number}"] is None) == (row.trial.params["optimizer.kind"] == "adam")


def test_the_race_plot_shows_the_leaderboards_intervals(whole):
    space = make_space(budget={"trials": 16, "leaders": 4})
    rows = leaderboard.rank(records.read_records(whole).trials, space)
    means = [trace for trace in traces(plots.raced_trials(rows, "fd_classifier")) if trace.error_x.array is not None]
    raced = [row for row in rows if row.raced]
    assert len(means) == len(raced) >= 2
    for trace, row in zip(means, raced, strict=True):
        summary = row.summaries["fd_classifier"]
        assert trace.x[0] == summary.mean
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(summary.high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(summary.low)
        assert summary.low > 0


def test_importances_are_optunas_own(whole):
    storage = JournalStorage(JournalFileBackend(str(whole.journal)))
    study = optuna.load_study(study_name="scrimp", storage=storage)
    space = make_space(proposals="tpe")
    trials = records.read_records(whole).trials
    ended = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    few = importance.field_importances(trials, space)
    assert few == f"Skipped: it needs 6 trials, and there are {len(ended)}."

    # With the curve model all trials count that have a score.
    expected = curves.expected_scores(trials, make_space())
    assert expected
    assert len(expected) > len(ended)
    judged = optuna.create_study()
    for trial in study.trials:
        if trial.number in expected:
            score = expected[trial.number]
            judged.add_trial(
                optuna.trial.create_trial(value=score, params=trial.params, distributions=trial.distributions)
            )
    shares = importance.field_importances(trials, make_space())
    assert shares == pytest.approx(optuna.importance.get_param_importances(judged))


def test_importances_of_few_trials_are_skipped_with_the_reason(tmp_path):
    folder = write_sweep(tmp_path / "sweep", make_space(budget={"trials": 3}))
    shares = importance.field_importances(records.read_records(folder).trials, make_space())
    assert isinstance(shares, str)
    assert "6 trials" in shares


def test_a_large_or_broken_picture_does_not_burden_the_page(tmp_path):
    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "large.png").read_bytes()[:200])
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    large = pictures.read_picture(tmp_path / "large.png", "large")
    noisy = pictures.read_picture(tmp_path / "noise.png", "noise")
    assert large is not None
    assert noisy is not None
    assert (large.width, large.height) == (1024, 512)
    assert noisy.source.startswith("data:image/webp;base64,")
    assert len(noisy.source) < (tmp_path / "noise.png").stat().st_size
    with pytest.raises(DamagedRecord, match=r"half\.png: a damaged image"):
        pictures.read_picture(tmp_path / "half.png", "half")
    assert pictures.read_picture(tmp_path / "none.png", "none") is None


def test_a_band_needs_more_than_one_pair_of_seeds(whole):
    space = make_space(budget={"trials": 16, "leaders": 4})
    trials = records.read_records(whole).trials
    rows = [row for row in leaderboard.rank(trials, space) if row.raced]

    def bands(shown: list[leaderboard.TrialRow]) -> list[Any]:
        figure = plots.learning_curves(trials, shown, space, "fd_classifier")
        return [trace for trace in traces(figure) if trace.fill == "toself"]

    assert {row.repeat_count for row in rows} == {2}
    assert bands(rows[:1]) == []
    drawn = bands(rows)
    assert len(drawn) == len(rows) >= 3
    assert all(min(band.y) > 0 for band in drawn)
