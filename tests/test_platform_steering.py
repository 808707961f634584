"""A sweep is steered while it runs: limits change, a trial is stopped, and all of it is recorded and survives kills."""

import contextlib
import itertools
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up_sweep import make_space, next_repeat, train_all, write_sweep

from scrimp_platform import store
from scrimp_platform.cli import main
from scrimp_platform.search import budget_changes, records, steering, tune_loop
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.steering import Request, Steering
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError

BUDGET = {"trials": 5, "rungs_kimg": [1, 2], "reduction": 2, "leaders": 2, "repeats": 3}
NUMBERS = itertools.count(1)


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    """A sweep of which two repeats were handed out."""
    folder = write_sweep(tmp_path / "runs" / "lab", make_space(budget=BUDGET), most=2, reason="interrupted")
    folder.outcome.unlink()
    return folder


class Driver:
    """What a sweep's driver does between two decisions, without Ray."""

    def __init__(self, folder: SweepFolder) -> None:
        self.said: list[str] = []
        self.reasons: list[str] = []
        # As `make_plan` resumes it: with the space that is in force.
        self.ledger = Ledger(folder, records.space_of(folder), 5, 1, self.said.append)
        self.steering = Steering(self.ledger, self.reasons.append)
        self.steering.begin()

    def check(self) -> None:
        self.steering._due = 0.0
        self.steering.check()


def request(folder: SweepFolder, action: steering.Action, **values) -> Path:
    """Write a request as a command does, but wait for no answer."""
    file = folder.request(f"{next(NUMBERS):020d}-1")
    file.parent.mkdir(exist_ok=True)
    store.write_json(file, asdict(Request(action, "anna on ws-01", time.time(), **values)))
    return file


def answer(file) -> Request:
    return Request(**store.read_json(file))


def test_a_limit_that_is_set_counts_at_the_next_decision_and_is_in_the_records(folder):
    driver = Driver(folder)
    file = request(folder, "set", field="trials", value=7)
    driver.check()
    assert answer(file).answer == "budget.trials is 7, was 5"
    assert "budget.trials is 7, was 5: set by anna on ws-01" in driver.said
    assert records.space_of(folder).budget.trials == 7
    train_all(driver.ledger)
    assert len(driver.ledger.trials) == 7


def test_fewer_trials_end_the_search_and_more_repeats_lengthen_the_race(folder):
    driver = Driver(folder)
    request(folder, "set", field="trials", value=3)
    request(folder, "set", field="repeats", value=5)
    driver.check()
    train_all(driver.ledger)
    assert len(driver.ledger.trials) == 3
    assert max(len(trial.repeats) for trial in driver.ledger.trials) > 3


def test_hours_that_are_set_end_the_sweep(folder):
    driver = Driver(folder)
    assert not driver.ledger.exhausted()
    request(folder, "set", field="max_gpu_hours", value=1e-9)
    driver.check()
    assert driver.ledger.exhausted() == "max_gpu_hours 1e-09 reached"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("trials", 0, "greater than"),
        ("repeats", None, "repeats"),
        ("until_gain", 2, "until_gain"),
        ("rungs_kimg", [1], "budget.rungs_kimg: cannot change in a sweep that has begun"),
    ],
)
def test_a_value_that_the_space_does_not_allow_changes_nothing(folder, field, value, complaint):
    driver = Driver(folder)
    before = records.space_of(folder)
    file = request(folder, "set", field=field, value=value)
    driver.check()
    assert answer(file).refused
    assert complaint in answer(file).answer
    assert records.space_of(folder) == before == driver.ledger.space


def test_what_is_set_needs_a_limit_that_can_change():
    assert budget_changes.parse("budget.trials=40") == ("trials", 40)
    assert budget_changes.parse("until_gain=0.5%") == ("until_gain", "0.5%")
    assert budget_changes.parse("budget.max_gpu_hours=none") == ("max_gpu_hours", None)
    assert budget_changes.parse("budget.max_gpu_hours=1.5") == ("max_gpu_hours", 1.5)
    for wrong in ("budget.rungs_kimg=[1]", "objectives=fid", "budget.trials"):
        with pytest.raises(UserError, match=r"these can: budget\.trials, |give a value, such as budget\.trials=40"):
            budget_changes.parse(wrong)


def test_the_same_command_keeps_what_was_set_and_another_value_of_its_own_counts_again(folder):
    asked = make_space(budget=BUDGET)
    driver = Driver(folder)
    for trials in (7, 9):
        request(folder, "set", field="trials", value=trials)
        driver.check()
    assert budget_changes.applied(asked, budget_changes.in_force(folder, asked)).budget.trials == 9
    more = make_space(budget=BUDGET | {"trials": 6})
    assert budget_changes.in_force(folder, more) == {}


def test_a_stopped_trial_ends_at_once_and_the_others_go_on(folder):
    driver = Driver(folder)
    repeat = next_repeat(driver.ledger)
    assert repeat
    assert repeat.status == "running"
    file = request(folder, "stop", trial=repeat.trial)
    driver.check()
    assert answer(file).answer == f"trial {repeat.trial} is stopped by anna on ws-01"
    assert (repeat.status, repeat.cause) == ("stopped", "stopped by anna on ws-01")
    record = json.loads((folder.trial(repeat.trial) / store.TRIAL_FILE).read_text())
    assert (record["status"], record["stopped"]) == ("pruned", "stopped by anna on ws-01")
    train_all(driver.ledger)
    assert len(driver.ledger.trials) == 5
    assert len(driver.ledger.trials[repeat.trial].repeats) == 1


def test_a_trial_that_is_stopped_in_the_race_gets_no_more_seeds_and_keeps_its_scores(folder):
    driver = Driver(folder)
    while not any(repeat.phase == "race" for repeat in driver.ledger.repeats):
        train_one(driver.ledger)
    leader = next(trial for trial in driver.ledger.trials if len(trial.repeats) > 1)
    request(folder, "stop", trial=leader.number)
    driver.check()
    count = len(leader.repeats)
    train_all(driver.ledger)
    assert leader.status == "complete"
    assert len(leader.repeats) == count
    assert not any(repeat.open for repeat in leader.repeats)
    assert sum(len(trial.repeats) == 3 for trial in driver.ledger.trials) >= 1


def train_one(ledger: Ledger) -> None:
    from made_up_sweep import _train

    repeat = next_repeat(ledger)
    assert repeat
    _train(ledger, repeat, "")


def test_trials_that_cannot_be_stopped_are_refused(folder):
    driver = Driver(folder)
    files = [request(folder, "stop", trial=99)]
    train_all(driver.ledger)
    pruned = next(trial for trial in driver.ledger.trials if trial.status == "pruned")
    files.append(request(folder, "stop", trial=pruned.number))
    driver.check()
    assert [answer(file).refused for file in files] == [True, True]
    assert "trial 99: the sweep has begun no such trial" in answer(files[0]).answer
    assert "it is pruned" in answer(files[1]).answer


@pytest.mark.parametrize("writes", range(1, 6))
def test_a_driver_that_is_killed_at_any_write_is_succeeded_by_one_that_completes_the_request(
    folder, monkeypatch, writes
):
    class Killed(BaseException):
        pass

    def write_and_die(path, text):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        write(path, text)

    driver = Driver(folder)
    repeat = next_repeat(driver.ledger)
    assert repeat
    files = [request(folder, "set", field="trials", value=4), request(folder, "stop", trial=repeat.trial)]
    left = writes
    write = store.write_atomic
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomic", write_and_die)
        with contextlib.suppress(Killed):
            driver.check()

    successor = Driver(folder)
    assert all(answer(file).answered for file in files)
    assert successor.ledger.space.budget.trials == 4
    assert successor.ledger.trials[repeat.trial].repeats[0].status == "stopped"
    train_all(successor.ledger)
    assert len(successor.ledger.trials) == 4
    again = records.read_records(folder)
    assert again.problems == []
    assert [trial.status for trial in again.trials] == [trial.status for trial in successor.ledger.trials]


def test_a_resumed_sweep_decides_as_an_undisturbed_one_after_the_same_requests(tmp_path):
    proposals = []
    for name, kills in (("undisturbed", False), ("killed", True)):
        folder = write_sweep(tmp_path / name / "lab", make_space(budget=BUDGET), most=1, reason="")
        folder.outcome.unlink()
        driver = Driver(folder)
        request(folder, "set", field="trials", value=6)
        request(folder, "stop", trial=0)
        driver.check()
        while driver.ledger.propose() and kills:
            driver = Driver(folder)
            train_one(driver.ledger)
        train_all(Driver(folder).ledger)
        proposals.append([(trial.params, trial.status) for trial in records.read_records(folder).trials])
    assert proposals[0] == proposals[1]
    assert len(proposals[0]) == 6


def test_to_pause_ends_the_sweep_and_is_out_of_date_at_the_next_start(folder):
    driver = Driver(folder)
    file = request(folder, "pause")
    driver.check()
    assert driver.reasons == ["paused"]
    assert answer(file).answer.startswith("the sweep pauses")

    late = request(folder, "pause")
    assert Driver(folder).reasons == []
    assert answer(late).answer.startswith("out of date")


def test_a_request_that_is_damaged_is_named_and_ignored(folder):
    driver = Driver(folder)
    file = request(folder, "set", field="trials", value=7)
    file.write_text(file.read_text().replace("7", "8"))
    driver.check()
    driver.check()
    assert len([line for line in driver.said if str(file) in line and "ignored" in line]) == 1
    (line,) = steering.waiting(folder)
    assert str(file) in line
    assert records.space_of(folder).budget.trials == 5


def test_a_command_waits_for_the_answer_of_a_driver(folder, capsys):
    driver = Driver(folder)

    def drive() -> None:
        while not any(answer(file).answered for file in folder.requests()):
            driver.check()
            time.sleep(0.05)

    with store.exclusive(folder.lock, "it"):
        thread = threading.Thread(target=drive)
        thread.start()
        main.main(["set", str(folder.path), "budget.trials=7"])
        thread.join()
    assert capsys.readouterr().out.strip() == "budget.trials is 7, was 5"


def test_without_a_driver_a_request_waits_for_the_next_one(folder, monkeypatch, capsys):
    monkeypatch.setattr(steering, "SILENCE_TIMEOUT_S", 0.1)
    main.main(["stop", str(folder.path), "--trial", "0"])
    assert [line.partition(" has ")[2] for line in steering.waiting(folder)] == ["asked to stop trial 0"]
    assert "it will carry this out when its command is run again" in capsys.readouterr().out
    assert Driver(folder).ledger.trials[0].status == "pruned"

    with pytest.raises(SystemExit) as ending:
        main.main(["pause", str(folder.path)])
    assert ending.value.code == 2
    assert "is not running, so there is nothing to pause" in capsys.readouterr().err
    assert len(folder.requests()) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["set", "SWEEP", "budget.rungs_kimg=1"], "budget.rungs_kimg: cannot change in a sweep that has begun; these"),
        (["set", "SWEEP", "budget.trials=many"], "budget.trials"),
        (["set", "elsewhere", "budget.trials=4"], "elsewhere: not the folder of a sweep"),
        (["pause", "elsewhere"], "elsewhere: not the folder of a sweep"),
        (["stop", "SWEEP"], "Missing option '--trial'"),
    ],
)
def test_a_mistake_is_refused_in_a_line_and_leaves_nothing(folder, arguments, complaint, capsys):
    with pytest.raises(SystemExit) as ending:
        main.main([str(folder.path) if word == "SWEEP" else word for word in arguments])
    assert ending.value.code == 2
    text = capsys.readouterr().err
    assert complaint in text
    assert text.count("\n") == 1
    assert folder.requests() == []


def test_a_sweep_of_another_user_is_left_alone(folder, monkeypatch, capsys):
    monkeypatch.setattr(steering.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SystemExit):
        main.main(["set", str(folder.path), "budget.trials=7"])
    assert "belongs to another user; only its owner" in capsys.readouterr().err
    assert folder.requests() == []


def test_the_process_of_a_stopped_repeat_is_ended_and_its_place_is_free(folder):
    """What trains is killed, what waits for its GPUs ends at its next report, and what has no process is unstaged."""
    driver = Driver(folder)
    searcher = tune_loop.RepeatSearcher(driver.ledger, lambda: 3, list, str, str)
    killed, unstaged = [], []
    trials = {}
    for name in ("trains", "waits", "staged"):
        searcher.suggest(name)
        actor = None if name == "staged" else object()
        trials[name] = SimpleNamespace(
            trial_id=name, status="PENDING", temporary_state=SimpleNamespace(ray_actor=actor), is_finished=lambda: False
        )
        searcher.watch(trials[name])
    searcher.handle_result("trains", {tune_loop.WORKING: True})
    for repeat in driver.ledger.running:
        request(folder, "stop", trial=repeat.trial)
    driver.check()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_loop, "_kill", lambda _, trial: killed.append(trial.trial_id))
        patch.setattr(tune_loop, "_unstage", lambda _, trial: unstaged.append(trial.trial_id))
        searcher.end_stopped(None)
    assert (killed, unstaged) == (["trains"], ["staged"])
    assert not searcher.handle_result("waits", {tune_loop.WORKING: True})
    assert searcher._ending == {"waits"}
    searcher.on_trial_complete("waits")
    assert searcher.suggest("next") is not None
