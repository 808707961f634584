"""What a sweep takes from earlier ones: which fields, in which order, and the same after a resume."""

import shutil
from typing import Any

import numpy as np
import pytest
from made_up_rows import make_row
from made_up_sweep import TREE, make_space, train_all, write_sweep

from scrimp_platform.search import curves, proposals, warm_start
from scrimp_platform.search.encoding import Encoding
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.prior import EarlierSweep, Prior
from scrimp_platform.search.records import Repeat, Trial, read_records
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import DamagedRecord, UserError

FIELDS = tuple(TREE["search"])
ELSEWHERE = {"training.batch_size": {"choice": [32, 64]}}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> SweepFolder:
    return write_sweep(tmp_path_factory.mktemp("earlier") / "photos", make_space())


def collected(folder: SweepFolder, **changes: Any) -> WarmStart:
    return warm_start.collect([folder.path.name], [folder], [], make_space(**changes))


def test_recipes_are_ranked_from_the_best_to_the_worst_and_what_failed_is_last(tmp_path):
    def fate(repeat):
        return "Diverged: the loss is not finite" if repeat.trial in (3, 7) else ""

    folder = write_sweep(tmp_path / "sweep", make_space(budget={"retries": 0}), fate)
    trials = read_records(folder).trials
    ranked = warm_start.ranking(trials, make_space())
    assert {trial.number for trial in ranked} == {trial.number for trial in trials}
    assert {trial.number for trial in ranked[-2:]} == {3, 7}
    assert len(ranked[0].repeats) > 1  # it raced
    rates = [abs(np.log(trial.params["optimizer.lr"] / 3e-3)) for trial in ranked[:-2]]
    assert np.mean(rates[:4]) < np.mean(rates[-4:])


def test_with_several_objectives_those_that_were_trained_to_the_end_are_ranked(tmp_path):
    space = make_space(objectives={"fd_classifier": "minimize", "parameters": "minimize"})
    trials = read_records(write_sweep(tmp_path / "sweep", space)).trials
    ranked = warm_start.ranking(trials, space)
    assert {trial.status for trial in ranked} == {"complete"}
    assert len(ranked) < len(trials)


def test_a_field_is_shared_if_its_conditions_are():
    condition = {"when": {"conditioning.classes": [True]}}
    search = {
        "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "conditioning.classes": {"choice": [False, True]},
        "conditioning.label_drop": {"uniform": [0.1, 0.2]} | condition,
    }
    space = make_space(search=search)
    assert warm_start.shared_fields(space, space) == list(search)
    always = make_space(
        search={
            "optimizer.lr": {"uniform": [1e-3, 1e-2]},
            "conditioning.label_drop": {"uniform": [0.1, 0.2]},
        },
        override={"conditioning": {"classes": True}},
    )
    assert warm_start.shared_fields(always, space) == ["optimizer.lr"]
    assert warm_start.shared_fields(space, always) == ["optimizer.lr"]


def test_what_is_not_shared_is_named(earlier):
    search = {"optimizer.lr": TREE["search"]["optimizer.lr"], **ELSEWHERE}
    start = collected(earlier, search=search)
    (note,) = start.notes
    assert note == (
        "photos: the order of 14 trials by optimizer.lr; not shared: training.batch_size, network.channels, "
        "ema.halflife_kimg, network.dropout"
    )
    assert all(set(recipe) == {"optimizer.lr"} for recipe in start.sweeps[0].recipes)


def test_trials_outside_the_space_are_left_out(earlier):
    narrow = TREE["search"] | {"network.channels": {"choice": [16, 24]}}
    recipes = collected(earlier, search=narrow).sweeps[0].recipes
    assert 3 <= len(recipes) < 14
    assert all(recipe["network.channels"] in (16, 24) for recipe in recipes)


def test_a_sweep_that_shares_nothing_is_refused_by_name_and_left_out_of_all(earlier, tmp_path):
    with pytest.raises(UserError, match=r"^--warm-start .*photos: its space shares no field with this one$"):
        collected(earlier, search=ELSEWHERE)
    other = write_sweep(tmp_path / "other", make_space(search=ELSEWHERE))
    start = warm_start.collect(["all"], [], [earlier, other], make_space())
    assert [sweep.name for sweep in start.sweeps] == ["photos"]
    assert start.notes[1] == f"left out: {other.path}: its space shares no field with this one"


def test_a_sweep_that_has_hardly_begun_is_refused(tmp_path):
    begun = write_sweep(tmp_path / "begun", make_space(), most=2)
    with pytest.raises(UserError, match="begun: 0 of its 0 ranked trials lie in this space; at least"):
        collected(begun)


def test_all_of_a_storage_without_another_sweep_is_no_error():
    start = warm_start.collect(["all"], [], [], make_space())
    assert (start.sweeps, start.first) == ((), ())
    assert start.notes == ("nothing: the storage has no other sweep",)


def test_arms_take_no_warm_start(earlier):
    arms = {"one": {"network.dropout": 0.0}, "two": {"network.dropout": 0.1}}
    tree = {name: value for name, value in TREE.items() if name != "search"}
    space = make_space().of(**tree, arms=arms)
    with pytest.raises(UserError, match="--warm-start: this space lists arms"):
        warm_start.collect(["photos"], [earlier], [], space)


def test_at_most_half_of_the_first_trials_are_those_of_earlier_sweeps(earlier):
    start = warm_start.collect(["photos", "again"], [earlier, earlier], [], make_space())
    assert len(start.first) == 2  # 4 of 14 trials come before proposals are learned
    raced = [trial.params for trial in read_records(earlier).trials if len(trial.repeats) > 1]
    assert all(values in raced for values in start.first)


def test_what_a_sweep_was_given_is_read_back_as_it_was_and_damage_is_noticed(earlier, tmp_path):
    start = collected(earlier)
    folder = SweepFolder(tmp_path)
    warm_start.save(start, folder)
    assert warm_start.load(folder) == start
    assert warm_start.resume([], folder) == start
    assert warm_start.resume(["photos"], folder) == start
    with pytest.raises(UserError, match="began with --warm-start photos, not sketches; use another --name"):
        warm_start.resume(["sketches"], folder)
    folder.warm_start.write_text(folder.warm_start.read_text().replace("photos", "fotos"))
    with pytest.raises(DamagedRecord, match=r"warm_start\.json"):
        warm_start.load(folder)


def test_a_sweep_that_began_without_one_takes_none_later(tmp_path):
    assert warm_start.resume([], SweepFolder(tmp_path)) == WarmStart()
    with pytest.raises(UserError, match="began without --warm-start, not photos"):
        warm_start.resume(["photos"], SweepFolder(tmp_path))


def test_a_prior_expects_what_the_order_says_whatever_the_scores_were():
    space = make_space()
    draw = np.random.default_rng(0)
    shares = draw.uniform(size=(60, len(FIELDS)))
    shares = shares[np.argsort(shares[:, 0])]  # the lower the learning rate the better; nothing else matters
    encoding = Encoding(space)
    sweep = EarlierSweep("photos", FIELDS, tuple(encoding.values(row.tolist()) for row in shares))
    expected = Prior(space, [sweep]).expectations(draw.uniform(size=(40, len(FIELDS))))
    fresh = np.random.default_rng(0)
    fresh.uniform(size=(60, len(FIELDS)))
    wanted = fresh.uniform(size=(40, len(FIELDS)))[:, 0]
    assert expected.shape == (40, 1)
    assert np.corrcoef(expected[:, 0], wanted)[0, 1] > 0.9
    assert abs(np.std(expected) - 1) < 0.4


def test_a_prior_without_sweeps_says_nothing():
    assert Prior(make_space()).expectations(np.zeros((5, 4))).shape == (5, 0)


def test_a_resumed_sweep_proposes_the_same_when_the_earlier_one_is_gone(earlier, tmp_path):
    copy = SweepFolder(tmp_path / "photos")
    shutil.copytree(earlier.path, copy.path)
    start = collected(copy)

    def opened(folder: SweepFolder) -> Ledger:
        return Ledger(folder, make_space(), 3, 1, lambda _: None, warm_start.load(folder))

    whole = SweepFolder(tmp_path / "whole")
    killed = SweepFolder(tmp_path / "killed")
    for folder in (whole, killed):
        folder.path.mkdir()
        warm_start.save(start, folder)
    train_all(opened(whole))

    shutil.rmtree(copy.path)
    for _ in range(5):  # each is killed when it has handed out a repeat
        opened(killed).propose()
    train_all(opened(killed))
    assert [trial.params for trial in read_records(killed).trials] == [t.params for t in read_records(whole).trials]


def test_the_order_of_an_earlier_sweep_shapes_what_the_curve_model_proposes(earlier):
    space = make_space()
    trials = read_records(earlier).trials[:6]
    start = collected(earlier)
    learned = curves.learn(trials, space, prior=Prior(space, start.sweeps))
    alone = curves.learn(trials, space)
    assert learned
    assert alone
    assert learned.model.trust > 0
    assert alone.model.trust == 0
    shares = np.random.default_rng(0).uniform(size=(200, len(FIELDS)))
    means, _, _ = learned.model.predict(learned.points_at(shares), learned.last, learned.points[:0])
    expected = learned.prior.expectations(shares)[:, 0]
    assert np.corrcoef(means, expected)[0, 1] > 0.7


def searched(seed: int, order_of: str) -> float:
    """Search a bowl with an earlier sweep's order; return how far from its bottom what is learned from scores lies.

    The order is that of a bowl nearby, that of one in the opposite corner, or there is none.
    """
    search = {path: span for path, span in TREE["search"].items() if path != "network.channels"}
    space = make_space(search=search, budget={"trials": 40})
    encoding = Encoding(space)
    chance = np.random.default_rng(seed)
    bottom = chance.uniform(0.2, 0.8, len(search))
    bowls = {"nearby": bottom + chance.normal(0, 0.08, len(search)), "opposite": 1 - bottom}

    def depth(shares: np.ndarray, lowest: np.ndarray) -> np.ndarray:
        return ((shares - lowest) ** 2).sum(axis=1)

    sweeps = []
    if order_of in bowls:
        pool = chance.random((80, len(search)))
        ranked = pool[np.argsort(depth(pool, bowls[order_of]))]
        sweeps = [EarlierSweep("bowl", tuple(search), tuple(encoding.values(row.tolist()) for row in ranked))]

    prior = Prior(space, sweeps)
    last = space.budget.rungs_kimg[-1]
    trials: list[Trial] = []
    distances = []
    for number in range(20):
        learned = curves.learn(trials, space, prior=prior)
        values = proposals.propose(trials, space, seed, curves=learned)
        distance = float(depth(encoding.shares([values]), bottom)[0])
        row = make_row(fd_classifier=float(np.exp(distance + 0.02 * chance.normal())))
        trials.append(
            Trial(number, values, "complete", [Repeat(number, 0, 0, "search", "finished", rungs={last: row})])
        )
        distances.append(distance)
    return float(np.mean(distances[10:]))


def test_a_related_order_brings_proposals_nearer_and_a_misleading_one_costs_little():
    alone, nearby, opposite = (
        float(np.mean([searched(seed, order) for seed in range(4)])) for order in ("none", "nearby", "opposite")
    )
    assert nearby < 0.6 * alone
    assert opposite < 1.25 * alone
