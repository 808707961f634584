"""What other methods would do on a finished sweep's curves: right, repeatable, and refused where it cannot be known."""

import dataclasses
import math
from pathlib import Path

import pytest
from made_up_rows import make_row
from made_up_sweep import make_space, write_sweep

import scrimp
from scrimp_platform import store
from scrimp_platform.cli import main
from scrimp_platform.search import recording, records, replay
from scrimp_platform.search.recording import Recording
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.replay import METHODS, Method, Search
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

HOUR = 3600.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return write_sweep(tmp_path_factory.mktemp("runs") / "sweep", make_space())


def recorded(number: int, lr: float, scores: dict[float, float], status: str = "finished", raced: float = 0) -> Trial:
    """A trial that took an hour for each 10 kimg, with its scores of the search, and one over fresh seeds."""
    rungs = {
        kimg: make_row(kimg=kimg, rung=kimg, seconds=kimg / 10 * HOUR, fd_classifier=scores[kimg]) for kimg in scores
    }
    repeats = [Repeat(number, 0, 1, "search", status, rungs=rungs)]  # pyright: ignore[reportArgumentType]
    if raced:
        last = {20.0: make_row(kimg=20.0, rung=20.0, seconds=2 * HOUR, fd_classifier=raced)}
        repeats += [Repeat(number, i, 1 + i, "race", "finished", rungs=last) for i in (1, 2)]
    end = {"finished": "complete", "stopped": "pruned", "failed": "failed"}[status]
    return Trial(number, {"optimizer.lr": lr}, end, repeats)  # pyright: ignore[reportArgumentType]


def by_hand() -> Recording:
    """Four recipes with two rungs; two were trained to the end, and 2 is the good one."""
    space = make_space(
        search={"optimizer.lr": {"choice": [1e-3, 2e-3, 3e-3, 4e-3]}},
        budget={"trials": 4, "rungs_kimg": [10, 20], "reduction": 2, "leaders": 1, "repeats": 3},
    )
    trials = [
        recorded(0, 1e-3, {10.0: 50.0}, "stopped"),
        recorded(1, 2e-3, {10.0: 40.0, 20.0: 30.0}),
        recorded(2, 3e-3, {10.0: 20.0, 20.0: 10.0}, raced=11.0),
        recorded(3, 4e-3, {10.0: 60.0}, "stopped"),
    ]
    return Recording(space, 5, {trial.number: trial for trial in trials}, 2, frozenset({2}), 6.0, 4.0)


def in_order(monkeypatch: pytest.MonkeyPatch, *rates: float) -> None:
    """Let every method propose these rates in this order."""
    monkeypatch.setattr(replay.proposals, "propose", lambda trials, *_, **__: {"optimizer.lr": rates[len(trials)]})


def searched(sweep: Recording, name: str) -> Search:
    search = Search(sweep, METHODS[name], 0)
    search.run()
    return search


def test_who_trains_everything_pays_for_everything_before_the_good_recipe(monkeypatch):
    in_order(monkeypatch, 1e-3, 2e-3, 3e-3, 4e-3)
    search = searched(by_hand(), "random")

    # Two hours each, for recipe 0 one of them beyond its record.
    assert search.found_hours == pytest.approx(6.0)
    assert search.found_trials == 3
    assert search.estimated == pytest.approx(1 / 6)
    assert search.recommended == 2
    assert [trial.status for trial in search.trials] == ["pruned", "complete", "complete"]


def test_who_halves_pays_only_to_the_first_rung_for_what_waits_there(monkeypatch):
    in_order(monkeypatch, 1e-3, 2e-3, 3e-3, 4e-3)
    search = searched(by_hand(), "halving")

    # Of four two continue, the first once two have arrived: 0 and 1 cost an hour each, then 1 goes on for an hour.
    # Of three only one may go on, so 2 has to wait for 3: an hour each, and one more for 2. 0 and 3 are given up.
    assert search.found_hours == pytest.approx(6.0)
    assert search.found_trials == 4
    assert search.estimated == 0.0
    assert {trial.number: trial.status for trial in search.trials} == {
        0: "pruned", 1: "complete", 2: "complete", 3: "pruned",
    }  # fmt: skip


def test_what_is_recommended_is_what_was_known_when_the_sweeps_hours_were_spent(monkeypatch):
    in_order(monkeypatch, 1e-3, 4e-3, 2e-3, 3e-3)
    search = searched(dataclasses.replace(by_hand(), search_hours=6.5), "random")
    assert search.found_hours == pytest.approx(8.0)
    assert search.recommended is None  # its only leader is 1, which has no fresh seeds
    assert search.estimated == pytest.approx(2 / 6)


def test_a_recipe_that_failed_costs_what_it_cost_and_is_not_trained_further(monkeypatch):
    in_order(monkeypatch, 1e-3, 3e-3, 2e-3, 4e-3)
    sweep = by_hand()
    sweep.trials[0] = recorded(0, 1e-3, {10.0: 50.0}, "failed")
    sweep.trials[0].repeats[0].spent = 1.5 * HOUR
    search = searched(sweep, "random")
    assert search.trials[0].status == "failed"
    assert (search.found_hours, search.estimated) == (pytest.approx(3.5), 0.0)


def test_beyond_its_record_a_repeat_goes_on_as_fast_as_it_trained():
    first = recorded(0, 1e-3, {10.0: 50.0}, "stopped").repeats[0]
    first.spent = 1.5 * HOUR  # of which an hour of training, and half of one to start
    first.devices = 2
    assert recording.hours(first, 10.0) == pytest.approx(3.0)
    assert recording.hours(first, 20.0) == pytest.approx(5.0)


def test_a_method_gets_the_nearest_recipe_that_it_has_not_had(monkeypatch):
    in_order(monkeypatch, 3e-3, 3e-3, 3e-3, 3e-3)
    search = Search(by_hand(), METHODS["random"], 0)
    numbers = [trial.number for trial in iter(search._new, None)]
    assert numbers[0] == 2
    assert set(numbers[1:3]) == {1, 3}
    assert numbers[3] == 0


@pytest.mark.parametrize("constraints", [{}, {"memorized_fraction": {"max": 0.022}}], ids=["free", "limited"])
@pytest.mark.parametrize("proposals", ["curves", "random", "qmc", "tpe"])
def test_with_the_sweeps_own_method_and_seed_a_replay_is_the_sweep(tmp_path, proposals, constraints):
    space = make_space(proposals=proposals, constraints=constraints)
    sweep = recording.read(write_sweep(tmp_path / "sweep", space, seed=5))
    search = Search(sweep, Method(proposals, halves=True), 5)
    while trial := search._promoted() or search._new():
        search._train(trial)

    def ends(trials: list[Trial]) -> list[tuple[int, str, float]]:
        return [(trial.number, trial.status, max(trial.repeats[0].rungs)) for trial in trials]

    assert ends(search.trials) == ends(list(sweep.trials.values()))
    assert search.hours == pytest.approx(sweep.search_hours)


def test_good_are_the_recommended_trial_and_those_within_2_percent_of_the_best(folder):
    sweep = recording.read(folder)
    known = records.read_records(folder)
    raced = [trial for trial in known.trials if sweep.raced(trial.number)]
    assert len(raced) == 3
    result = scrimp.Result.load(folder.path)
    first = result._rows[0]
    assert sweep.recommended == first.number
    best = min(row.summaries["fd_classifier"].mean for row in result._rows if row.raced)
    near = {row.number for row in result._rows if row.raced and row.summaries["fd_classifier"].mean <= 1.02 * best}
    assert sweep.good == near | {first.number}
    assert sweep.search_hours + sweep.race_hours == pytest.approx(sum(one.device_hours for one in known.repeats))
    assert sweep.scored == sum(trial.status == "complete" for trial in known.trials)


def test_no_search_has_the_seed_of_the_sweep(folder, monkeypatch):
    seeds = []
    monkeypatch.setattr(Search, "run", lambda search: seeds.append(search._seed))
    scrimp.replay(folder.path, methods=["random"], seeds=3)
    assert seeds == [6, 7, 8]  # that of the sweep is 5


def test_the_same_seeds_give_the_same_answer_and_no_file_changes(folder):
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    once, again = (scrimp.replay(folder.path, methods=["scrimp", "random"], seeds=2) for _ in range(2))
    assert once.methods == again.methods
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_the_command_prints_each_method_beside_the_sweep_and_what_it_cannot_tell(folder, capsys):
    main.main(["replay", str(folder.path), "--method", "random", "--method", "qmc", "--seeds", "2"])
    text = " ".join(capsys.readouterr().out.split())
    sweep = recording.read(folder)
    own, other = scrimp.replay(folder.path, methods=["random", "qmc"], seeds=2).methods
    assert f"the sweep yes at most {sweep.search_hours:.3f} at most 14 0% {sweep.recommended:04d} random" in text
    assert f"random {own.found} of 2 " in text
    assert f"qmc {other.found} of 2 " in text
    assert f"{14 - sweep.scored} of 14 recipes have no score at the last rung" in text


def test_a_method_that_never_finds_a_good_recipe_says_so(capsys, folder, monkeypatch):
    sweep = recording.read(folder)
    monkeypatch.setattr(recording, "read", lambda folder: dataclasses.replace(sweep, good=frozenset()))
    replayed = scrimp.replay(folder.path, methods=["random"], seeds=1)
    assert replayed.methods[0].hours == math.inf
    main.main(["replay", str(folder.path), "--method", "random", "--seeds", "1"])
    assert "random 0 of 1 never never" in " ".join(capsys.readouterr().out.split())


def damaged(folder: Path, space: Space) -> None:
    (write_sweep(folder, space).trial(3) / "trial.json").write_text("{}")


def without_outcome(folder: Path, space: Space) -> None:
    write_sweep(folder, space).outcome.unlink()


REFUSED = {
    "it has 9 trials, and a replay needs 10": lambda folder: write_sweep(folder, make_space(budget={"trials": 9})),
    "no trial has fresh seeds": lambda folder: write_sweep(folder, make_space(budget={"repeats": 1})),
    "it has several objectives": lambda folder: write_sweep(
        folder, make_space(objectives={"fd_classifier": "minimize", "parameters": "minimize"})
    ),
    "its arms were compared": lambda folder: write_sweep(
        folder, make_space(search={}, arms={"a": {"optimizer.lr": 1e-3}, "b": {"optimizer.lr": 2e-3}})
    ),
    "no trial of its race keeps the constraints": lambda folder: write_sweep(
        folder, make_space(constraints={"fd_classifier": {"max": 1.0}})
    ),
    "records are damaged": lambda folder: damaged(folder, make_space()),
    "it is not finished; run its command again": lambda folder: write_sweep(folder, make_space(), most=20),
    "it is not finished": lambda folder: without_outcome(folder, make_space()),
}


@pytest.mark.parametrize(("message", "write"), REFUSED.items(), ids=REFUSED)
def test_a_sweep_that_cannot_answer_is_refused_in_a_line(tmp_path, capsys, message, write):
    write(tmp_path / "sweep")
    with pytest.raises(SystemExit) as ending:
        main.main(["replay", str(tmp_path / "sweep")])
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"scrimp: {tmp_path / 'sweep'}: cannot be replayed: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_sweep_that_is_still_running_is_refused(folder):
    with store.exclusive(folder.lock, "sweep"), pytest.raises(UserError, match="it is not finished"):
        recording.read(folder)
