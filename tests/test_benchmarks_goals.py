"""The comparison of search methods under constraints and with several objectives."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.search import cells, goals, peers, report, surfaces
from benchmarks.search.cells import Cell
from benchmarks.search.curves import OBJECTIVE, Curve, Values, excess
from benchmarks.search.goals import MEMORISED, PARAMETERS, ConstrainedSynthetic, TwoObjectives, hypervolume
from benchmarks.search.scrimp import Scrimp
from benchmarks.search.simulate import Decision, Simulation, Statement, Task
from benchmarks.search.surfaces import RUNGS, Synthetic
from scrimp_spaces.constraints import Bound
from scrimp_spaces.space import Space

SPACE = Space.of(
    recipe="tiny-edm",
    search={"network.dropout": {"uniform": [0.0, 0.5]}},
    objectives={OBJECTIVE: "minimize"},
    constraints={PARAMETERS: {"max": 2}, MEMORISED: {"max": 0.1}},
    scoring={"extractor": "classifier", "samples": 1000},
    budget={"trials": 10, "rungs_kimg": [1, 3], "reduction": 3},
)


@pytest.fixture(scope="module")
def constrained() -> ConstrainedSynthetic:
    return ConstrainedSynthetic(0, noise=0.02)


@pytest.fixture(scope="module")
def two() -> TwoObjectives:
    return TwoObjectives(0, noise=0.02)


@dataclass
class Line:
    """A surface whose one field is the score and the hours of a kimg; recipes may say that they break the limit."""

    horizon: float = 100.0
    name: str = "line"
    space: Space = SPACE
    best: float = 1.0

    def truth(self, values: Values) -> float:
        return values["hours"]

    def violation(self, values: Values) -> float:
        return excess(SPACE, {PARAMETERS: values["parameters"], MEMORISED: 0.05})

    def train(self, values: Values, seed: int) -> Curve:
        hours = values["hours"]
        others = {PARAMETERS: dict.fromkeys((1.0, 3.0), values["parameters"]), MEMORISED: {1.0: 0.01, 3.0: 0.05}}
        return Curve(hours, {1.0: 2 * hours, 3.0: hours}, others=others)


@dataclass
class Script:
    """A method that proposes what it is told to, and recommends the lowest score whatever the limits say."""

    tasks: list[Task]
    pauses: set[int] = field(default_factory=set)
    heard: list[tuple] = field(default_factory=list)

    def propose(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        self.heard.append((score, kimg, task.values, others))
        return "pause" if task.key in self.pauses and kimg == 1 else "continue"

    def end(self, task: Task, failure: str) -> None:
        """Take the end."""

    def recommend(self) -> Values | None:
        finals = [entry for entry in self.heard if entry[1] == 3]
        return min(finals, key=lambda entry: entry[0])[2] if finals else None

    def front(self) -> Sequence[Values]:
        return []

    def statement(self) -> Statement | None:
        return None


def task(key: int, hours: float, parameters: float) -> Task:
    return Task(key, {"hours": hours, "parameters": parameters}, seed=key)


def test_gpu_hours_of_infeasible_recipes_are_those_reckoned_by_hand():
    """Of the two that break the limit, one is trained to hour 6, and one of 3 hours a kimg is paused after one."""
    method = Script([task(0, 2, 3), task(1, 4, 1), task(2, 3, 5)], pauses={2})
    outcome = Simulation(method, Line(), nodes=3, step=4).run()
    assert outcome.spent == 6 + 12 + 3
    assert outcome.infeasible == 6 + 3
    assert method.heard[0] == (4.0, 1.0, {"hours": 2, "parameters": 3}, {PARAMETERS: 3, MEMORISED: 0.01})


def test_a_recommendation_that_breaks_a_limit_counts_as_such():
    """Until hour 3, or 6 GPU-hours, there is none; then one that keeps it; from hour 6 on one that is half above it."""
    method = Script([task(0, 1, 1), task(1, 0.5, 3)])
    outcome = Simulation(method, Line(horizon=12), nodes=1, step=1).run()
    assert [math.isnan(broken) for broken in outcome.violations] == [True] * 3 + [False] * 9
    assert outcome.violations[3:] == [0.0, 0.5] + [0.5] * 7
    assert outcome.infeasible == 1.5


def test_excesses_are_shares_of_their_limits():
    assert excess(SPACE, {PARAMETERS: 2, MEMORISED: 0.1}) == 0
    assert excess(SPACE, {PARAMETERS: 3, MEMORISED: 0.05}) == pytest.approx(0.5)
    assert excess(SPACE, {PARAMETERS: 3, MEMORISED: 0.2}) == pytest.approx(1.5)


def test_the_hypervolume_of_three_points_is_the_area_of_their_steps():
    front = [[1, 3], [2, 2], [3, 1]]
    reference = np.array([4.0, 4.0])
    assert hypervolume(np.array(front, dtype=float), reference) == 3 + 2 + 1
    with_useless_ones = [*front, [3, 3], [0, 5], [4, 0]]  # dominated, or no better than the reference
    assert hypervolume(np.array(with_useless_ones, dtype=float), reference) == 6


def test_limits_leave_two_fifths_of_random_recipes_and_not_the_best_ones():
    for seed in range(2):
        surface = ConstrainedSynthetic(seed, noise=0.02)
        chance = np.random.default_rng(5)
        recipes = [surfaces.decode(row) for row in surfaces.sample(chance, 500)]
        kept = [values for values in recipes if not surface.violation(values)]
        assert 0.3 < len(kept) / len(recipes) < 0.5
        by_truth = sorted(recipes, key=surface.truth)
        assert statistics.fmean(surface.violation(values) > 0 for values in by_truth[:10]) > 0.7

        best = surface.values_of_best()
        assert surface.violation(best) == 0
        assert surface.truth(best) == surface.best > Synthetic(seed, noise=0.02).best
        assert min(map(surface.truth, kept)) > surface.best


def test_what_is_memorised_grows_and_its_mean_over_seeds_is_the_truth(constrained: ConstrainedSynthetic):
    values = constrained.values_of_best()
    curves = [constrained.train(values, seed).others for seed in range(600)]
    truths = constrained.truths(values)
    finals = [others[MEMORISED][RUNGS[-1]] for others in curves]
    assert statistics.fmean(finals) == pytest.approx(truths[MEMORISED], rel=4 * goals.NOISE / math.sqrt(600))
    assert statistics.stdev(map(math.log, finals)) == pytest.approx(goals.NOISE, rel=0.12)
    firsts = [others[MEMORISED][RUNGS[0]] for others in curves]
    assert statistics.fmean(firsts) == pytest.approx(truths[MEMORISED] / 4, rel=0.02)
    assert {others[PARAMETERS][kimg] for others in curves for kimg in RUNGS} == {truths[PARAMETERS]}


def test_scores_are_those_of_the_surface_without_limits(constrained: ConstrainedSynthetic):
    plain = Synthetic(0, noise=0.02)
    for row in surfaces.sample(np.random.default_rng(2), 20):
        values = surfaces.decode(row)
        assert constrained.truth(values) == plain.truth(values)
        assert constrained.train(values, 1).hours_per_kimg == plain.train(values, 1).hours_per_kimg


def test_the_true_front_has_the_whole_hypervolume_and_random_recipes_less(two: TwoObjectives):
    best = [surfaces.decode(row) for row in two.best_front[::50]]
    assert 0.97 < two.volume(best) <= 1
    random = [surfaces.decode(row) for row in surfaces.sample(np.random.default_rng(1), 500)]
    assert 0.1 < two.volume(random) < 0.9
    assert two.volume([*random, *best]) <= 1.001
    assert two.volume([]) == 0
    assert 0 < two.volume(best[::20]) < two.volume(best[::4]) < two.volume(best)


def test_peers_recommend_the_best_that_keeps_the_limits_and_else_the_nearest(constrained: ConstrainedSynthetic):
    peer = peers.Random(constrained, 0)
    limits = {name: bound.max or 0.0 for name, bound in constrained.space.constraints.items()}
    names = ("far", "near", "worse", "better")
    numbers = [(1.0, 3.0), (2.0, 1.1), (4.0, 0.5), (3.0, 0.9)]
    for seed, (name, (score, share)) in enumerate(zip(names, numbers, strict=True)):
        others = {limit: share * value for limit, value in limits.items()}
        peer.report(Task(seed, {"name": name}, seed), RUNGS[-1], score, 1.0, **others)
        assert peer.recommend() == {"name": ("far", "near", "worse", "better")[seed]}


def test_peers_recommend_what_no_other_dominates(two: TwoObjectives):
    peer = peers.Random(two, 0)
    for seed, (score, share) in enumerate([(1.0, 0.3), (2.0, 0.2), (3.0, 0.25), (4.0, 0.1)]):
        peer.report(Task(seed, {"name": seed}, seed), RUNGS[-1], score, 1.0, **{MEMORISED: share, PARAMETERS: 1.0})
    assert peer.front() == [{"name": 0}, {"name": 1}, {"name": 3}]


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler"])
def test_optuna_is_told_the_excesses_and_both_objectives(
    sampler: str, constrained: ConstrainedSynthetic, two: TwoObjectives
):
    peer = peers.Optuna(constrained, 0, sampler)
    Simulation(peer, constrained, limit=100.0).run()
    complete = [trial for trial in peer._study.trials if trial.values]
    assert len(complete) > 3
    for trial in complete:
        kept = constrained.space.constraints[PARAMETERS]
        assert isinstance(kept, Bound)
        assert kept.max is not None
        values = peers.in_steps(constrained.space, {**trial.params, "network.width": trial.params.get("network.width")})
        assert trial.constraints[PARAMETERS] == pytest.approx(constrained.truths(values)[PARAMETERS] - kept.max)

    peer = peers.Optuna(two, 0, sampler)
    Simulation(peer, two, limit=100.0).run()
    assert all(len(trial.values) == 2 for trial in peer._study.trials if trial.values)


def test_a_peer_that_takes_one_goal_says_so(constrained: ConstrainedSynthetic, two: TwoObjectives):
    for method in ("ray-optuna-asha", "syne-tune-asha", "smac"):
        for surface in (constrained, two):
            with pytest.raises(NotImplementedError, match="takes one objective and no constraints"):
                cells.PEERS[method](surface, 0)
    with pytest.raises(NotImplementedError, match="Optuna prunes no trials of several objectives"):
        cells.PEERS["optuna-tpe-halving"](two, 0)


def record(**own: object) -> dict[str, object]:
    """Return what is kept of a cell of 40 GPU-hours."""
    return {"spent": 40.0, "idle": 0.1, "trials": 9, "finished": 4, "driver_seconds": 1.0, "stated": None} | own


def printed(capsys: pytest.CaptureFixture[str], surface: str, results: Path) -> dict[str, list[str]]:
    """Return the cells of the printed table by method."""
    report.show(Console(width=300), [surface], ["scrimp", "random", "smac"], range(4), results)
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in capsys.readouterr().out.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if row and row[0].strip()}


def test_the_table_of_constraints_has_the_shares_reckoned_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def save(method: str, seed: int, violation: float | None, regret: float, infeasible: float) -> None:
        numbers = {"violations": [violation] * 32, "regrets": [regret] * 32, "infeasible": infeasible}
        cells.save(Cell("synthetic-2-constrained", method, seed).file(tmp_path), record(**numbers))

    for seed, (violation, regret, infeasible) in enumerate([(0.0, 0.02, 10), (0.0, 0.04, 20), (0.3, -0.1, 30)]):
        save("scrimp", seed, violation, regret, infeasible)
        save("random", seed, 0.0, 0.05, 20)
    save("random", 3, None, 9.0, 20)

    rows = printed(capsys, "synthetic-2-constrained", tmp_path)
    assert rows["scrimp"][0] == "3"
    assert rows["scrimp"][2].startswith("33%")
    assert rows["scrimp"][3:7] == ["3.0", "3.0", "", "50.0"]
    assert rows["random"][2].startswith("25%")
    assert rows["random"][4] == "5.0"
    assert rows["random"][5].startswith("-2.0 [")
    assert rows["random"][5].endswith("2 seeds")
    assert any(method.startswith("smac") for method in rows)


def test_the_table_of_fronts_has_the_means_reckoned_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, (early, late, other) in enumerate([(0.2, 0.4, 0.3), (0.4, 0.6, 0.3)]):
        for method, volumes in (("scrimp", [early] * 20 + [late] * 12), ("random", [other] * 32)):
            cells.save(Cell("synthetic-2-two-objectives", method, seed).file(tmp_path), record(volumes=volumes))
    rows = printed(capsys, "synthetic-2-two-objectives", tmp_path)
    assert rows["scrimp"][:3] == ["2", "30.0", "50.0"]
    assert rows["random"][3].startswith("+0.0 [")
    assert rows["random"][4].startswith("+20.0 [")


@pytest.mark.parametrize("make", [ConstrainedSynthetic, TwoObjectives])
def test_scrimp_s_own_sweep_keeps_the_limits_it_knows_and_recommends_a_front(make: type, tmp_path: Path):
    surface = make(0, noise=0.02)
    budget = surface.space.budget.model_copy(update={"trials": 16, "leaders": 3, "repeats": 2})
    space = surface.space.model_copy(update={"budget": budget})
    scrimp = Scrimp(space, 0, tmp_path)
    outcome = Simulation(scrimp, surface, limit=math.inf).run()
    if make is TwoObjectives:
        assert outcome.volumes[-1] == surface.volume(scrimp.front()) > 0
        assert not outcome.regrets
        return
    recommended = scrimp.recommend()
    assert recommended is not None
    assert surface.truths(recommended)[PARAMETERS] <= surface.space.constraints[PARAMETERS].max
    assert outcome.infeasible is not None
    assert 0 < outcome.infeasible < outcome.spent


def test_records_of_surfaces_with_one_goal_are_as_they_were():
    surface = Synthetic(0, noise=0.02)
    record = cells.summary(Simulation(peers.Random(surface, 0), surface).run())
    assert not record.keys() & set(cells.OF_SEVERAL_GOALS)
