"""The comparison of search methods: its surfaces, its simulated nodes, its statistics."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.search import cells, losses, peers, races, replays, report, rung_samples, surfaces, tables, warm
from benchmarks.search import statistics as paired_statistics
from benchmarks.search.__main__ import console
from benchmarks.search.cells import Cell
from benchmarks.search.curves import Curve, Values, decay, noisy
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Decision, Simulation, Statement, Task
from benchmarks.search.surfaces import RUNGS, Synthetic
from scrimp_platform.search import proposals, records
from scrimp_platform.search.prior import EarlierSweep
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

SPACE = Space.of(
    recipe="tiny-edm",
    search={"network.dropout": {"uniform": [0.0, 0.5]}},
    objectives={"fd_classifier": "minimize"},
    scoring={"extractor": "classifier", "samples": 1000},
    budget={"trials": 10, "rungs_kimg": [1, 3], "reduction": 3},
)
RECIPES = st.builds(
    lambda seed: surfaces.decode(surfaces.sample(np.random.default_rng(seed), 1)[0]), st.integers(0, 10_000)
)
SEEDS = st.integers(0, 10_000)
TWIN = Synthetic(0, noise=0.1)
TWIN_OF_2 = Synthetic(0, noise=0.02)


@pytest.fixture(scope="module")
def surface() -> Synthetic:
    return Synthetic(0, noise=0.1)


@dataclass
class Line:
    """A surface of one field, whose value is the score and, in hours, what a kimg costs."""

    horizon: float = 100.0
    fails_at: float = math.inf
    name: str = "line"
    space: Space = SPACE
    best: float = 1.0

    def truth(self, values: Values) -> float:
        return values["hours"]

    def train(self, values: Values, seed: int) -> Curve:
        hours = values["hours"]
        fails_at = self.fails_at if values.get("fails") else math.inf
        return Curve(hours, {1.0: 2 * hours, 3.0: hours}, fails_at)


class Script:
    """A method that proposes what it is told to, and writes down what it hears."""

    def __init__(self, tasks: Sequence[Task], decisions: dict[int, Decision] | None = None) -> None:
        self.tasks = list(tasks)
        self.decisions = decisions or {}
        self.heard: list[tuple] = []

    def propose(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        self.heard.append((task.key, kimg, score, hours))
        return self.decisions.pop(task.key, "continue")

    def end(self, task: Task, failure: str) -> None:
        self.heard.append((task.key, failure))

    def recommend(self) -> Values | None:
        finals = [entry[2] for entry in self.heard if len(entry) == 4 and entry[1] == 3]
        return {"hours": min(finals)} if finals else None

    def front(self) -> list[Values]:
        return []

    def statement(self) -> Statement | None:
        return None


def task(key: int, hours: float, trained: float = 0.0, **more: object) -> Task:
    return Task(key, {"hours": hours, **more}, seed=key, trained=trained)


def test_two_nodes_follow_the_schedule_that_was_reckoned_by_hand():
    """Node one: repeat 0 to hour 6. Node two: repeat 1 stops at hour 1, repeat 2 ends at hour 10."""
    method = Script([task(0, 2), task(1, 1), task(2, 3)], {1: "stop"})
    outcome = Simulation(method, Line(), nodes=2, step=4).run()
    assert method.heard == [
        (1, 1.0, 2.0, 1.0),
        (0, 1.0, 4.0, 2.0),
        (2, 1.0, 6.0, 3.0),
        (0, 3.0, 2.0, 6.0),
        (0, ""),
        (2, 3.0, 3.0, 9.0),
        (2, ""),
    ]
    assert outcome.elapsed == 10
    assert outcome.spent == 6 + 1 + 9
    assert outcome.idle == 0  # until repeat 2 began, at hour 1
    assert (outcome.trials, outcome.repeats, outcome.finished, outcome.failed) == (3, 3, 2, 0)
    # Repeat 0 has its last score after 12 GPU-hours; that it is no worse than any later one needs no more of them.
    assert outcome.hours[:4] == [4, 8, 12, 16]
    assert [math.isnan(regret) for regret in outcome.regrets[:3]] == [True, True, True]
    assert outcome.regrets[3:] == [1.0] * 22
    assert outcome.final_regret == 1.0


def test_a_node_without_a_repeat_is_idle_until_the_last_one_begins():
    class Waits(Script):
        def propose(self) -> Task | None:
            waits = len(self.tasks) == 1 and not any(entry == (0, "") for entry in self.heard)
            return None if waits else super().propose()

    outcome = Simulation(Waits([task(0, 2), task(1, 1)]), Line(), nodes=2).run()
    assert outcome.elapsed == 6 + 3
    assert outcome.idle == pytest.approx(6 / (2 * 6))


def test_the_simulation_ends_in_the_midst_of_repeats_when_its_gpu_hours_are_spent():
    outcome = Simulation(Script([task(0, 2), task(1, 2)]), Line(horizon=10), nodes=2, step=5).run()
    assert outcome.spent == 10
    assert outcome.elapsed == 5
    assert outcome.finished == 0
    assert outcome.hours == [5, 10]


def test_scoring_takes_the_hours_that_a_curve_states():
    class Scored(Line):
        def train(self, values: Values, seed: int) -> Curve:
            return replace(super().train(values, seed), hours_per_score={1.0: 0.25, 3.0: 0.5})

    method = Script([task(0, 2)])
    outcome = Simulation(method, Scored(), nodes=1).run()
    assert method.heard == [(0, 1.0, 4.0, 2.25), (0, 3.0, 2.0, 6.75), (0, "")]
    assert outcome.spent == 6.75


def test_a_score_of_fewer_samples_is_noisier_too_high_and_cheaper():
    values = TWIN_OF_2.values_of_best()
    fewer = rung_samples.RungSamples(0, fewer=5.0, bias=0.1)
    everywhere = rung_samples.RungSamples(0, fewer=1.0, bias=0.1)
    plain = TWIN_OF_2.train(values, 3)
    assert everywhere.train(values, 3).scores == plain.scores
    assert fewer.train(values, 3).scores[RUNGS[-1]] == plain.scores[RUNGS[-1]]
    assert fewer.train(values, 3).hours_per_score == pytest.approx(dict(zip(RUNGS, (0.04, 0.04, 0.2), strict=True)))

    # 0.3 of the variance, 0.02 squared, is drawn anew at each rung: with a fifth of the samples five times as much.
    bias = 4 * 0.1 * TWIN_OF_2.best
    scores = np.array([fewer.train(values, seed).scores[RUNGS[0]] for seed in range(2000)]) - bias
    assert scores.mean() == pytest.approx(TWIN_OF_2.expected(values)[0], rel=0.003)
    assert np.log(scores).std() == pytest.approx(0.02 * math.sqrt(0.7 + 5 * 0.3), rel=0.06)


def test_a_paused_repeat_goes_on_where_it_was_and_costs_what_was_left():
    method = Script([task(0, 2), task(0, 2, trained=1.0)], {0: "pause"})
    outcome = Simulation(method, Line(), nodes=1).run()
    assert method.heard == [(0, 1.0, 4.0, 2.0), (0, 3.0, 2.0, 6.0), (0, "")]
    assert outcome.spent == 6
    assert outcome.repeats == 1


def test_a_repeat_that_diverges_ends_there():
    method = Script([task(0, 2, fails=True)])
    outcome = Simulation(method, Line(fails_at=2.0), nodes=1).run()
    assert method.heard == [(0, 1.0, 4.0, 2.0), (0, "Diverged: the loss is not finite")]
    assert outcome.spent == 4
    assert outcome.failed == 1


def test_a_method_that_knows_the_truth_has_no_regret(surface: Synthetic):
    class Knows(peers.Random):
        def recommend(self) -> Values:
            return surface.values_of_best()

    outcome = Simulation(Knows(surface, 0), surface).run()
    assert len(outcome.regrets) == 32
    assert outcome.regrets == pytest.approx([0.0] * 32, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(RECIPES)
def test_no_recipe_beats_the_best_and_mean_curves_fall_to_the_truth(surface: Synthetic, values: Values):
    curve = surface.expected(values)
    assert sorted(curve, reverse=True) == curve
    assert curve[-1] == pytest.approx(surface.truth(values))
    assert surface.truth(values) >= surface.best * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(RECIPES, SEEDS)
def test_a_repeat_depends_on_recipe_and_seed_alone(surface: Synthetic, values: Values, seed: int):
    assert repr(surface.train(values, seed)) == repr(TWIN.train(dict(values), seed))
    assume(not math.isnan(surface.train(values, seed).scores[RUNGS[0]]))
    assert surface.train(values, seed).scores != surface.train(values, seed + 1).scores


@settings(max_examples=60, deadline=None)
@given(RECIPES)
def test_recipes_are_proposals_of_the_space_and_are_read_back(surface: Synthetic, values: dict):
    assert list(values) == surface.space.active(values)
    assert all(surface.space.search[path].allows(value) for path, value in values.items())
    surface.space.base().replace(values)
    assert surfaces.decode(surfaces.encode(values)) == pytest.approx(values)


@given(
    st.floats(0.05, 3),
    st.floats(0.2, 1),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.floats(0.01, 0.2),
    SEEDS,
)
def test_noise_is_nothing_but_a_factor_that_vanishes_with_it(
    excess: float, exponent: float, shares: list[float], noise: float, seed: int
):
    mean = [decay(kimg, RUNGS[-1], RUNGS[0], excess, exponent) for kimg in RUNGS]
    assert mean[0] == pytest.approx(1 + excess)
    assert mean[-1] == 1
    drawn = noisy(mean, noise, shares[0], random.Random(seed))
    assert all(score > 0 for score in drawn)
    assert noisy(mean, 0.0, shares[0], random.Random(seed)) == pytest.approx(mean)


def test_the_mean_over_seeds_is_the_truth_and_the_deviation_is_the_noise(surface: Synthetic):
    values = surface.values_of_best()
    curves = [surface.train(values, seed) for seed in range(2000)]
    assert not any(map(math.isnan, (curve.scores[RUNGS[-1]] for curve in curves)))
    finals = [curve.scores[RUNGS[-1]] for curve in curves]
    assert statistics.fmean(finals) == pytest.approx(surface.best, rel=4 * 0.1 / math.sqrt(len(finals)))
    assert statistics.stdev(map(math.log, finals)) == pytest.approx(0.1, rel=0.06)
    firsts = [math.log(curve.scores[RUNGS[0]]) for curve in curves]
    lasts = [math.log(curve.scores[RUNGS[-1]]) for curve in curves]
    assert np.corrcoef(firsts, lasts)[0, 1] == pytest.approx(surfaces.LASTING, abs=0.05)


def test_surfaces_have_what_makes_a_search_hard():
    for seed in range(3):
        surface = Synthetic(seed, noise=0.02)
        recipes = [surfaces.decode(row) for row in surfaces.sample(np.random.default_rng(1), 400)]
        curves = [surface.train(values, 0) for values in recipes]
        hours = [curve.hours_per_kimg for curve in curves]
        assert 3 < max(hours) / min(hours) <= surfaces.SPREAD + 1e-9
        diverged = [any(map(math.isnan, curve.scores.values())) or curve.fails_at < RUNGS[-1] for curve in curves]
        assert 0.03 < statistics.fmean(diverged) < 0.16
        means = np.array([surface.expected(values) for values in recipes])
        early, late = np.corrcoef(stats.rankdata(means, axis=0), rowvar=False)[2, :2]
        assert 0.3 < early < late < 1
        assert len({repr(values) for values in recipes}) < len(recipes)


def test_the_best_of_as_many_random_recipes_as_trials_is_as_near_as_it_says():
    for seed in range(3):
        surface = Synthetic(seed, noise=0.02)
        chance = np.random.default_rng(5)
        bests = []
        for _ in range(20):
            rows = surfaces.sample(chance, surfaces.TRIALS)
            regrets = [surface.truth(surfaces.decode(row)) / surface.best - 1 for row in rows]
            bests.append(min(regrets))
        assert statistics.median(bests) == pytest.approx(surfaces.BEST_OF_TRIALS, rel=0.4)


@pytest.mark.skipif(not (cells.TABLES / "nas-imagenet.npz").exists(), reason="made by `make bench-search`")
@pytest.mark.parametrize("name", list(tables.SOURCES))
def test_a_table_s_repeats_end_at_one_of_its_seeds(name: str):
    table = tables.Table(name, 0, cells.TABLES)
    best = table.values_of_best()
    finals = {table.train(best, seed).scores[RUNGS[-1]] for seed in range(20)}
    assert len(finals) == (tables.SEEDS if name.startswith("nas") else 4)
    assert statistics.fmean(finals) == pytest.approx(table.best)
    assert table.truth(best) == table.best


def test_scrimp_runs_its_own_sweep_to_the_end(tmp_path: Path):
    surface = Synthetic(0, noise=0.02)
    budget = surface.space.budget.model_copy(update={"trials": 12, "leaders": 2, "repeats": 3})
    space = surface.space.model_copy(update={"budget": budget})
    outcome = Simulation(Scrimp(space, 0, tmp_path), surface, limit=math.inf).run()
    trials = records.read_records(SweepFolder(tmp_path)).trials
    assert len(trials) == 12
    assert sum(len(trial.repeats) for trial in trials) == outcome.repeats
    assert outcome.stated is not None
    mean, low, high = outcome.stated
    assert low < mean < high
    assert outcome.raced[0] == (outcome.truth, 2)
    assert len(outcome.raced) == 2


def test_races_of_one_search_compare_the_same_recipes_with_other_seeds():
    surface = Synthetic(0, noise=0.02)
    budget = surface.space.budget.model_copy(update={"trials": 12, "leaders": 2, "repeats": 3})
    surface.space = surface.space.model_copy(update={"budget": budget})
    one, other = races.race_again(surface, 0, 2)
    assert {truth for truth, _ in one["raced"]} == {truth for truth, _ in other["raced"]}
    assert len(one["raced"]) == 2
    assert one["stated"] != other["stated"]


def test_a_method_that_runs_for_itself_is_timed_until_a_recipe_is_good_enough():
    surface = Synthetic(0, noise=0.02)
    budget = surface.space.budget.model_copy(update={"trials": 3, "repeats": 1})
    surface.space = surface.space.model_copy(update={"budget": budget})
    first = proposals.propose([], surface.space.model_copy(update={"proposals": "random"}), 4)
    curve = surface.train(first, 0)
    assert math.isfinite(curve.scores[RUNGS[-1]])
    assert replays.run_for_itself(surface, "random", 4, math.inf) == pytest.approx(curve.hours_per_kimg * RUNGS[-1])
    assert replays.run_for_itself(surface, "random", 4, 0.0) == math.inf


@pytest.mark.parametrize("method", ["random", "optuna-tpe", "optuna-tpe-halving"])
def test_a_peer_trains_each_trial_of_the_budget_at_most_once(method: str):
    surface = Synthetic(1, noise=0.02)
    outcome = Simulation(cells.PEERS[method](surface, 1), surface, limit=math.inf).run()
    assert outcome.repeats == surfaces.TRIALS
    assert outcome.idle == 0
    assert outcome.final_regret < 0.2


def test_the_difference_of_pairs_is_the_closed_form_s():
    chance = np.random.default_rng(3)
    ours = chance.normal(1.0, 1.0, 200)
    theirs = ours + chance.normal(0.3, 0.5, 200)
    result = paired_statistics.paired(ours.tolist(), theirs.tolist())
    gaps = ours - theirs
    half = 1.96 * gaps.std(ddof=1) / math.sqrt(200)
    assert result.mean == pytest.approx(gaps.mean())
    assert result.low == pytest.approx(gaps.mean() - half, abs=0.01)
    assert result.high == pytest.approx(gaps.mean() + half, abs=0.01)
    spread = gaps.std(ddof=1) / math.sqrt(200)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(gaps.mean()) / spread, 199))


def test_holm_multiplies_the_least_p_by_all_and_never_falls():
    assert paired_statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired_statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_hours_to_near_the_best_count_from_when_it_stays_near():
    assert cells.hours_to([0.2, 0.04, 0.2, 0.05, 0.03], 0.05, 20) == 80
    assert cells.hours_to([0.01, None], 0.05, 20) == math.inf
    assert cells.hours_to([0.01, 0.01], 0.05, 20) == 20


def test_cells_are_kept_and_not_run_again_and_a_method_that_cannot_run_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(surface: object, seed: int) -> peers.Random:
        raise ImportError("no such package")

    monkeypatch.setitem(cells.PEERS, "smac", refuse)  # type: ignore[arg-type]
    plan = [Cell("synthetic-2", method, seed) for seed in (0, 1) for method in ("random", "smac")]
    cells.run(plan, tmp_path)
    before = plan[0].file(tmp_path).stat().st_mtime_ns
    cells.run(plan, tmp_path)
    assert plan[0].file(tmp_path).stat().st_mtime_ns == before

    report.show(console(), ["synthetic-2"], ["random", "smac"], [0, 1], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any("random" in line and " 2 " in line for line in lines)
    assert any("smac" in line and "no such package" in " ".join(lines) for line in lines)


def test_tables_with_the_same_fields_are_related_and_synthetic_surfaces_are_not():
    assert warm.related("protein") == ["naval", "parkinsons", "slice"]
    assert warm.related("nas-imagenet") == ["nas-cifar10", "nas-cifar100"]
    with pytest.raises(LookupError, match="no surface is related to synthetic-2"):
        warm.related("synthetic-2")
    assert not set(warm.unrelated_seeds(0)) & {*range(20), *range(1000, 1040), *warm.unrelated_seeds(1)}


def test_a_misled_sweep_is_given_the_worst_recipes_as_the_best():
    recipes = tuple({"network.dropout": share / 10} for share in range(5))
    sweeps = (EarlierSweep("one", ("network.dropout",), recipes), EarlierSweep("two", ("network.dropout",), recipes))
    misled = warm.reversed_order(WarmStart(("one", "two"), sweeps, first=recipes[:3]))
    assert [sweep.recipes[0] for sweep in misled.sweeps] == [{"network.dropout": 0.4}] * 2
    assert [values["network.dropout"] for values in misled.first] == [0.4, 0.4, 0.3]


class Dropout(Line):
    """A surface whose score is the field."""

    def truth(self, values: Values) -> float:
        return values["network.dropout"]

    def train(self, values: Values, seed: int) -> Curve:
        score = 1 + self.truth(values)
        return Curve(1.0, {1.0: 2 * score, 3.0: score})


def test_a_sweep_of_the_comparison_can_be_read_back_as_an_earlier_one(tmp_path):
    Simulation(Scrimp(SPACE, 0, tmp_path), Dropout(horizon=1000.0)).run()
    warm.describe(SweepFolder(tmp_path), SPACE, "dropout")
    start = warm.given([tmp_path], SPACE)
    assert len(start.sweeps[0].recipes) == 10
    assert start.sweeps[0].recipes[0]["network.dropout"] < start.sweeps[0].recipes[-1]["network.dropout"]


def test_what_a_sweep_loses_is_told_by_step(monkeypatch):
    """Each step chooses among what the one before left; without noise the race recommends the best that it has."""
    monkeypatch.setattr(cells, "SURFACES", {"dropout": lambda seed: Dropout(horizon=1000.0)})
    lost = losses.losses("dropout", 0)
    assert lost.proposed <= lost.complete <= lost.raced
    assert lost.recommended == pytest.approx(lost.raced)
