"""References and proxies as entries of the ledger: trained once, before the repeats that need them, and charged."""

import os
import random
import shutil
from dataclasses import replace

import pytest
from made_up_rows import make_row
from made_up_sweep import next_preparation
from test_platform_ledger import score
from test_platform_race import make_space
from trainers_small import small

from scrimp_platform import plan, store, worker
from scrimp_platform.cli import plan_view, status, status_view, terminal
from scrimp_platform.cluster import Node, place
from scrimp_platform.plan import SweepOptions
from scrimp_platform.report import formatting
from scrimp_platform.search import estimate, records, verdict
from scrimp_platform.search.estimate import Speed
from scrimp_platform.search.ledger import MAX_HELD, Ledger
from scrimp_platform.search.records import Preparation, Repeat
from scrimp_platform.store import SweepFolder
from scrimp_platform.sweep_record import sweep_record
from scrimp_spaces.space import load_space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.needs import needs

RUNGS = (20.0, 60.0)
BUDGET = {"trials": 6, "rungs_kimg": list(RUNGS), "reduction": 2, "leaders": 2, "repeats": 3, "retries": 1}
WEIGHED = {"reweighting.method": {"choice": ["none", "dro"]}}
ALWAYS = {"override": {"reweighting.method": "dro"}, "search": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}}}


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


def open_ledger(folder, space=None, say=lambda _: None) -> Ledger:
    folder.path.mkdir(exist_ok=True)
    return Ledger(folder, space or make_space(**ALWAYS, budget=BUDGET), 0, devices=2, say=say)


def finish(ledger, work, hours=1.0, now=True) -> None:
    """Do what a worker does; a preparation has taken so many device-hours."""
    if isinstance(work, Preparation):
        ledger.charge(work, hours, now)
        ledger.finish(work)
        return
    files = ledger.folder.repeat(work.trial, work.repeat)
    done = {row.rung for row in metrics_log.read_rows(files.metrics)}
    for rung in RUNGS:
        row = score(work, rung, {"optimizer.lr": 1e-3})
        if rung not in done:
            with files.metrics.open("a") as file:
                file.write(metrics_log.row_text(row))
        if not ledger.report(work, row):
            return
    ledger.finish(work)


def run_all(ledger, most=10_000) -> list[str]:
    """Train one thing after the other; return the names of what was handed out."""
    handed_out = []
    while len(handed_out) < most and (work := ledger.propose()):
        handed_out.append(work.name if isinstance(work, Preparation) else f"{work.trial}.{work.repeat}")
        finish(ledger, work)
    return handed_out


# --- what a recipe needs


def recipe(**values):
    return recipes.load("prune-reweight-cifar10").replace({name.replace("__", "."): v for name, v in values.items()})


def names(*arguments, **values):
    return [need.name for need in needs(recipe(**values), *arguments or (0,))]


def test_a_recipe_needs_a_reference_then_a_proxy_and_one_without_class_weights_needs_nothing():
    assert [(need.kind, need.kimg) for need in needs(recipe(), 0)] == [("reference", 1000.0), ("proxy", 1000.0)]
    assert [need.kind for need in needs(recipe(reweighting__method="group_dro"), 0)] == ["proxy"]
    assert needs(recipe(reweighting__method="none"), 0) == []


def test_a_reference_that_the_recipe_names_is_not_trained(tmp_path):
    assert [need.kind for need in needs(recipe(reweighting__reference=tmp_path), 0)] == ["proxy"]


def test_recipes_share_what_is_the_same_and_nothing_else():
    reference, proxy = names()
    assert names(7) == [reference, proxy]  # the coreset is the same for all seeds
    assert names(optimizer__lr=0.5) == names(reweighting__enters="sampling") == [reference, proxy]
    assert names(reweighting__method="random") == names(reweighting__method="inverse") == [reference, proxy]
    for values in ({"coreset__keep": 0.2}, {"coreset__keep": 1.0}, {"reweighting__eta": 1.0}):
        assert names(**values)[0] == reference
        assert names(**values)[1] != proxy
    assert not set(names(reweighting__kimg=10.0)) & {reference, proxy}
    assert names(1, coreset__score="random")[1] != names(2, coreset__score="random")[1]


# --- the ledger


def test_what_repeats_need_is_trained_once_and_first(folder):
    ledger = open_ledger(folder)
    handed_out = run_all(ledger)
    first, second, *others = handed_out
    assert first.startswith("reference-")
    assert second.startswith("proxy-")
    assert others[0] == "0.0"
    assert not any("-" in name for name in others)
    assert len(ledger.trials) == 6
    assert {trial.status for trial in ledger.trials} == {"complete", "pruned"}


def test_repeats_are_held_while_what_they_need_runs_and_others_go_on(folder):
    space = make_space(search=WEIGHED | ALWAYS["search"], budget=BUDGET | {"trials": 40})
    ledger = open_ledger(folder, space)
    handed_out = [ledger.propose() for _ in range(6)]
    running = [work for work in handed_out if isinstance(work, Repeat)]
    (reference,) = [work for work in handed_out if isinstance(work, Preparation)]
    assert reference.kind == "reference"
    assert len(running) == 5
    methods = {trial.number: trial.params["reweighting.method"] for trial in ledger.trials}
    assert {methods[repeat.trial] for repeat in running} == {"none"}
    held = [repeat for repeat in ledger.repeats if repeat.status == "waiting"]
    assert held
    assert {methods[repeat.trial] for repeat in held} == {"dro"}

    finish(ledger, reference)
    proxy = ledger.propose()
    assert isinstance(proxy, Preparation)
    assert proxy.kind == "proxy"
    finish(ledger, proxy)
    assert ledger.propose() is held[0]


def test_no_more_is_proposed_blindly_than_a_few_while_all_wait_for_one_reference(folder):
    ledger = open_ledger(folder, make_space(**ALWAYS, budget=BUDGET | {"trials": 60}))
    reference = ledger.propose()
    assert [ledger.propose() for _ in range(3)] == [None] * 3
    assert len(ledger.trials) == MAX_HELD
    finish(ledger, reference)
    assert isinstance(ledger.propose(), Preparation)


def test_a_sweep_pays_once_and_every_recipe_in_full(folder):
    ledger = open_ledger(folder)
    run_all(ledger)
    repeats = sum(repeat.device_hours for repeat in ledger.repeats)
    assert ledger.device_hours == pytest.approx(repeats + 2.0)

    row = make_row(seconds=1800.0, prepared_device_hours=2.0)
    weighed = Repeat(0, 1, 1, "race", "finished", devices=2, rungs={60.0: row})
    plain = Repeat(1, 1, 1, "race", "finished", devices=2, rungs={60.0: make_row(seconds=3600.0)})
    assert (weighed.device_hours, plain.device_hours) == (1.0, 2.0)
    assert verdict.repeat_cost([weighed], 60.0).hours == 3.0
    assert verdict.repeat_cost([plain], 60.0).hours == 2.0


def test_what_was_found_in_the_cache_costs_the_sweep_nothing(folder):
    ledger = open_ledger(folder)
    reference = ledger.propose()
    finish(ledger, reference, hours=50.0, now=False)
    assert ledger.device_hours == pytest.approx(0.0, abs=1e-6)


def test_the_hours_of_a_reference_end_the_sweep_that_they_exhaust(folder):
    ledger = open_ledger(folder, make_space(**ALWAYS, budget=BUDGET | {"max_gpu_hours": 5}))
    finish(ledger, ledger.propose(), hours=6.0)
    assert ledger.exhausted() == "max_gpu_hours 5 reached"


@pytest.mark.parametrize("most", range(12))
def test_a_driver_that_is_killed_at_any_point_trains_nothing_twice(folder, most):
    whole = open_ledger(SweepFolder(folder.path.parent / "whole"))
    run_all(whole)

    ledger = open_ledger(folder)
    handed_out = run_all(ledger, most)
    ledger.propose()  # and dies while it runs
    resumed = open_ledger(folder)
    handed_out += run_all(resumed)
    assert sum("-" in name for name in handed_out) == 2
    assert resumed.device_hours == pytest.approx(whole.device_hours)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]
    assert [trial.status for trial in resumed.trials] == [trial.status for trial in whole.trials]


def test_a_reference_that_was_finished_when_its_driver_died_is_charged(folder):
    ledger = open_ledger(folder)
    reference = next_preparation(ledger)
    ledger.clock(reference, working=True)

    ledger = open_ledger(folder)
    again = next_preparation(ledger)
    assert again.name == reference.name
    finish(ledger, again, hours=3.0, now=False)  # its worker finds it finished
    assert ledger.device_hours == pytest.approx(3.0)


def test_a_damaged_record_of_a_reference_is_named_and_the_reference_asked_for_again(folder):
    ledger = open_ledger(folder)
    reference = next_preparation(ledger)
    finish(ledger, reference)
    folder.preparation(reference.name).record.write_text("{")
    said: list[str] = []
    ledger = open_ledger(folder, say=said.append)
    assert f"the device-hours of {reference.name} are left out" in said[0]
    assert next_preparation(ledger).name == reference.name


def test_a_reference_that_fails_is_tried_again_and_then_fails_what_needs_it(folder):
    said: list[str] = []
    ledger = open_ledger(folder, make_space(**ALWAYS, budget=BUDGET | {"trials": 40}), said.append)
    reference = next_preparation(ledger)
    ledger.finish(reference, "Diverged: step 3: loss is nan")
    ledger.finish(next_preparation(ledger), "Diverged: step 3: loss is nan")
    assert f"{reference.name} failed (Diverged: step 3: loss is nan); starting attempt 2" in said

    assert ledger.propose() is None
    assert [trial.status for trial in ledger.trials] == ["failed"] * 3
    assert "3 trials in a row failed with the same error (reference-" in ledger.exhausted()
    assert ledger.in_vain

    again = open_ledger(folder, make_space(**ALWAYS, budget=BUDGET | {"trials": 40})).propose()
    assert isinstance(again, Preparation)  # another run of the sweep tries it again


def test_a_withdrawn_reference_is_handed_out_again(folder):
    said: list[str] = []
    ledger = open_ledger(folder, say=said.append)
    reference = next_preparation(ledger)
    ledger.withdraw(reference)
    assert said[-1] == f"withdrawing {reference.name}, which was waiting: the healthy nodes have changed"
    assert ledger.propose() is reference
    assert reference.attempt == 1


def test_status_and_report_show_what_was_needed(folder, capsys):
    ledger = open_ledger(folder)
    finish(ledger, next_preparation(ledger))
    proxy = next_preparation(ledger)
    known = records.read_records(folder)
    assert [own.status for own in known.preparations] == ["running", "finished"]
    shown = status.SweepStatus(
        **vars(known),
        folder=folder,
        description={"started": 0.0, "dataset": {"name": "digits"}},
        space=ledger.space,
        running=[],
        node="here",
        reason="",
    )
    assert shown.device_hours == pytest.approx(ledger.device_hours)
    terminal.console.width = 200
    status_view.show_sweep(shown)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{proxy.name}, 1000 kimg: starting, 0 device-hours so far" in printed
    assert "1 proxy running, 1 reference finished: 1 device-hours, shared by all recipes" in printed
    assert formatting.preparations(known.preparations) in printed


# --- the worker


def test_the_worker_trains_what_the_ledger_hands_out_and_its_repeats_find_it(scored_digits, tmp_path):
    data = shutil.copytree(scored_digits.folder, tmp_path / "digits", ignore=shutil.ignore_patterns("reweighting-*"))
    file = tmp_path / "reference.yaml"
    file.write_text(small("tiny-ddpm", training__batch_size=32, sampler__steps=1).to_yaml())
    override = {"network.channels": 8, "network.multipliers": [1, 2], "sampler.steps": 2, "conditioning.classes": True}
    override |= {"reweighting.method": "dro", "reweighting.kimg": 0.2, "reweighting.recipe": str(file)}
    space = make_space(
        recipe="tiny-ddpm",
        override=override,
        scoring={"extractor": "classifier", "samples": 20},
        budget={"trials": 1, "rungs_kimg": [0.2], "repeats": 1},
    )
    options = SweepOptions(space=space, data=str(data), storage=tmp_path / "runs")
    the_plan = plan.make_plan(options)
    store.write_json(the_plan.folder.description, sweep_record(the_plan))
    ledger = open_ledger(the_plan.folder, the_plan.space)
    task = {"sweep": str(the_plan.folder.path), "dataset": str(data), "gpus": 0, "fit_nodes": []}

    costs = []
    for kind in ("reference", "proxy"):
        preparation = ledger.propose()
        assert isinstance(preparation, Preparation)
        assert preparation.kind == kind
        own = task | {"trial": -1, "repeat": -1, "preparation": preparation.name}
        reports: list[dict] = []
        worker.work(worker.Task(**own), reports.append)
        assert reports[0] == {worker.WORKING: True, worker.HOST: os.uname().nodename}
        hours, now = reports[-1][worker.COST]
        assert hours > 0
        assert now
        worker.work(worker.Task(**own), reports.append)
        assert reports[-1][worker.COST] == (hours, False)  # it is in the dataset's cache
        ledger.charge(preparation, hours, now)
        ledger.finish(preparation)
        costs.append(hours)

    repeat = ledger.propose()
    assert isinstance(repeat, Repeat)
    reports = []
    own = task | {"trial": repeat.trial, "repeat": repeat.repeat, "preparation": ""}
    worker.work(worker.Task(**own), reports.append)
    row = reports[-1][worker.ROW]
    assert row.value("prepared_device_hours") == pytest.approx(sum(costs))
    assert row.value("device_hours") == pytest.approx(sum(costs) + row.seconds / 3600)
    assert len(list((data / "cache").glob("reweighting-*/*.json"))) == 1


# --- the plan


def test_the_plan_counts_what_the_trials_of_a_space_may_need():
    space = load_space("prune-reweight")
    needed = estimate.needed(space, 60)
    chance = random.Random(0)
    counts = []
    for _ in range(estimate.ROUNDS):
        drawn = [space.draw(chance) for _ in range(60)]
        weighed = [own for own in drawn if own["reweighting.method"] == "dro"]
        counts.append(len({repr(sorted(own.items())) for own in weighed}))
    assert needed.references == 1
    assert 10 < needed.proxies == max(counts) < 60
    assert needed.kimg == 1000 * (1 + needed.proxies)
    assert needed.work == pytest.approx(1000 * (1 + needed.proxies * 4 / 3))
    assert estimate.needed(make_space(search=WEIGHED), 2).proxies == 1  # also where few draws would miss it
    assert estimate.needed(load_space("ambient"), 60).proxies == 0


def test_the_estimate_includes_what_is_trained_before_the_trials(scored_digits, tmp_path):
    options = SweepOptions(data=str(scored_digits.folder), storage=tmp_path, trials=9, repeats=3, rungs=(10.0, 30.0))
    the_plan = plan.make_plan(options)
    placement = place((Node("here", 2, 0),), None)
    speed = Speed(seconds_per_kimg=1.0, seconds_per_score=0.0, bytes=100, seconds_per_needed_kimg=3.0)
    plain = estimate.estimate_sweep(the_plan, placement, speed)
    override = the_plan.space.override | {"reweighting.method": "dro", "reweighting.kimg": 30}
    weighed = replace(the_plan, space=the_plan.space.model_copy(update={"override": override}))
    more = estimate.estimate_sweep(weighed, placement, speed)
    assert more.hours - plain.hours == pytest.approx(3.0 * (30 + 30 * 4 / 3) / 2 / 3600)


def test_the_plan_says_what_is_needed_and_measures_it_without_training_it(scored_digits, tmp_path, capsys):
    file = tmp_path / "reference.yaml"
    file.write_text(small("tiny-ddpm", training__batch_size=32).to_yaml())
    override = {
        "network.channels": 8,
        "sampler.steps": 2,
        "conditioning.classes": True,
        "reweighting.recipe": str(file),
    }
    space = make_space(
        recipe="tiny-ddpm",
        override=override | {"reweighting.method": "dro"},
        scoring={"extractor": "classifier", "samples": 20},
    )
    options = SweepOptions(space=space, data=str(scored_digits.folder), storage=tmp_path / "runs")
    the_plan = plan.make_plan(options)
    before = set((scored_digits.folder / "cache").glob("reweighting-*"))
    speed = estimate.measure_base_recipe(the_plan)
    assert speed.seconds_per_needed_kimg
    assert set((scored_digits.folder / "cache").glob("reweighting-*")) == before

    terminal.console.width = 200
    plan_view.show_plan(the_plan, place((Node("here", 2, 0),), None), speed)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 reference and up to 1 proxy, 2,000 kimg, each trained once; their full cost" in printed


def test_what_arms_need_is_exact():
    arms = {"plain": {}, "dro": {"reweighting.method": "dro"}, "inverse": {"reweighting.method": "inverse"}}
    space = make_space(search={}, arms=arms)
    needed = estimate.needed(space, 1)
    assert (needed.references, needed.proxies) == (1, 1)
