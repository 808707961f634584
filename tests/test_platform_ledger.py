"""The ledger against a fake engine: recorded curves instead of training, and kills at every point."""

import json
import math
import random
from types import SimpleNamespace

import optuna
import pytest
from made_up_rows import make_row
from made_up_sweep import next_repeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from test_platform_race import make_space

from scrimp_platform.report import ranking
from scrimp_platform.search import records
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder, write_atomic
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow

RUNGS = (20.0, 60.0)


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


def open_ledger(folder, space=None, seed=0, say=lambda _: None, first=(), known_costs=None) -> Ledger:
    folder.path.mkdir(exist_ok=True)
    warm_start = WarmStart(first=tuple(first))
    return Ledger(folder, space or make_space(), seed, 1, say, warm_start, known_costs)


def score(repeat, rung: float, params) -> MetricsRow:
    """A learning curve that depends on the learning rate, and a little on the seed."""
    quality = abs(math.log10(params["optimizer.lr"]) + 3) + 0.01 * random.Random(repeat.seed).random()
    return make_row(rung=rung, kimg=rung, fd_classifier=quality + 10 / rung, seconds=rung, memorized_fraction=0.0)


def train(folder, ledger, repeat, stop_before=math.inf) -> bool:
    """Do what a worker and Tune do for a repeat; return whether it came to its end."""
    params = {"optimizer.lr": 1e-3} | ledger.trials[[t.number for t in ledger.trials].index(repeat.trial)].params
    files = folder.repeat(repeat.trial, repeat.repeat)
    done = {line.rung for line in metrics_log.read_rows(files.metrics)}
    for rung in RUNGS:
        line = score(repeat, rung, params)
        if rung not in done:
            with files.metrics.open("a") as file:
                file.write(metrics_log.row_text(line))
        if rung >= stop_before:
            return False
        if not ledger.report(repeat, line):
            break
    ledger.finish(repeat)
    return True


def run_all(folder, ledger) -> None:
    while repeat := next_repeat(ledger):
        train(folder, ledger, repeat)


def study(folder, name: str = "scrimp") -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal)))
    return optuna.load_study(study_name=name, storage=storage)


def has_race_study(folder) -> bool:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal)))
    return "scrimp-race" in optuna.get_all_study_names(storage)


def test_a_sweep_searches_then_races_and_ends(folder):
    ledger = open_ledger(folder)
    run_all(folder, ledger)
    assert len(ledger.trials) == 8
    assert {trial.status for trial in ledger.trials} == {"complete", "pruned"}
    raced = [trial for trial in ledger.trials if len(trial.repeats) > 1]
    assert raced
    assert max(len(trial.repeats) for trial in raced) == 4
    assert all(repeat.phase == "race" for trial in raced for repeat in trial.repeats[1:])
    assert len({repeat.seed for repeat in ledger.repeats}) == len(ledger.repeats)


def test_what_halving_stopped_is_pruned_in_optuna_with_its_value_at_the_rung(folder):
    ledger = open_ledger(folder)
    run_all(folder, ledger)
    stopped = {trial.number for trial in ledger.trials if trial.status == "pruned"}
    frozen = study(folder).get_trials()
    assert stopped
    assert {trial.number for trial in frozen if trial.state is TrialState.PRUNED} == stopped
    assert all(set(frozen[number].intermediate_values) == {20_000} for number in stopped)


def test_a_score_that_is_not_a_number_fails_the_trial_and_leaves_nothing_running(folder):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    for rung in RUNGS:
        ledger.report(repeat, make_row(rung=rung, kimg=rung, fd_classifier=math.nan))
    ledger.finish(repeat)
    assert repeat.status == "failed"
    assert study(folder).trials[0].state is TrialState.FAIL


def test_constraints_reach_optuna(folder):
    space = make_space(constraints={"memorized_fraction": {"max": 0.25}})
    ledger = open_ledger(folder, space)
    run_all(folder, ledger)
    complete = [trial for trial in study(folder).trials if trial.state is TrialState.COMPLETE]
    assert complete
    assert all(trial.constraints == {"memorized_fraction": -1.0} for trial in complete)


def test_several_objectives_can_be_pruned_and_completed(folder):
    space = make_space(objectives={"fd_classifier": "minimize", "seconds": "minimize"})
    ledger = open_ledger(folder, space)
    run_all(folder, ledger)
    states = [trial.state for trial in study(folder).trials]
    assert states.count(TrialState.RUNNING) == 0
    assert TrialState.COMPLETE in states


@pytest.mark.parametrize("prefer", ["best", "cheapest"])
def test_the_second_study_has_means_over_fresh_seeds_and_what_else_is_known(folder, prefer):
    space = make_space(prefer=prefer)
    ledger = open_ledger(folder, space)
    while not any(repeat.phase == "race" and repeat.status == "finished" for repeat in ledger.repeats):
        assert not has_race_study(folder)
        repeat = next_repeat(ledger)
        assert repeat
        train(folder, ledger, repeat)
    run_all(folder, ledger)
    ledger.show_race()

    rows = ranking.rank(ledger.trials, space)
    shown = study(folder, "scrimp-race")
    by_number = {row.number: row for row in rows}
    for trial in shown.trials:
        row = by_number[trial.number]
        assert trial.params == study(folder).trials[trial.number].params
        assert (trial.state is TrialState.COMPLETE) == row.fresh
        if row.fresh:
            assert trial.value == pytest.approx(row.summaries["fd_classifier"].mean)
            assert trial.user_attrs["fd_classifier from"] == pytest.approx(row.summaries["fd_classifier"].low)
            assert trial.user_attrs["probability to be the best"] == row.probability_best
            assert trial.user_attrs["seeds"] == row.repeat_count
        if row.finished:
            assert trial.user_attrs["fd_classifier of the search"] == row.chosen_at["fd_classifier"]
        assert trial.user_attrs["status"] == row.trial.status
        assert trial.user_attrs["device-hours"] > 0

    assert [trial.number for trial in shown.trials if trial.user_attrs["recommended"]] == [rows[0].number]
    assert by_number[shown.best_trial.number].fresh
    if prefer == "best":
        assert shown.best_trial.number == rows[0].number


def test_the_second_study_is_rebuilt_with_the_journal(folder):
    run_all(folder, open_ledger(folder))
    open_ledger(folder)
    before = study(folder, "scrimp-race").trials
    folder.journal.unlink()
    open_ledger(folder)
    after = study(folder, "scrimp-race").trials
    assert [(trial.values, trial.user_attrs) for trial in after] == [(t.values, t.user_attrs) for t in before]
    size = folder.journal.stat().st_size
    ledger = open_ledger(folder)
    grown = folder.journal.stat().st_size
    ledger.show_race()
    ledger.show_race()
    assert folder.journal.stat().st_size == grown < 3 * size


def test_no_trial_that_breaks_a_constraint_is_the_best_of_the_second_study(folder):
    space = make_space(constraints={"memorized_fraction": {"max": -0.25}})
    ledger = open_ledger(folder, space)
    run_all(folder, ledger)
    ledger.show_race()
    with pytest.raises(ValueError, match="feasible"):
        _ = study(folder, "scrimp-race").best_trial


def test_the_second_study_may_have_several_objectives(folder):
    space = make_space(objectives={"fd_classifier": "minimize", "seconds": "minimize"})
    ledger = open_ledger(folder, space)
    run_all(folder, ledger)
    ledger.show_race()
    rows = {row.number: row for row in ranking.rank(ledger.trials, space)}
    best = study(folder, "scrimp-race").best_trials
    assert best
    assert all(rows[trial.number].fresh and len(trial.values) == 2 for trial in best)


def test_a_warm_start_comes_first_and_once_however_often_the_ledger_is_opened(folder):
    first = [{"optimizer.lr": 0.00123}, {"optimizer.lr": 0.00456}]
    for _ in range(3):
        open_ledger(folder, first=first).propose()  # and a kill
    run_all(folder, open_ledger(folder, first=first))
    ledger = open_ledger(folder, first=[{"optimizer.lr": 0.00789}])  # too late
    values = [trial.params["optimizer.lr"] for trial in ledger.trials]
    assert values[:2] == [0.00123, 0.00456]
    assert not {0.00123, 0.00456, 0.00789} & set(values[2:])


def test_a_failed_repeat_is_tried_again_so_often_and_then_counts_as_failed(folder):
    ledger = open_ledger(folder)
    first = next_repeat(ledger)
    assert first
    for _ in range(2):
        ledger.finish(first, "the disk was full")
        assert next_repeat(ledger) is first
    ledger.finish(first, "the disk was full")
    assert (first.status, first.attempt, first.cause) == ("failed", 3, "the disk was full")
    assert ledger.trials[0].status == "failed"
    assert next_repeat(ledger) is not first


def test_a_repeat_that_has_not_begun_is_taken_back_and_handed_out_again_as_the_same_attempt(folder):
    ledger = open_ledger(folder)
    first = next_repeat(ledger)
    assert first
    for _ in range(5):  # more often than it may be tried again
        ledger.withdraw(first)
        assert not ledger.running
        assert json.loads(folder.repeat(0, 0).record.read_text())["status"] == "waiting"
        assert next_repeat(ledger) is first
    assert (first.status, first.attempt, first.cause, first.device_hours) == ("running", 1, "", 0.0)


CONTRADICTION = {
    "conditioning.classes": {"choice": [False, True]},
    "conditioning.label_drop": {"uniform": [0.1, 0.2]},
    "sampler.guidance": {"choice": [1.0, 3.0]},
}


def test_a_proposal_that_contradicts_itself_is_passed_over_and_trained_by_nobody(folder):
    """A space that is loaded is refused for it; whatever slips through must not end a sweep that runs."""
    space = make_space()
    space = type(space).model_validate(space.model_dump() | {"search": CONTRADICTION})
    ledger = open_ledger(folder, space)
    run_all(folder, ledger)
    assert len(ledger.trials) == 8
    assert all(trial.params["conditioning.classes"] or trial.params["sampler.guidance"] == 1 for trial in ledger.trials)
    known = {trial.number for trial in ledger.trials}
    refused = [trial for trial in study(folder).get_trials() if trial.number not in known]
    assert refused
    assert [trial.number for trial in records.read_records(folder).skipped] == [trial.number for trial in refused]
    assert open_ledger(folder, space).propose() is None


SLIM = {
    "search": {
        "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "network.channels": {"int": [16, 512], "step": 16},
        "network.dropout": {"uniform": [0.0, 0.5]},
    },
    "constraints": {"parameters": {"max": 160.0**2}},
}


def squared_channels(recipe) -> dict[str, float]:
    return {"parameters": float(recipe.network.channels**2)}


SLIM_BUDGET = {"trials": 24, "rungs_kimg": [20, 60], "reduction": 3, "leaders": 3, "repeats": 4}


def slim_space():
    return make_space(**SLIM, budget=SLIM_BUDGET)


def test_a_recipe_whose_known_costs_break_a_constraint_is_not_trained(folder):
    said = []
    ledger = open_ledger(folder, slim_space(), say=said.append, known_costs=squared_channels)
    run_all(folder, ledger)
    assert len(ledger.trials) == 24
    assert all(trial.params["network.channels"] <= 160 for trial in ledger.trials)

    skipped = records.read_records(folder).skipped
    assert all(trial.params["network.channels"] > 160 for trial in skipped)
    assert all(trial.costs == {"parameters": trial.params["network.channels"] ** 2.0} for trial in skipped)
    for trial in skipped:
        cost = f"{trial.params['network.channels'] ** 2:.4g}"
        reason = f"its parameters would be {cost}, and the space asks for at most 2.56e+04"
        assert f"skipping proposal {trial.number:04d}: {reason}" in said


def test_a_search_that_finds_too_few_recipes_promotes_and_races_what_it_has(folder):
    said = []
    tight = make_space(
        **SLIM | {"constraints": {"parameters": {"max": 16.0**2}}}, proposals="random", budget=SLIM_BUDGET
    )
    ledger = open_ledger(folder, tight, say=said.append, known_costs=squared_channels)
    run_all(folder, ledger)
    assert "ending the search: too few of 240 proposals could be trained" in said
    assert 0 < len(ledger.trials) < 24
    assert sum(trial.status == "complete" for trial in ledger.trials) >= 3
    assert any(repeat.phase == "race" for repeat in ledger.repeats)
    assert open_ledger(folder, tight, known_costs=squared_channels).propose() is None


def test_the_curve_model_learns_from_what_was_skipped(folder):
    """Two thirds of the space break the constraint; once scores are learned from, hardly a proposal does."""
    ledger = open_ledger(folder, slim_space(), known_costs=squared_channels)
    run_all(folder, ledger)
    begun = sorted(ledger.trials, key=lambda trial: trial.number)[8].number  # as many trials are proposed unlearned
    skipped = [trial.number for trial in records.read_records(folder).skipped]
    assert sum(number < begun for number in skipped) >= 8
    assert sum(number > begun for number in skipped) <= 4


def test_a_resumed_sweep_skips_what_an_undisturbed_one_skips(tmp_path):
    undisturbed = SweepFolder(tmp_path / "undisturbed")
    run_all(undisturbed, open_ledger(undisturbed, slim_space(), known_costs=squared_channels))

    killed = SweepFolder(tmp_path / "killed")
    while repeat := next_repeat(ledger := open_ledger(killed, slim_space(), known_costs=squared_channels)):
        train(killed, ledger, repeat)
    for folder in (undisturbed, killed):
        assert records.read_records(folder).skipped
    proposals = [
        [(trial.number, trial.params) for trial in records.read_records(folder).skipped]
        for folder in (undisturbed, killed)
    ]
    assert proposals[0] == proposals[1]


def test_a_space_that_proposes_contradictions_alone_ends_its_search(folder):
    space = make_space()
    only = {"sampler.guidance": {"choice": [2.0, 3.0]}}
    said = []
    ledger = open_ledger(folder, type(space).model_validate(space.model_dump() | {"search": only}), say=said.append)
    assert next_repeat(ledger) is None
    assert next_repeat(ledger) is None
    assert said.count("ending the search: too few of 80 proposals could be trained") == 1
    assert len(study(folder).get_trials()) == 80


def test_divergence_is_not_tried_again(folder):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    ledger.finish(repeat, "step 3: loss is nan", final=True)
    assert (repeat.status, repeat.attempt) == ("failed", 1)


def test_a_repeat_of_the_race_is_never_stopped_at_a_rung(folder):
    ledger = open_ledger(folder)
    while (repeat := next_repeat(ledger)) and repeat.phase == "search":
        train(folder, ledger, repeat)
    assert repeat
    assert ledger.report(repeat, make_row(rung=20.0, kimg=20.0, fd_classifier=1e9))


def test_the_same_seed_gives_the_same_sweep(tmp_path):
    tables = []
    for name in ("a", "b"):
        folder = SweepFolder(tmp_path / name / "sweep")
        folder.path.parent.mkdir()
        ledger = open_ledger(folder, seed=7)
        run_all(folder, ledger)
        tables.append([(t.params, t.status, [r.seed for r in t.repeats]) for t in ledger.trials])
    assert tables[0] == tables[1]


@pytest.mark.parametrize("seed", range(6))
def test_kills_anywhere_change_nothing(tmp_path, seed):
    """A driver killed at random points, again and again, ends with what an undisturbed one ends with."""
    calm = SweepFolder(tmp_path / "calm" / "sweep")
    calm.path.parent.mkdir()
    undisturbed = open_ledger(calm, seed=3)
    run_all(calm, undisturbed)

    folder = SweepFolder(tmp_path / "shaken" / "sweep")
    folder.path.parent.mkdir()
    chance = random.Random(seed)
    while repeat := (ledger := open_ledger(folder, seed=3)).propose():
        if chance.random() < 0.5:
            train(folder, ledger, repeat, stop_before=chance.choice([0, *RUNGS]))
            continue  # killed: whatever was not written is forgotten
        train(folder, ledger, repeat)
    assert [(t.params, t.status, len(t.repeats)) for t in ledger.trials] == [
        (t.params, t.status, len(t.repeats)) for t in undisturbed.trials
    ]
    assert all(trial.state.is_finished() for trial in study(folder).trials)


def test_a_trial_that_never_reached_the_journal_is_added_to_it(folder, monkeypatch):
    ledger = open_ledger(folder)
    monkeypatch.setattr(ledger._study, "add", lambda trial: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next_repeat(ledger)
    decisions = []
    again = open_ledger(folder, say=decisions.append)
    assert not decisions
    assert [trial.params for trial in study(folder).trials] == [trial.params for trial in again.trials]


def test_what_is_paused_and_promoted_is_one_repeat_that_goes_on_where_it_stood(folder):
    decisions = []
    ledger = open_ledger(folder, say=decisions.append)
    run_all(folder, ledger)
    promoted = [trial for trial in ledger.trials if trial.status == "complete"]
    assert len(promoted) == 3  # a third of eight would be two, but three enter the race
    for trial in promoted:
        first = trial.repeats[0]
        assert (first.status, first.attempt, sorted(first.rungs)) == ("finished", 1, [20.0, 60.0])
        assert first.device_hours == pytest.approx(60 / 3600)
    assert sum("promoting repeat" in decision for decision in decisions) >= 2

    scores = sorted(trial.repeats[0].score("fd_classifier", 20.0) for trial in ledger.trials)
    assert sorted(trial.repeats[0].score("fd_classifier", 20.0) for trial in promoted) == scores[:3]


def test_the_checkpoints_and_snapshots_of_what_cannot_be_promoted_any_more_are_deleted(folder):
    ledger = open_ledger(folder)
    while repeat := next_repeat(ledger):
        files = folder.repeat(repeat.trial, repeat.repeat)
        files.checkpoint.mkdir(exist_ok=True)
        files.snapshots.mkdir(exist_ok=True)
        train(folder, ledger, repeat)
    for trial in ledger.trials:
        files = folder.repeat(trial.number, 0)
        assert files.checkpoint.exists() == files.snapshots.exists() == (trial.status == "complete")


@pytest.mark.parametrize("seed", range(4))
def test_several_at_a_time_lose_nothing_when_the_driver_is_killed(tmp_path, seed):
    """Four places; the repeats in them advance by one rung in random order, and the driver is killed now and then."""
    folder = SweepFolder(tmp_path / "sweep")
    chance = random.Random(seed)
    ledger = open_ledger(folder, seed=3)
    places = []
    while True:
        while len(places) < 4 and (repeat := next_repeat(ledger)):
            places.append(repeat)
        if not places:
            break
        if chance.random() < 0.15:
            ledger = open_ledger(folder, seed=3)
            places = []
            continue
        repeat = places.pop(chance.randrange(len(places)))
        if not train(folder, ledger, repeat, stop_before=chance.choice([20, 60, math.inf])):
            places.append(repeat)

    assert len(ledger.trials) == 8
    assert {trial.status for trial in ledger.trials} == {"complete", "pruned"}
    for trial in ledger.trials:
        assert [repeat.repeat for repeat in trial.repeats] == list(range(len(trial.repeats)))
        assert all(repeat.attempt == 1 for repeat in trial.repeats)
    assert sum(trial.status == "complete" for trial in ledger.trials) == 3


def test_a_trial_without_its_first_repeat_gets_it(folder):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    folder.repeat(repeat.trial, repeat.repeat).record.unlink()
    again = next_repeat(open_ledger(folder))
    assert again
    assert (again.trial, again.repeat, again.seed) == (repeat.trial, repeat.repeat, repeat.seed)


def test_a_journal_cut_in_the_middle_of_a_line_opens(folder):
    run_all(folder, open_ledger(folder))
    content = folder.journal.read_bytes()
    write_atomic(folder.journal, content + b'{"op_code": 4, "worker')
    ledger = open_ledger(folder)
    assert next_repeat(ledger) is None
    assert len(ledger.trials) == 8


def test_spent_device_hours_end_the_sweep(folder):
    budget = make_space().budget.model_dump() | {"max_gpu_hours": 0.01}
    ledger = open_ledger(folder, make_space(budget=budget))
    assert not ledger.exhausted()
    while not ledger.exhausted():
        train(folder, ledger, next_repeat(ledger))
    assert ledger.exhausted() == "max_gpu_hours 0.01 reached"
    assert ledger.device_hours == pytest.approx(0.01, abs=60 / 3600)


def test_gpu_hours_alone_may_limit_a_sweep_and_leave_a_share_to_the_race(folder):
    budget = make_space().budget.model_dump() | {"trials": None, "max_gpu_hours": 1.0, "race_share": 0.4}
    ledger = open_ledger(folder, make_space(budget=budget))
    while (repeat := next_repeat(ledger)) and repeat.phase == "search":
        train(folder, ledger, repeat)
    assert 0.6 <= ledger.device_hours < 0.6 + 60 / 3600
    assert repeat
    assert repeat.phase == "race"

    # A trial costs 20 s, and each third one 40 s more.
    assert len(ledger.trials) == pytest.approx(0.6 * 3600 / (20 + 40 / 3), rel=0.1)
    reached_end = sum(trial.status == "complete" for trial in ledger.trials)
    assert reached_end == pytest.approx(len(ledger.trials) / 3, rel=0.2)
    assert not any(trial.status == "paused" for trial in ledger.trials)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = SimpleNamespace(hours=1000.0)
    monkeypatch.setattr(records.time, "time", lambda: now.hours * 3600)
    return now


def test_waiting_for_a_device_or_for_room_is_no_device_time(folder, clock):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat

    clock.hours += 5  # until Ray has a place for it
    assert ledger.device_hours == 0
    ledger.clock(repeat, working=True)
    clock.hours += 1
    assert ledger.device_hours == pytest.approx(1)

    ledger.clock(repeat, working=False)
    clock.hours += 7
    assert ledger.device_hours == pytest.approx(1)
    ledger.clock(repeat, working=True)
    clock.hours += 1
    assert ledger.device_hours == pytest.approx(2)


def test_it_is_on_record_when_and_where_devices_worked(folder, clock):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    ledger.clock(repeat, working=True, node="one")
    clock.hours += 2
    ledger.finish(repeat, "its process died")
    clock.hours += 1
    assert next_repeat(ledger) is repeat
    ledger.clock(repeat, working=True, node="two")
    clock.hours += 3
    train(folder, ledger, repeat)
    stints = [["one", 1000.0, 1002.0], ["two", 1003.0, 1006.0]]
    (again,) = records.read_records(folder).repeats
    assert [[node, began / 3600, ended / 3600] for node, began, ended in again.stints] == stints


def test_what_a_failed_attempt_did_after_its_last_rung_counts(folder, clock):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    ledger.clock(repeat, working=True)
    clock.hours += 2
    ledger.finish(repeat, "its process died")
    clock.hours += 9
    assert ledger.device_hours == pytest.approx(2)

    assert next_repeat(ledger) is repeat
    clock.hours += 3
    ledger.clock(repeat, working=True)
    clock.hours += 1
    train(folder, ledger, repeat)
    assert ledger.device_hours == pytest.approx(3)
    assert open_ledger(folder).device_hours == pytest.approx(3)


def test_after_a_killed_driver_its_last_scores_tell_the_device_time(folder, clock):
    ledger = open_ledger(folder)
    repeat = next_repeat(ledger)
    assert repeat
    ledger.clock(repeat, working=True)
    train(folder, ledger, repeat, stop_before=20)

    clock.hours += 100
    again = open_ledger(folder)
    repeat = again.propose()
    assert repeat
    assert again.device_hours == pytest.approx(20 / 3600)
    again.clock(repeat, working=True)
    clock.hours += 1
    assert again.device_hours == pytest.approx(1 + 20 / 3600)


def fail_next(ledger, cause: str) -> None:
    repeat = next_repeat(ledger)
    assert repeat
    ledger.finish(repeat, cause, final=True)


def test_three_trials_that_fail_alike_end_the_sweep_and_say_why(folder):
    ledger = open_ledger(folder)
    for _ in range(2):
        fail_next(ledger, "DamagedData: shard 3 is damaged")
    assert ledger.exhausted() == ""
    fail_next(ledger, "DamagedData: shard 3 is damaged")
    assert ledger.exhausted() == "3 trials in a row failed with the same error (DamagedData: shard 3 is damaged)"
    assert ledger.in_vain
    resumed = open_ledger(folder)  # once its cause has been repaired
    assert resumed.exhausted() == ""
    assert train(folder, resumed, resumed.propose())
    assert not resumed.in_vain


def test_failures_that_differ_in_their_numbers_and_paths_alone_are_alike(folder):
    ledger = open_ledger(folder)
    for trial, fitting in enumerate([75, 50, 25]):
        cause = f"UserError: {folder.repeat(trial, 0).path}: a device took {fitting} of 100 images"
        fail_next(ledger, cause)
    assert ledger.exhausted().startswith("3 trials in a row failed with the same error")
    assert ledger.in_vain


@pytest.mark.parametrize("between", ["another cause", "a trial that ends well"])
def test_failures_that_are_not_alike_or_not_in_a_row_end_nothing(folder, between):
    ledger = open_ledger(folder)
    for _ in range(2):
        fail_next(ledger, "DamagedData: shard 3 is damaged")
    if between == "another cause":
        fail_next(ledger, "UserError: no weights")
    else:
        assert train(folder, ledger, next_repeat(ledger))
    fail_next(ledger, "DamagedData: shard 3 is damaged")
    assert ledger.exhausted() == ""


def test_recipes_that_diverge_end_no_search(folder):
    ledger = open_ledger(folder)
    for _ in range(4):
        fail_next(ledger, "Diverged: step 16: loss is nan")
    assert ledger.exhausted() == ""
    assert ledger.in_vain  # so far all have failed


def test_a_sweep_without_a_trial_is_in_vain(folder):
    assert open_ledger(folder).in_vain
