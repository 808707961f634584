"""A space of arms: the recipes that are named and no others, none stopped, all repeats for each."""

import pytest
from made_up_sweep import TREE, write_sweep

from scrimp_platform.search import records
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.records import Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces import space as spaces
from scrimp_trainers.common.errors import UserError

ARMS = {
    "plain": {},
    "slow": {"optimizer.lr": 1e-6},
    "wide": {"network.channels": 64, "network.multipliers": [1, 1]},
}
TREE_OF_ARMS = {name: value for name, value in TREE.items() if name != "search"} | {
    "arms": ARMS,
    "budget": {"trials": 99, "leaders": 1, "rungs_kimg": [10, 60], "repeats": 5},
}


def parse(**changes):
    return spaces.parse_space(TREE_OF_ARMS | changes, "space")


def test_what_an_arm_leaves_out_is_as_in_the_recipe():
    space = parse(override={"optimizer.lr": 4e-3})
    assert space.arms["plain"] == {"optimizer.lr": 4e-3, "network.channels": 32, "network.multipliers": [1, 2]}
    assert space.arms["wide"] == {"optimizer.lr": 4e-3, "network.channels": 64, "network.multipliers": [1, 1]}
    assert space.search["network.channels"].choice == [32, 64]


def test_a_space_of_arms_is_read_back_unchanged():
    space = parse()
    assert spaces.parse_space(space.model_dump(), "space") == space
    assert spaces.Space.model_validate(space.model_dump(mode="json")).arms == space.arms


def test_every_arm_is_tried_once_and_has_all_repeats_however_bad_it_is(tmp_path):
    folder = write_sweep(tmp_path / "sweep", parse())
    trials = records.read_records(folder).trials
    assert [trial.params for trial in trials] == list(parse().arms.values())
    assert [len(records.unbiased_repeats(trial, parse(), 60.0)) for trial in trials] == [5, 5, 5]


def test_an_arm_whose_training_fails_is_not_tried_again_and_stops_no_other(tmp_path):
    folder = write_sweep(tmp_path / "sweep", parse(), lambda repeat: "too hot" if repeat.trial == 1 else "")
    assert [trial.status for trial in records.read_records(folder).trials] == ["complete", "failed", "complete"]


def test_an_arm_is_not_missing_if_only_the_journal_knows_it(tmp_path):
    space = parse()
    folder = SweepFolder(tmp_path)
    ledger = Ledger(folder, space, 5, 1, lambda said: None)
    ledger._study.add(Trial(0, space.arms["plain"]))
    ledger = Ledger(folder, space, 5, 1, lambda said: None)
    tried = [ledger.propose() for _ in space.arms]
    assert all(tried)
    assert [trial.params for trial in ledger.trials] == list(space.arms.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"a": {}, "b": {}}}, "two of them are the same"),
        ({"arms": {"a": {"optimizer.lr": 1e-3}, "b": {"optimizer.lr": 2e-3, "ema.ratio": 1}}}, "arms.b: ema.ratio"),
        ({"arms": {"a": {}, "b": {"optimizer.lr": -1}}}, "arms.b: .*optimizer.lr"),
        ({"arms": {"a": {"optimizer.lr": 1, "ema.halflife_kimg": 1}, "b": {"optimizer.lr": 2, "ema.halflife_kimg": 1}}},
         "ema.halflife_kimg is the same in all"),
        ({"search": {"network.dropout": {"uniform": [0, 0.5]}}}, "either search or arms"),
        ({"arms": {}}, "fields to search, or arms"),
    ],
)  # fmt: skip
def test_arms_that_compare_nothing_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        parse(**changes)
