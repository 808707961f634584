"""Who proposes a sweep's trials: in the same way after an interruption, within the ranges, evenly where it says so."""

from typing import Any

import numpy as np
import pytest
from made_up_rows import make_row
from made_up_sweep import make_space
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from scrimp_platform.search import curves, proposals
from scrimp_platform.search.quasi_random import quantile
from scrimp_platform.search.records import Repeat, Trial
from scrimp_trainers.common.errors import UserError

KINDS = ["tpe", "gp", "random", "qmc", "curves"]
SEARCH = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "network.channels": {"int": [8, 64], "step": 8},
    "diffusion.p_std": {"uniform": [0.8, 1.6]},
    "mafp.p1": {"choice": [0.0, 0.1, 0.2]},
    "mafp.p2": {"uniform": [0.0, 0.5], "when": {"mafp.p1": [0.1, 0.2]}},
}


class Search:
    """Takes proposals of a kind, and scores them."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.space = make_space(proposals=kind, search=SEARCH)
        self.seed = seed
        self.trials: list[Trial] = []

    def next(self) -> dict:
        """Propose, without a memory but the trials."""
        learned = curves.learn(self.trials, self.space) if self.space.proposals == "curves" else None
        return proposals.propose(self.trials, self.space, self.seed, curves=learned)

    def propose(self) -> dict:
        """Take a proposal, and record a score that depends on it."""
        values = self.next()
        score = abs(np.log10(values["optimizer.lr"]) + 3) + values["mafp.p1"]
        self.add(values, "finished", "complete", self.space.budget.rungs_kimg[-1], float(score))
        return values

    def add(self, values: dict, end: Any, status: Any, kimg: float, score: float) -> None:
        number = len(self.trials)
        rungs = {} if end == "failed" else {kimg: make_row(fd_classifier=score)}
        self.trials.append(Trial(number, values, status, [Repeat(number, 0, 0, "search", end, rungs=rungs)]))


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_are_a_function_of_the_trials(kind):
    search = Search(kind)
    for _ in range(10):
        proposed = search.next()
        assert search.propose() == proposed


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_lie_in_the_ranges_and_differ_with_the_seed(kind):
    search = Search(kind)
    proposed = [search.propose() for _ in range(10)]
    for values in proposed:
        assert all(search.space.search[path].allows(value) for path, value in values.items())
        assert ("mafp.p2" in values) == (values["mafp.p1"] > 0)
    assert Search(kind, seed=1).propose() != proposed[0]


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_given_are_kept_and_the_rest_is_proposed(kind):
    search = Search(kind)
    values = proposals.propose([], search.space, 0, fixed={"optimizer.lr": 0.005, "mafp.p1": 0.2})
    assert (values["optimizer.lr"], values["mafp.p1"]) == (0.005, 0.2)
    assert values.keys() == SEARCH.keys()


@pytest.mark.parametrize(("kind", "seeds"), [("tpe", range(3)), ("gp", [0]), ("curves", range(3))])
def test_what_learns_from_results_comes_nearer_than_chance(kind, seeds):
    distances = []
    for seed in seeds:
        search = Search(kind, seed)
        proposed = [search.propose() for _ in range(25)]
        distances += [abs(np.log10(values["optimizer.lr"]) + 3) for values in proposed[10:]]
    assert np.mean(distances) < 0.35  # by chance 0.5


def test_a_sobol_sequence_covers_every_field_evenly():
    search = Search("qmc")
    proposed = [search.propose() for _ in range(32)]
    for path, low, high in [("diffusion.p_std", 0.8, 1.6), ("optimizer.lr", 1e-4, 1e-2)]:
        values = np.array([values[path] for values in proposed])
        shares = np.log(values / low) / np.log(high / low) if path == "optimizer.lr" else (values - low) / (high - low)
        assert sorted(int(share * 32) for share in shares) == list(range(32))  # one in each of 32 equal parts
    counts = np.bincount([round(values["mafp.p1"] * 10) for values in proposed])
    assert counts.min() >= 10
    channels = np.bincount([values["network.channels"] // 8 for values in proposed])[1:]
    assert channels.tolist() == [4] * 8


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_quantiles_are_scipys(share):
    assert quantile(FloatDistribution(2.0, 5.0), share) == pytest.approx(stats.uniform(2, 3).ppf(share))
    assert quantile(FloatDistribution(0.01, 10, log=True), share) == pytest.approx(
        stats.loguniform(0.01, 10).ppf(share)
    )
    assert quantile(IntDistribution(3, 9), share) == max(3, stats.randint(3, 10).ppf(share))
    assert quantile(CategoricalDistribution("abc"), share) == "abc"[int(share * 3)]


def test_curves_is_the_default_for_one_objective_and_an_unknown_name_is_refused():
    assert make_space().proposals == "curves"
    assert make_space(objectives={"fd_classifier": "minimize", "parameters": "minimize"}).proposals == "tpe"
    with pytest.raises(
        UserError, match="proposals: Input should be 'curves', 'tpe', 'gp', 'random' or 'qmc', not 'best'"
    ):
        make_space(proposals="best")


def test_curves_takes_one_objective():
    with pytest.raises(UserError, match="curves models one objective"):
        make_space(proposals="curves", objectives={"fd_classifier": "minimize", "parameters": "minimize"})


def test_curves_learns_from_low_rungs_and_avoids_what_fails():
    """No trial is ever trained to the end: they wait at the first rung, or fail at large learning rates."""
    search = Search("curves")
    first = search.space.budget.rungs_kimg[0]
    rates = []
    for _ in range(30):
        values = search.next()
        rates.append(values["optimizer.lr"])
        score = float(np.exp(abs(np.log10(rates[-1]) + 3)))
        if rates[-1] > 2e-3:
            search.add(values, "failed", "failed", first, score)
        else:
            search.add(values, "paused", "paused", first, score)
    assert np.mean(np.abs(np.log10(rates[15:]) + 3)) < 0.25  # by chance 0.5
    assert np.mean(np.array(rates[15:]) > 2e-3) < 0.2  # by chance 0.35


class Limited(Search):
    """The score falls, and what is limited grows, with the learning rate; it doubles from each rung to the next."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("curves", seed)
        limits = {"memorized_fraction": {"max": 0.1}}
        self.space = make_space(proposals="curves", search=SEARCH, constraints=limits)

    def score(self, values: dict, reached: int, status: Any) -> None:
        """Record the rungs that a trial has reached."""
        rate = values["optimizer.lr"]
        growth = 2.0 ** -len(self.space.budget.rungs_kimg)
        rungs = {}
        for kimg in self.space.budget.rungs_kimg[:reached]:
            growth *= 2
            rungs[kimg] = make_row(fd_classifier=(1e-3 / rate) ** 0.5, memorized_fraction=growth * 100 * rate)
        number = len(self.trials)
        end = "finished" if status == "complete" else status
        self.trials.append(Trial(number, values, status, [Repeat(number, 0, 0, "search", end, rungs=rungs)]))


def test_curves_avoids_what_breaks_a_constraint_although_no_such_trial_was_trained_to_the_end():
    """The limit is at a learning rate of 1e-3; below it all are trained to the end, above it none is."""
    search = Limited()
    rates = []
    for _ in range(30):
        values = search.next()
        rates.append(values["optimizer.lr"])
        kept = rates[-1] < 1e-3
        search.score(values, len(search.space.budget.rungs_kimg) if kept else 1, "complete" if kept else "pruned")
    later = np.log10(rates[15:])
    assert np.mean(later > -2.9) < 0.25  # by chance 0.45, and without the constraint nearly all
    assert np.mean(later > -3.5) > 0.6  # but as near to the limit as is worth it


def test_what_will_break_a_constraint_at_the_last_rung_ranks_behind_what_will_not():
    search = Limited()
    rungs = len(search.space.budget.rungs_kimg)
    for rate in np.geomspace(1e-4, 9e-4, 8):
        values = search.next() | {"optimizer.lr": float(rate)}
        search.score(values, rungs, "complete")
    for rate in (5e-4, 2e-3):  # at their rung both keep the limit, and the second has the better score
        search.score(search.next() | {"optimizer.lr": rate}, 1, "paused")
        assert search.trials[-1].repeats[0].score("memorized_fraction", search.space.budget.rungs_kimg[0]) < 0.1
    learned = curves.learn(search.trials, search.space)
    assert learned
    keeps, breaks = learned.ranks[8], learned.ranks[9]
    assert keeps[0] == 0.0 < 0.5 < breaks[0]
    assert keeps[1] > breaks[1]
    assert keeps < breaks


def test_a_model_is_fitted_again_only_if_there_are_new_scores():
    search = Search("curves")
    for _ in range(12):
        search.propose()
    learned = curves.learn(search.trials, search.space)
    assert learned
    search.trials.append(Trial(12, search.next(), "running", [Repeat(12, 0, 0, "search", "running")]))
    again = curves.learn(search.trials, search.space, learned)
    assert again
    assert again.model is learned.model
    assert len(again.points) == 13
    search.trials.pop()
    search.propose()
    later = curves.learn(search.trials, search.space, again)
    assert later
    assert later.model is not learned.model


@pytest.mark.parametrize("kind", ["curves", "qmc"])
def test_a_point_of_the_sequence_that_was_tried_is_passed_over(kind):
    """As after a warm start from a sweep of the same seed: its best trials are points of the same sequence."""
    other = Search(kind)
    points = [other.propose() for _ in range(4)]
    search = Search(kind)
    search.add(points[2], "finished", "complete", search.space.budget.rungs_kimg[-1], 1.0)
    assert [search.propose() for _ in range(2)] == [points[1], points[3]]


def test_a_space_of_few_recipes_proposes_one_again():
    space = make_space(proposals="qmc", search={"mafp.p1": {"choice": [0.0, 0.1]}})
    trials = [Trial(number, {"mafp.p1": value}, "complete", []) for number, value in enumerate([0.0, 0.1])]
    assert proposals.propose(trials, space, 0)["mafp.p1"] in (0.0, 0.1)
