"""Plans: what the command line changes, what a name may resume, what is refused, what it will cost."""

import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from scrimp_platform import left, plan, store
from scrimp_platform.cluster import Node, place
from scrimp_platform.plan import SweepOptions
from scrimp_platform.search import estimate, records, warm_start
from scrimp_platform.search.estimate import Speed
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import Storage
from scrimp_platform.sweep_record import sweep_record
from scrimp_trainers import ingest
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest


@pytest.fixture
def options(scored_digits, tmp_path) -> SweepOptions:
    return SweepOptions(data=str(scored_digits.folder), storage=tmp_path)


def change(options: SweepOptions, **values) -> SweepOptions:
    return SweepOptions(**(vars(options) | values))


def begin(options: SweepOptions) -> plan.Plan:
    the_plan = plan.make_plan(options)
    store.write_json(the_plan.folder.description, sweep_record(the_plan))
    return the_plan


def test_the_command_line_overrides_the_space_s_budget(options):
    the_plan = plan.make_plan(change(options, trials=3, repeats=5, rungs=(1.0, 2.0), max_gpu_hours=9.0))
    budget = the_plan.space.budget
    assert (budget.trials, budget.repeats, budget.rungs_kimg, budget.max_gpu_hours) == (3, 5, (1.0, 2.0), 9.0)
    assert the_plan.base.training.kimg == 2.0


def test_a_plan_leaves_nothing_behind(options, tmp_path):
    plan.make_plan(options)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_named_after_its_space_and_its_data_and_goes_on_under_that_name(options):
    first = begin(options)
    assert first.folder.path.name == "quickstart-digits"
    assert not first.resumed
    assert plan.make_plan(options).resumed


@pytest.mark.parametrize(
    ("space", "data", "name"),
    [("quickstart", "my photos", "quickstart-my-photos"), ("_lab 2.yaml", "a/b", "lab-2-a-b")],
)
def test_a_name_made_of_others_is_one_that_a_folder_can_have(space, data, name):
    facts = cast("Manifest", SimpleNamespace(name=data))
    assert plan._folder(SweepOptions(space=space), Storage(Path("runs")), facts).path.name == name


def test_more_trials_and_repeats_are_no_other_sweep(options):
    begin(options)
    assert plan.make_plan(change(options, trials=99, repeats=9, max_gpu_hours=5.0)).resumed


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"rungs": (1.0, 2.0)}, "space.budget.rungs_kimg was [20.0, 60.0], is [1.0, 2.0]"),
        ({"seed": 1}, "seed was 0, is 1"),
    ],
)
def test_another_space_under_an_old_name_is_refused_with_the_difference(options, values, difference):
    options = change(options, rungs=(20.0, 60.0))
    begin(options)
    with pytest.raises(UserError) as caught:
        plan.make_plan(change(options, **values))
    assert difference in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_another_dataset_under_an_old_name_is_refused(options, tmp_path, digits_dataset):
    the_plan = begin(options)
    record = store.read_json(the_plan.folder.description)
    record["dataset"]["content_hash"] = "0" * 64
    store.write_json(the_plan.folder.description, record)
    with pytest.raises(UserError, match="dataset was 000000000000"):
        plan.make_plan(options)


def test_fresh_starts_beside_the_old_sweep(options):
    begin(options)
    fresh = plan.make_plan(change(options, fresh=True))
    assert fresh.folder.path.name == "quickstart-digits-2"
    assert not fresh.resumed


def test_what_a_space_is_made_for_may_change(options, tmp_path):
    text = plan.spaces.space_yaml("quickstart")
    space = tmp_path / "mine.yaml"
    space.write_text(text.replace("items: 1438", "items: 9"))
    begin(change(options, space=str(space)))
    for made_for in ("", "made_for: {size: 32, items: 1000}\n"):
        space.write_text(re.sub("^made_for.*\n", made_for, text, flags=re.MULTILINE))
        assert plan.make_plan(change(options, space=str(space))).resumed


def test_a_storage_that_cannot_be_written_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place == tmp_path and mode == os.F_OK)  # root may write all
    with pytest.raises(UserError, match=f"my/runs: {tmp_path} is not a writable folder"):
        plan.check_options(change(options, storage=tmp_path / "my" / "runs"))


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(options, name):
    with pytest.raises(UserError, match="--name"):
        plan.make_plan(change(options, name=name))


def test_data_without_a_classifier_is_refused_where_the_space_scores_with_one(options, digits_dataset):
    with pytest.raises(UserError, match="extractor classifier"):
        plan.make_plan(change(options, data=str(digits_dataset.folder)))


def test_images_that_cannot_be_halved_so_often_are_refused(options, tmp_path):
    space = tmp_path / "deep.yaml"
    text = plan.spaces.space_yaml("quickstart").replace(
        "search:", "override: {network.multipliers: [1, 1, 1, 1, 1]}\nsearch:"
    )
    space.write_text(text)
    with pytest.raises(UserError, match="size 8 is not a multiple of 16"):
        plan.make_plan(change(options, space=str(space)))


def test_the_estimate_counts_the_rungs_and_the_race(options):
    the_plan = plan.make_plan(change(options, trials=9, repeats=3, rungs=(10.0, 30.0)))
    placement = place((Node("here", 2, 0),), None)
    cost = estimate.estimate_sweep(the_plan, placement, Speed(seconds_per_kimg=1.0, seconds_per_score=5.0, bytes=100))
    # 9 trials to 10 kimg, 3 on to 30, 3 leaders with 2 more repeats of 30; two scores in each finished repeat.
    assert cost.kimg == 9 * 10 + 3 * 20 + 6 * 30
    assert cost.hours == pytest.approx((cost.kimg + 5 * (9 + 3 + 12)) / 2 / 3600)
    assert cost.bytes == 15 * 100


def test_gpu_hours_alone_tell_how_many_trials_they_allow(options, tmp_path):
    space = tmp_path / "hours.yaml"
    space.write_text(plan.spaces.space_yaml("quickstart").replace("trials: 8", "trials: null, max_gpu_hours: 8"))
    the_plan = plan.make_plan(change(options, space=str(space), rungs=(10.0, 30.0)))
    placement = place((Node("here", 2, 0),), None)
    cost = estimate.estimate_sweep(the_plan, placement, Speed(seconds_per_kimg=1.0, seconds_per_score=0.0, bytes=100))
    # Three quarters of 8 h are the search's; a trial takes 10 kimg, and every third of them 20 more.
    assert cost.first_repeats == pytest.approx(6 * 3600 / (10 + 20 / 3), rel=0.01)
    assert cost.hours == pytest.approx((6 + 9 * 30 / 3600) / 2, rel=0.01)


def test_a_measured_speed_is_found_again_for_the_same_plan_and_no_other(options):
    the_plan = plan.make_plan(options)
    placement = place((Node("here", 2, 0),), None)
    speed = Speed(1.0, 2.0, 3)
    estimate.save_speed(the_plan, placement.gpus_per_repeat, speed)
    assert estimate.last_speed(the_plan, 0) == speed
    assert estimate.last_speed(the_plan, 2) is None
    assert estimate.last_speed(plan.make_plan(change(options, rungs=(1.0, 2.0))), 0) is None


def finish(the_plan: plan.Plan) -> None:
    """Train all that a sweep has to do, by made-up curves."""
    from made_up_sweep import train_all

    folder = the_plan.folder
    train_all(Ledger(folder, the_plan.space, the_plan.options.seed, 1, lambda _: None))
    store.write_json(folder.outcome, {"reason": "complete", "ended": time.time(), "trials": 0})


def what_is_left(options: SweepOptions) -> left.Left:
    of_plan = left.of_resumed(plan.make_plan(options), place((Node("here", 2, 0),), None))
    assert of_plan
    return of_plan


def test_of_a_finished_sweep_nothing_is_left_and_trials_can_be_added(options):
    options = change(options, trials=5, rungs=(1.0, 2.0), repeats=2)
    assert left.of_resumed(plan.make_plan(options), place((Node("here", 2, 0),), None)) is None
    finish(begin(options))
    assert what_is_left(options).text().startswith("nothing: the sweep is complete; --trials +4 adds four trials")
    assert what_is_left(change(options, trials=3)).finished

    more = what_is_left(change(options, trials="+4"))
    assert (more.begun, more.to_begin, more.going_on) == (5, 4, 0)
    assert more.of_race >= 3  # three leaders may be new, and each gets one fresh seed
    assert more.text().startswith("4 trials after the 5 begun and at most ")
    assert more.hours
    assert not what_is_left(change(options, repeats=3)).finished


def test_added_trials_are_added_once_until_they_are_done(options):
    options = change(options, trials=2, rungs=(1.0, 2.0), repeats=1)
    finish(begin(options))
    added = change(options, trials="+4")
    the_plan = begin(added)
    assert the_plan.space.budget.trials == 6
    assert plan.make_plan(added).space.budget.trials == 6  # interrupted, and resumed by the same command
    finish(the_plan)
    assert plan.make_plan(added).space.budget.trials == 10
    assert plan.make_plan(change(options, trials="+1")).space.budget.trials == 7


def test_nothing_is_left_once_the_hours_are_spent(options):
    options = change(options, trials=2, rungs=(1.0, 2.0), repeats=1, max_gpu_hours=1e-6)
    finish(begin(options))
    store.write_json(begin(options).folder.outcome, {"reason": "max_gpu_hours 1e-06 reached", "ended": time.time()})
    assert "nothing: of --max-gpu-hours 1e-06, " in what_is_left(options).text()


@pytest.mark.parametrize(("trials", "complaint"), [("+4", "there is no .*quickstart-digits yet"), ("four", "or \\+4")])
def test_trials_that_add_to_nothing_are_refused(options, trials, complaint):
    with pytest.raises(UserError, match=complaint):
        plan.make_plan(change(options, trials=trials))


def test_a_warm_start_takes_the_leaders_values_that_this_space_allows(options, tmp_path):
    from made_up_sweep import write_sweep

    earlier = tmp_path / "earlier"
    write_sweep(earlier, plan.spaces.load_space("quickstart"))
    the_plan = plan.make_plan(change(options, warm_start=(earlier,)))
    assert the_plan.warm_start.first
    search = the_plan.space.search
    for values in the_plan.warm_start.first:
        assert all(search[path].allows(value) for path, value in values.items())


def test_all_is_every_other_sweep_of_the_storage(options, tmp_path):
    from made_up_sweep import write_sweep

    space = plan.spaces.load_space("quickstart")
    for name in ("here", "there"):
        write_sweep(tmp_path / "runs" / name, space)
    options = change(options, storage=tmp_path / "runs", name="here", fresh=True, warm_start=(plan.ALL,))
    the_plan = plan.make_plan(options)
    assert the_plan.folder.path.name == "here-2"
    assert [sweep.name for sweep in the_plan.warm_start.sweeps] == ["here", "there"]


def test_a_resumed_sweep_keeps_its_warm_start_when_the_earlier_sweep_is_gone(options, tmp_path):
    from made_up_sweep import write_sweep

    earlier = tmp_path / "earlier"
    write_sweep(earlier, plan.spaces.load_space("quickstart"))
    options = change(options, warm_start=(earlier,))
    begun = plan.make_plan(options)
    warm_start.save(begun.warm_start, begun.folder)
    begin(options)
    shutil.rmtree(earlier)
    again = plan.make_plan(options)
    assert again.resumed
    assert again.warm_start == begun.warm_start
    assert plan.make_plan(change(options, warm_start=())).warm_start == begun.warm_start
    with pytest.raises(UserError, match="began with --warm-start earlier, not other; use another --name"):
        plan.make_plan(change(options, warm_start=(tmp_path / "other",)))


def test_a_warm_start_from_no_sweep_is_refused(options, tmp_path):
    with pytest.raises(UserError, match="not the folder of a sweep"):
        plan.make_plan(change(options, warm_start=(tmp_path,)))


def test_a_dataset_in_the_storage_moves_with_its_sweep(options, scored_digits, tmp_path):
    runs = tmp_path / "runs"
    inside = shutil.copytree(scored_digits.folder, runs / "datasets" / "mine")
    begin(change(options, data=str(inside), storage=runs, name="near"))
    begin(change(options, storage=runs, name="far"))
    moved = Storage(runs.rename(tmp_path / "moved"))
    assert records.sweep_description(moved.sweep("near"))["dataset"]["folder"] == str(moved.dataset("mine"))
    assert records.sweep_description(moved.sweep("far"))["dataset"]["folder"] == str(scored_digits.folder)


def test_the_second_of_two_first_sweeps_waits_until_the_first_has_prepared_the_digits(tmp_path, monkeypatch, capsys):
    storage, begun, prepared = Storage(tmp_path / "runs"), threading.Event(), []

    def slowly(data, folder, _options):
        prepared.append(data)
        begun.set()
        time.sleep(1)
        folder.mkdir(parents=True)

    monkeypatch.setattr(ingest, "prepare", slowly)
    with ThreadPoolExecutor(2) as sweeps:
        first = sweeps.submit(plan.resolve_dataset, "digits", storage)
        begun.wait(10)
        second = sweeps.submit(plan.resolve_dataset, "digits", storage)
        assert first.result(10) == second.result(10) == storage.dataset("digits")
    assert prepared == ["digits"]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        said == f"waiting for dataset digits to be prepared: in use by process {os.getpid()} on {os.uname().nodename}"
    )
