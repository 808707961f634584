"""Who proposes a sweep's trials: in the same way after an interruption, within the ranges, evenly where it says so."""

from pathlib import Path

import numpy as np
import pytest
from made_up_rows import make_row
from made_up_sweep import make_space
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from scrimp_platform.search.quasi_random import quantile
from scrimp_platform.search.study import Study
from scrimp_trainers.common.errors import UserError

KINDS = ["tpe", "gp", "random", "qmc", "curves"]
SEARCH = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "network.channels": {"int": [8, 64], "step": 8},
    "diffusion.p_std": {"uniform": [0.8, 1.6]},
    "mafp.p1": {"choice": [0.0, 0.1, 0.2]},
    "mafp.p2": {"uniform": [0.0, 0.5], "when": {"mafp.p1": [0.1, 0.2]}},
}


def open_study(folder: Path, kind: str, seed: int = 0) -> Study:
    return Study(folder / "study.journal", make_space(proposals=kind, search=SEARCH), seed, say=lambda _: None)


def propose(study: Study) -> dict:
    """Take a proposal, and report a score that depends on it."""
    number, values = study.ask()
    score = abs(np.log10(values["optimizer.lr"]) + 3) + values["mafp.p1"]
    study.complete(number, make_row(fd_classifier=float(score)))
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_that_is_opened_anew_for_every_proposal_proposes_the_same(kind, tmp_path):
    whole = open_study(tmp_path, kind)
    undisturbed = [propose(whole) for _ in range(10)]
    (tmp_path / "again").mkdir()
    assert [propose(open_study(tmp_path / "again", kind)) for _ in range(10)] == undisturbed


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_lie_in_the_ranges_and_differ_with_the_seed(kind, tmp_path):
    space = make_space(proposals=kind, search=SEARCH)
    study = open_study(tmp_path, kind)
    proposed = [propose(study) for _ in range(10)]
    for values in proposed:
        assert all(space.search[path].allows(value) for path, value in values.items())
        assert ("mafp.p2" in values) == (values["mafp.p1"] > 0)
    (tmp_path / "other").mkdir()
    assert propose(open_study(tmp_path / "other", kind, seed=1)) != proposed[0]


@pytest.mark.parametrize(("kind", "seeds"), [("tpe", range(3)), ("gp", [0]), ("curves", range(3))])
def test_what_learns_from_results_comes_nearer_than_chance(kind, seeds, tmp_path):
    distances = []
    for seed in seeds:
        (tmp_path / str(seed)).mkdir()
        study = open_study(tmp_path / str(seed), kind, seed)
        proposed = [propose(study) for _ in range(25)]
        distances += [abs(np.log10(values["optimizer.lr"]) + 3) for values in proposed[10:]]
    assert np.mean(distances) < 0.35  # by chance 0.5


def test_a_sobol_sequence_covers_every_field_evenly(tmp_path):
    study = open_study(tmp_path, "qmc")
    proposed = [propose(study) for _ in range(32)]
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


def test_tpe_is_the_default_and_an_unknown_name_is_refused():
    assert make_space().proposals == "tpe"
    with pytest.raises(
        UserError, match="proposals: Input should be 'tpe', 'gp', 'random', 'qmc' or 'curves', not 'best'"
    ):
        make_space(proposals="best")


def test_curves_takes_one_objective():
    with pytest.raises(UserError, match="curves models one objective"):
        make_space(proposals="curves", objectives={"fd_classifier": "minimize", "parameters": "minimize"})


def test_curves_learns_from_low_rungs_and_avoids_what_fails(tmp_path):
    """No trial is ever trained to the end: they are stopped at the first rung, or fail at large learning rates."""
    space = make_space(proposals="curves", search=SEARCH)
    study = Study(tmp_path / "study.journal", space, 0, say=lambda _: None)
    rates = []
    for _ in range(30):
        number, values = study.ask()
        rates.append(values["optimizer.lr"])
        if values["optimizer.lr"] > 2e-3:
            study.fail(number)
            continue
        study.report(number, round(space.budget.rungs_kimg[0] * 1000), float(np.exp(abs(np.log10(rates[-1]) + 3))))
        study.prune(number)
    assert np.mean(np.abs(np.log10(rates[15:]) + 3)) < 0.25  # by chance 0.5
    assert np.mean(np.array(rates[15:]) > 2e-3) < 0.2  # by chance 0.35
