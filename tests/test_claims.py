"""The claims: files that hold, verdicts as stated in advance, a page that says no more than was measured."""

import io
import json
import math
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from benchmarks.claims import __main__ as command
from benchmarks.claims import claim as claims
from benchmarks.claims import data, features, power, records, report, run, verdict
from benchmarks.claims.claim import SHARE_SOURCES, Budget, Claim, Comparison, Data
from benchmarks.claims.records import Curves
from benchmarks.claims.verdict import Effect, at_rungs, estimate, holm, judge, side
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest

ROOT = Path(__file__).parents[1]
VALUES = st.lists(st.floats(1, 100).map(lambda value: round(value, 3)), min_size=3, max_size=6)
RUNNABLE = [claims.load(name) for name in claims.names() if not claims.load(name).not_run]


def expects(expect: str, margin: float = 0.0, score: str = "fd_classifier") -> Comparison:
    return Comparison(score=score, arm="new", against="old", expect=expect, margin=margin)  # type: ignore[arg-type]


TREE = {
    "paper": "ambient",
    "plain": "A good learning rate is better.",
    "claim": "A good learning rate gives a lower distance",
    "arms": {"good": {"optimizer.lr": 3e-3}, "bad": {"optimizer.lr": 1e-6}, "slow": {"optimizer.lr": 1e-5}},
    "regime": [{"arm": "bad", "score": "fd_classifier", "settled": 0.1}],
    "primary": {"score": "fd_classifier", "arm": "good", "against": "bad", "expect": "lower"},
    "controls": [
        {"score": "fd_classifier", "arm": "good", "against": "slow", "expect": "lower", "shows": "speed matters"}
    ],
    "power": {"effect": 0.1},
    "budgets": {
        "cpu": {
            "data": {"source": "digits"},
            "recipe": "tiny-edm",
            "override": {"network.channels": 8, "sampler.kind": "dpmpp", "sampler.steps": 2},
            "rungs_kimg": [0.064, 0.128, 0.256],
            "seeds": 3,
            "samples": 50,
        }
    },
}


def make_claim(**changes) -> Claim:
    return claims.parse(TREE | changes, "made-up")


def budget_of(claim: Claim) -> Budget:
    return claim.budgets["cpu"]


def make_record(claim: Claim, arm: str, seed: int, values: Sequence[float], score: str = "fd_classifier") -> dict:
    """Return a record with one score, a value a rung."""
    rungs = zip(budget_of(claim).rungs_kimg, values, strict=False)
    return {
        "claim": claim.name,
        "budget": "cpu",
        "arm": arm,
        "seed": seed,
        "ending": "finished",
        "curve": [{"rung": rung, "kimg": rung, score: value} for rung, value in rungs],
        "design": claims.design(claim, budget_of(claim), arm),
        "device_hours": 0.25,
        "machine": "an abacus",
    }


def make_curves(claim: Claim, by_arm: Mapping[str, Sequence[float]], score: str = "fd_classifier") -> Curves:
    """Return curves whose seeds differ by a percent around the given values."""
    spread = (0.99, 1.0, 1.01)
    return Curves(
        {
            arm: [
                make_record(claim, arm, seed, [value * factor for value in values], score)
                for seed, factor in enumerate(spread, 1)
            ]
            for arm, values in by_arm.items()
        }
    )


def write_records(kept: Path, curves: Curves, claim: Claim) -> None:
    for record in curves.all:
        file = records.file_of(kept, claim, "cpu", record["arm"], record["seed"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(records.text(record))


# The files


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_holds_together(name):
    """Its arms are recipes, it compares arms and scores that there are, and it has budgets for both devices."""
    claim = claims.load(name)
    if claim.not_run:
        assert not claim.budgets
        return
    assert {"cpu", "gpu"} <= set(claims.budgets_of(claim))
    assert set(claim.budgets) <= set(command.BUDGETS)
    for budget in claim.budgets.values():
        for arm in claims.arms_of(claim, budget):
            recipe = claims.recipe(claim, budget, arm)
            assert recipe.training.kimg == budget.rungs_kimg[-1] * claim.lengths.get(arm, 1.0)


def test_every_paper_has_claims():
    assert {claims.load(name).paper for name in claims.names()} == set(report.PAPERS)


@pytest.mark.parametrize("claim", RUNNABLE, ids=lambda claim: claim.name)
def test_every_claim_has_the_seeds_that_its_stated_effect_needs(claim):
    """An effect other than 10% has a reason; without a pilot at least the reason."""
    assert claim.power is not None
    assert claim.primary is not None
    assert claim.power.effect == 0.1 or claim.power.why
    for name, budget in claims.budgets_of(claim).items():
        needed = power.seeds_for(claim, claims.device_of(name)) or claims.FEWEST
        assert min(claims.seeds_of(budget, arm) for arm in claim.primary.arms) >= needed, name


@pytest.mark.parametrize("claim", RUNNABLE, ids=lambda claim: claim.name)
def test_no_arm_takes_more_than_forty_minutes_of_one_core(claim):
    for name, budget in claim.budgets.items():
        if claims.device_of(name) == "cpu":
            assert budget.minutes is not None, name
            assert budget.minutes * max([1.0, *claim.lengths.values()]) < 40, name


def test_all_claims_together_take_about_sixty_hours_of_one_core(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "KEPT", tmp_path)
    monkeypatch.setattr(power, "PILOT", ROOT / power.PILOT)
    last = command.plan_lines("cpu")[-1]
    assert last.startswith("left: ")
    assert float(last.split()[1]) < 66


@pytest.mark.parametrize("claim", RUNNABLE, ids=lambda claim: claim.name)
def test_what_chooses_images_never_scores_them(claim):
    own = claims.owner(claim)
    for budget in own.budgets.values():
        recipes = [claims.recipe(own, budget, arm) for arm in claims.arms_of(own, budget)]
        if any(recipe.coreset.on and recipe.coreset.score != "random" for recipe in recipes):
            assert budget.data.halves
            assert "classifier" not in own.extractors
            assert claim.features or own.features


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primary": TREE["primary"] | {"arm": "best"}}, "no arm best; arms are good, bad, slow"),
        ({"primary": TREE["primary"] | {"score": "fid"}}, "fid: is measured with extractor inception"),
        ({"primary": TREE["primary"] | {"at": 0.3}}, "nothing is scored at 0.3"),
        ({"primary": TREE["primary"] | {"margin": 0.1}}, "take none"),
        ({"regime": []}, "a primary comparison, a regime and power"),
        ({"regime": [{"arm": "bad", "score": "loss"}]}, "either at_least or settled"),
        ({"not_run": "too large"}, "either arms with budgets"),
        ({"arms": {}}, "either arms with budgets"),
        ({"budgets": {"cpu": TREE["budgets"]["cpu"] | {"arms": ["good"]}}}, "no budget trains all its arms"),
        ({"budgets": {"cpu": TREE["budgets"]["cpu"] | {"rungs_kimg": [2, 1]}}}, "rungs_kimg must rise"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        make_claim(**changes)


def test_a_claim_with_a_key_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "twice.yaml").write_text("paper: ambient\nclaim: One\nclaim: Two\n")
    monkeypatch.setattr(claims, "FILES", tmp_path)
    with pytest.raises(UserError, match="claim twice: claim appears twice, in lines 2 and 3"):
        claims.load("twice")


def test_the_most_important_claims_are_run_first():
    found = list(dict.fromkeys(claim.name for claim, _, _ in claims.runnable()))
    assert found[:3] == ["prune-score", "ld-mafp", "ambient-copies"]


# Effects


@given(VALUES, VALUES)
def test_an_effect_has_the_interval_and_p_of_scipy_s_welch_test_on_logarithms(arm, against):
    logs = np.log(arm), np.log(against)
    assume(min(map(np.std, logs)) > 1e-3)
    found = estimate(expects("lower"), arm, against)
    expected: Any = stats.ttest_ind(*logs, equal_var=False)
    ends = np.exp(expected.confidence_interval(0.95))
    assert [found.low, found.high] == pytest.approx(list(ends), rel=1e-6)
    assert found.estimate == pytest.approx(stats.gmean(arm) / stats.gmean(against))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


def test_the_effect_on_a_share_of_samples_is_a_difference_which_may_involve_zeros():
    found = estimate(expects("lower", score="pixel_copied_fraction"), [0.0, 0.0, 0.0], [0.5, 0.6, 0.7])
    assert (found.scale, found.estimate) == ("difference", pytest.approx(-0.6))
    expected: Any = stats.ttest_1samp([0.5, 0.6, 0.7], 0)
    assert found.p == pytest.approx(expected.pvalue)


def test_a_margin_moves_the_border_of_the_test():
    arm, against = [1.05, 1.06, 1.07], [1.0, 1.01, 0.99]
    found = estimate(expects("no higher", 0.1), arm, against)
    shifted: Any = stats.ttest_ind(np.log(arm), np.log(np.array(against) * 1.1), equal_var=False)
    assert found.p == pytest.approx(shifted.pvalue)
    assert found.side == "holds"


def test_a_score_that_no_seed_changes_has_a_point_for_an_interval():
    found = estimate(expects("lower"), [2e15] * 3, [5e15] * 3)
    assert found.low == found.high == pytest.approx(0.4)
    assert (found.p, found.side) == (0.0, "holds")
    assert estimate(expects("lower"), [5e15] * 3, [5e15] * 3).side == "undecided"


@pytest.mark.parametrize(
    ("comparison", "arm", "found"),
    [
        (expects("lower"), [8.0, 8.1, 7.9], "holds"),
        (expects("lower"), [12.0, 12.1, 11.9], "fails"),
        (expects("lower"), [6.0, 14.0, 9.0], "undecided"),
        (expects("higher"), [12.0, 12.1, 11.9], "holds"),
        (expects("no higher", 0.1), [10.3, 10.4, 10.2], "holds"),
        (expects("no higher", 0.1), [12.0, 12.1, 11.9], "fails"),
        (expects("no higher", 0.1), [11.0, 11.3, 10.7], "undecided"),
        (expects("no lower", 0.1), [9.7, 9.6, 9.8], "holds"),
        (expects("no lower", 0.1), [8.0, 8.1, 7.9], "fails"),
        (expects("lower"), [8.0], "undecided"),
        (expects("lower"), [], "undecided"),
        (expects("lower"), [8.0, 0.0, 8.1], "undecided"),
    ],
)
def test_an_effect_holds_or_fails_by_where_its_test_says(comparison, arm, found):
    assert estimate(comparison, arm, [10.0, 10.1, 9.9]).side == found


def test_holm_corrects_as_by_hand():
    """0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06, as large as the one before; 0.5 x 1."""
    corrected = holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})


def test_a_corrected_p_leaves_an_effect_undecided_that_is_shown_by_itself():
    effect = Effect("ratio", 0.9, 0.82, 0.99, p=0.03, expected=True)
    assert effect.side == "holds"
    assert side(effect, 0.06) == "undecided"


# Power


def test_power_is_that_of_a_simulation():
    random = np.random.default_rng(0)
    arms = random.normal([[[0.0]], [[0.2]]], 0.12, (2, 20_000, 8))
    tests: Any = stats.ttest_ind(arms[0], arms[1], axis=1)
    rejected = float((tests.pvalue < 0.05).mean())
    assert power.power(8, 0.12, 0.2, 0.05) == pytest.approx(rejected, abs=0.01)


def test_the_seeds_needed_are_those_of_the_textbook():
    """Cohen (1988), table 2.4.1: for d = 0.8 at 5% two-sided and 80% power 26 of each; for d = 0.5, 64."""
    assert power.seeds_needed(1.0, 0.8, 0.05) == 26
    assert power.seeds_needed(1.0, 0.5, 0.05) == 64


def test_a_stricter_level_or_a_smaller_effect_takes_more_seeds():
    assert power.seeds_needed(1.0, 0.8, 0.05 / 20) > 26
    assert power.seeds_needed(0.1, 0.05, 0.05) > power.seeds_needed(0.1, 0.1, 0.05)


def test_a_deviation_is_pooled_within_arms_and_not_between_them():
    assert power.pooled_deviation([[1.0, 3.0], [11.0, 13.0]]) == pytest.approx(math.sqrt(2))
    assert power.pooled_deviation([[1, 2, 3], [10, 14]]) == pytest.approx(math.sqrt((2 * 1 + 1 * 8) / 3))


def test_the_deviation_of_a_ratio_is_that_of_logarithms(tmp_path):
    pilot = tmp_path / "pilot.json"
    scores = {"other": {"fd_classifier": {"good": [math.e, 1.0], "bad": [1.0, math.e]}}}
    pilot.write_text(json.dumps({"scores": scores}))
    claim = make_claim(power={"effect": 0.1, "pilot": "other"})
    assert power.deviation_of(claim, pilot) == pytest.approx(statistics.stdev([0, 1]))
    with pytest.raises(UserError, match="has no 'elsewhere'"):
        power.deviation_of(make_claim(power={"effect": 0.1, "pilot": "elsewhere"}), pilot)


# Verdicts

SETTLED = {"good": [60, 50, 49], "bad": [80, 71, 70], "slow": [79, 69, 68]}


def test_a_claim_whose_baseline_still_moves_is_out_of_its_regime_whatever_the_numbers():
    claim = make_claim()
    curves = make_curves(claim, SETTLED | {"bad": [90, 80, 70]})
    assert judge(claim, curves, budget_of(claim), 1e-6) == "out of its regime: undecided"
    (check,) = verdict.checks(claim, curves, budget_of(claim))
    assert (check.value, check.met) == (pytest.approx(0.125), False)
    assert judge(claim, make_curves(claim, SETTLED), budget_of(claim), 1e-6) == "supported"


def test_a_claim_about_copying_needs_a_baseline_that_copies():
    regime = [{"arm": "bad", "score": "pixel_copied_fraction", "at_least": 0.2}]
    comparison = {"score": "pixel_copied_fraction", "arm": "good", "against": "bad", "expect": "lower"}
    claim = make_claim(regime=regime, primary=comparison, controls=[])
    for last, found in ((0.19, "out of its regime: undecided"), (0.21, "supported")):
        curves = make_curves(claim, {"good": [0, 0, 0.01], "bad": [0, 0.1, last]}, "pixel_copied_fraction")
        assert judge(claim, curves, budget_of(claim), 0.001) == found


def test_nothing_is_settled_at_the_first_rung():
    claim = make_claim()
    (first,) = verdict.checks(claim, make_curves(claim, SETTLED), budget_of(claim), rung=0.064)
    assert math.isnan(first.value)
    assert not first.met


@pytest.mark.parametrize("like_the_treatment", [49.0, 48.8, 40.0])
def test_a_control_that_behaves_like_the_treatment_leaves_the_mechanism_unshown(like_the_treatment):
    claim = make_claim()
    curves = make_curves(claim, SETTLED | {"slow": [60, 50, like_the_treatment]})
    assert judge(claim, curves, budget_of(claim), 1e-6) == "effect supported, mechanism not shown"


def test_a_control_cannot_support_what_the_primary_comparison_does_not():
    claim = make_claim()
    assert judge(claim, make_curves(claim, SETTLED | {"good": [60, 90, 95]}), budget_of(claim), 1e-6) == "not supported"
    assert judge(claim, make_curves(claim, SETTLED), budget_of(claim), 0.2) == "undecided"


def test_secondary_comparisons_have_no_part_in_the_verdict():
    failing = {"score": "fd_classifier", "arm": "good", "against": "bad", "expect": "higher"}
    claim = make_claim(secondary=[failing])
    assert judge(claim, make_curves(claim, SETTLED), budget_of(claim), 1e-6) == "supported"


def test_a_seed_that_diverged_leaves_the_claim_undecided():
    claim = make_claim()
    curves = make_curves(claim, SETTLED)
    curves.records["good"][0]["ending"] = "diverged: step 3"
    assert judge(claim, curves, budget_of(claim), 1e-6) == "undecided"


def test_effects_are_estimated_at_every_rung_unless_lengths_differ():
    claim = make_claim()
    curves = make_curves(claim, SETTLED | {"good": [90, 71, 49]})
    assert claim.primary is not None
    sides = [effect.side for effect in at_rungs(claim.primary, curves, budget_of(claim)).values()]
    assert sides == ["fails", "undecided", "holds"]
    assert at_rungs(claim.primary.model_copy(update={"at": 0.5}), curves, budget_of(claim)) == {}


# The page


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Claim:
    """The claims are one, and its records and page are in this folder."""
    claim = make_claim()
    monkeypatch.setattr(claims, "load", lambda name: claim)
    monkeypatch.setattr(claims, "names", lambda: ["made-up"])
    monkeypatch.setattr(command, "PAGE", tmp_path / "claims.md")
    monkeypatch.setattr(command, "work_in_background", lambda: None)
    monkeypatch.setattr(records, "KEPT", tmp_path / "kept")
    return claim


def row_of(page: str, name: str = "made-up") -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))


def test_the_page_states_regime_effect_verdict_with_its_length_and_controls(made_up, tmp_path):
    write_records(tmp_path, make_curves(made_up, SETTLED), made_up)
    page = report.page(tmp_path)
    row = row_of(page)
    assert row.count(" | ") == 5
    assert "change of fd_classifier of bad 1%, at most 10%: met" in row
    assert "| ratio 0.7 [0.684, 0.716] |" in row
    assert "| supported, at 0.256 kimg |" in row
    assert "speed matters: holds" in row
    opening = page.split("## How a claim is decided")[0]
    assert "**What holds**:\n\n- A good learning rate is better. ([made-up](#made-up))" in opening
    assert "corrected below 0.0001: supported." in page
    assert "9 trainings, 2.25 device-hours, on an abacus." in page


def test_the_page_says_where_an_effect_reverses(made_up, tmp_path):
    write_records(tmp_path, make_curves(made_up, SETTLED | {"good": [90, 50, 49]}), made_up)
    assert "| supported, at 0.256 kimg; reverses at 0.064 kimg |" in row_of(report.page(tmp_path))


@pytest.mark.parametrize(
    ("changes", "title", "status"),
    [
        ({"slow": [60, 50, 49]}, "though not shown to be for the reason", "effect supported, mechanism not shown"),
        ({"good": [99, 99, 99]}, "What does not hold", "not supported"),
        ({"bad": [90, 80, 70]}, "What is open", "out of its regime: undecided"),
        ({"good": [80, 71, 70]}, "What is open", "undecided"),
    ],
)
def test_the_opening_says_honestly_what_does_not_hold_or_is_open(made_up, tmp_path, changes, title, status):
    write_records(tmp_path, make_curves(made_up, SETTLED | changes), made_up)
    page = report.page(tmp_path)
    assert f"| {status}, at 0.256 kimg |" in row_of(page)
    group = next(part for part in page.split("**What ") if title.removeprefix("What ") in part.split("**")[0])
    assert "A good learning rate is better." in group


def test_there_is_no_verdict_before_the_last_training_has_ended(made_up, tmp_path):
    curves = make_curves(made_up, SETTLED)
    curves.records["slow"].pop()
    write_records(tmp_path, curves, made_up)
    page = report.page(tmp_path)
    assert "| under way: 8 of 9 trainings |" in row_of(page)
    assert "supported, at" not in page
    assert "Not decided yet" in page


def test_a_record_of_what_the_claim_once_said_does_not_count(made_up, tmp_path):
    old = make_claim(budgets={"cpu": TREE["budgets"]["cpu"] | {"samples": 60}})
    write_records(tmp_path, make_curves(old, SETTLED), old)
    assert "| not run yet |" in row_of(report.page(tmp_path))


def test_verdicts_are_corrected_for_all_claims_that_have_run(tmp_path, monkeypatch):
    """Twice p where two have run, and p itself for one of them alone."""
    tree = TREE | {"controls": [], "budgets": {"cpu": TREE["budgets"]["cpu"], "gpu": TREE["budgets"]["cpu"]}}
    claim = claims.parse(tree, "made-up")
    monkeypatch.setattr(claims, "load", lambda name: claim)
    monkeypatch.setattr(claims, "names", lambda: ["made-up"])
    curves = make_curves(claim, SETTLED | {"good": [71, 69, 68]})
    write_records(tmp_path, curves, claim)
    alone, unrun = report.results(tmp_path)
    assert alone.p == pytest.approx(alone.primary.p)
    assert unrun.p == 1
    shutil.copytree(tmp_path / "made-up/cpu", tmp_path / "made-up/gpu")
    for both in report.results(tmp_path):
        assert both.p == pytest.approx(2 * alone.p)


def test_the_page_that_is_kept_says_what_the_kept_records_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert report.page(records.KEPT) == (ROOT / "docs/claims.md").read_text()


def test_the_page_has_a_row_for_every_claim_though_nothing_has_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = report.page(tmp_path)
    for name in claims.names():
        row = row_of(page, name)
        assert f"\n## {name}\n" in page
        reason = claims.load(name).not_run
        assert (f"| not run: {reason} |" if reason else "| not run yet |") in row


# Running


def test_arms_with_the_first_seed_come_before_any_second_seed():
    budget = TREE["budgets"]["cpu"] | {"seeds": 4, "seeds_by_arm": {"slow": 3}}
    found = run.trainings(make_claim(budgets={"cpu": budget}), make_claim(budgets={"cpu": budget}).budgets["cpu"])
    assert found[:4] == [("good", 1), ("bad", 1), ("slow", 1), ("good", 2)]
    assert found[-2:] == [("good", 4), ("bad", 4)]
    assert len(found) == 11


def test_a_run_skips_what_another_machine_has_recorded(made_up, tmp_path, monkeypatch, scored_digits):
    trained = []

    def train(claim, budget, arm, seed, *_):
        trained.append((arm, seed))
        return make_record(claim, arm, seed, SETTLED[arm])

    monkeypatch.setattr(run, "dataset", lambda *_: scored_digits.folder)
    monkeypatch.setattr(run, "train", train)
    curves = make_curves(made_up, SETTLED)
    curves.records["bad"].pop(1)
    write_records(tmp_path / "kept", curves, made_up)
    command.command.main(
        ["run", "made-up", "--budget", "cpu", "--storage", str(tmp_path / "runs")], standalone_mode=False
    )
    assert trained == [("bad", 2)]
    assert "| supported, at 0.256 kimg |" in command.PAGE.read_text()


def test_a_run_leaves_alone_what_another_process_trains(made_up, tmp_path, monkeypatch, scored_digits):
    from scrimp_platform import store

    monkeypatch.setattr(run, "dataset", lambda *_: scored_digits.folder)
    monkeypatch.setattr(run, "train", lambda claim, budget, arm, seed, *_: make_record(claim, arm, seed, SETTLED[arm]))
    name = "made-up/cpu/bad-seed2"
    with store.exclusive(tmp_path / "locks" / name, name):
        files = list(run.run([made_up], ["cpu"], tmp_path / "kept", tmp_path))
    assert len(files) == 8
    assert tmp_path / "kept/made-up/cpu/bad-seed2.json" not in files


def test_a_budget_whose_items_are_not_there_is_skipped_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(data.FOLDER, raising=False)
    claim = claims.load("prune-score")
    assert list(run.run([claim], ["cpu-cifar10"], tmp_path / "kept", tmp_path)) == []
    assert "prune-score, cpu-cifar10: " in capsys.readouterr().err


def test_a_training_leaves_a_record_of_its_curve_and_origin_that_is_not_trained_again(
    tmp_path, monkeypatch, scored_digits
):
    claim = make_claim()
    monkeypatch.setattr(claims, "load", lambda name: claim)
    monkeypatch.setattr(run, "dataset", lambda *_: scored_digits.folder)
    monkeypatch.setattr(run, "trainings", lambda *_: [("good", 1)])
    (file,) = run.run([claim], ["cpu"], tmp_path / "kept", tmp_path)
    assert file == tmp_path / "kept/made-up/cpu/good-seed1.json"
    record = json.loads(file.read_text())
    assert [row["rung"] for row in record["curve"]] == [0.064, 0.128, 0.256]
    assert all(row["fd_classifier"] > 0 and 0 <= row["pixel_copied_fraction"] <= 1 for row in record["curve"])
    assert record["ending"] == "finished"
    assert record["device_hours"] > 0
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["dataset_hash"] == scored_digits.manifest.content_hash
    assert "CC BY 4.0" in record["source"]
    assert records.curves(tmp_path / "kept", claim, "cpu").count("good") == 1
    assert list(run.run([claim], ["cpu"], tmp_path / "kept", tmp_path)) == []


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch, scored_digits):
    from scrimp_trainers import run as trainings

    claim = make_claim()
    whole = run.train(claim, "cpu", "good", 1, scored_digits, tmp_path / "whole")
    real = trainings.train_repeat

    def cut_off(*arguments, **options):
        for row in real(*arguments, **options):
            yield row
            if row.rung == 0.128:
                raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "train_repeat", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.train(claim, "cpu", "good", 1, scored_digits, tmp_path / "cut")
    monkeypatch.setattr(trainings, "train_repeat", real)
    resumed = run.train(claim, "cpu", "good", 1, scored_digits, tmp_path / "cut")
    assert resumed["curve"] == whole["curve"]
    assert resumed["cpu_hours"] is None
    assert whole["cpu_hours"] > 0


def test_a_longer_arm_has_the_rungs_of_the_others_at_as_many_times_their_kimg(tmp_path, scored_digits):
    claim = make_claim(lengths={"good": 2})
    record = run.train(claim, "cpu", "good", 1, scored_digits, tmp_path)
    assert [(row["rung"], row["kimg"]) for row in record["curve"]] == [(0.064, 0.128), (0.128, 0.256), (0.256, 0.512)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "ld-compression"], "is not run: needs the weights of Stable Diffusion"),
        (["run", "ld-ood", "--budget", "cpu-kanji"], "has no budget cpu-kanji, only cpu, gpu"),
        (["run", "ld"], "there is none; claims are "),
    ],
)
def test_a_claim_or_budget_that_there_is_not_is_refused(monkeypatch, arguments, said):
    monkeypatch.setattr(command, "work_in_background", lambda: None)
    with pytest.raises(UserError, match=said):
        command.command.main(arguments, standalone_mode=False)


def test_a_run_takes_only_idle_time(monkeypatch):
    asked = []
    monkeypatch.setattr(command, "take_idle_time", lambda: asked.append("idle"))
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    command.work_in_background()
    assert asked == ["idle", 1]
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_make_runs_all_claims_or_one():
    for arguments in ([], ["CLAIM=ld-mafp"]):
        said = subprocess.run(["make", "-n", "claims", *arguments], cwd=ROOT, capture_output=True, text=True).stdout
        name = "".join(arguments).removeprefix("CLAIM=")
        assert f"python -m benchmarks.claims run {name}".strip() in said


# What is trained and scored


@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_the_down_weighted_loss_is_the_ordinary_one_times_ambient_s_weight(preset):
    """With noise free copies ambient training's loss is a^2 times the ordinary one, whose (a^2 - 1)-fold is added."""
    from scrimp_trainers.common import parts as part_files
    from scrimp_trainers.diffusion.process import sigmas
    from scrimp_trainers.recipe.recipe import load

    part_files.load_files([claims.TECHNIQUES])
    technique = load(preset).replace({"technique.kind": "weighting:DownWeighted", "technique.sigma_n": 0.5}).technique
    process = part_files.build("diffusion", load(preset).diffusion)
    generator = torch.Generator().manual_seed(0)
    clean, noise, estimate = (torch.randn(64, 1, 4, 4, generator=generator) for _ in range(3))
    levels = process.levels(64, generator)
    noisy = process.add_noise(clean, noise, levels)
    ordinary = process.losses(estimate, clean, noise, levels)
    term = technique.term(process, estimate, noisy, clean, levels)
    assert term is not None

    sigma = sigmas(process, levels)
    weight = torch.where(sigma >= 0.5, (1 - 0.25 / sigma**2) ** 2, 1.0)
    assert (sigma < 0.5).any()
    assert (sigma > 0.5).any()
    torch.testing.assert_close(ordinary + term, weight * ordinary, rtol=1e-3, atol=1e-4)
    assert (term[sigma < 0.5] == 0).all()


def test_halves_are_disjoint_and_have_every_other_image_of_each_class():
    labels = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    one, other = features.halves(labels)
    assert sorted([*one, *other]) == list(range(8))
    assert np.bincount(labels[one]).tolist() == np.bincount(labels[other]).tolist() == [2, 2]


@pytest.fixture(scope="module")
def halved(scored_digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    shutil.copytree(scored_digits.folder, folder / "digits")
    return data.dataset(Data(source="digits", full_reference=True, halves=True), folder)


def test_the_classifier_that_scores_is_another_one_than_that_which_chooses(halved):
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.metrics.classifier import load_classifier

    dataset = open_dataset(halved)
    claim = claims.load("prune-score")
    scoring = run.scoring_of(claim, claim.budgets["cpu"], dataset)
    assert scoring.extractors == "features:OtherHalf, features:PixelPCA"
    scores = parts.own("features:OtherHalf")(scoring.weights)
    chooses = load_classifier(halved, dataset.manifest)
    images, labels, _ = dataset.images("holdout")
    pixels = torch.from_numpy(images)
    for network in (scores.network.eval(), chooses):
        accuracy = (network(pixels)[1].argmax(1).numpy() == labels).mean()
        assert accuracy > 0.9
    assert not torch.equal(scores.network.head.weight, chooses.head.weight)
    assert scores(pixels)[0].shape == (len(pixels), 64)
    assert data.extractor_weights("features:OtherHalf", halved) == scoring.weights


def test_pixel_components_are_those_of_scikit_learn(halved):
    from sklearn.decomposition import PCA

    from scrimp_trainers.data.dataset import open_dataset

    images, _, _ = open_dataset(halved).images("reference")
    weights = data.extractor_weights("features:PixelPCA", halved)
    assert weights
    network = features.PixelPCA(weights)
    found = network(torch.from_numpy(images))[0].numpy()
    flat = images.reshape(len(images), -1) / 127.5 - 1
    expected = PCA(10).fit_transform(flat)
    assert np.abs(found[:, :10]) == pytest.approx(np.abs(expected), abs=1e-3)


def test_a_part_of_the_digits_is_scored_by_the_classifier_of_all(scored_digits, tmp_path):
    shutil.copytree(scored_digits.folder, tmp_path / "digits")
    part = data.dataset(Data(source="digits", limit=50, full_reference=True), tmp_path)
    facts, whole = manifest.load_manifest(part), manifest.load_manifest(tmp_path / "digits")
    assert facts.splits["train"].count == 50
    assert facts.splits["reference"].count == 1797
    assert facts.classifier is not None
    assert whole.classifier is not None
    assert facts.classifier.sha256 == whole.classifier.sha256
    assert (part / "classifier.safetensors").read_bytes() == (tmp_path / "digits/classifier.safetensors").read_bytes()
    assert data.dataset(Data(source="digits", limit=50, full_reference=True), tmp_path) == part


def test_joined_jpeg_images_are_decoded_in_order(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    files = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(file, "JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "packed.npz", jpeg=np.concatenate(files), offsets=offsets, labels=np.array([2, 0, 1], np.uint8))
    data.decode(tmp_path / "packed.npz", tmp_path / "out" / "cifar10.npz")
    with np.load(tmp_path / "out" / "cifar10.npz") as made:
        assert made["images"].shape == (3, 32, 32, 3)
        assert np.abs(made["images"].mean((1, 2)) - colours).max() < 4
        assert made["labels"].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cifar10", "set SCRIMP_DATA_DIR to a folder with cifar10/"),
        ("cifar10-16", "cifar10_batch_0.png: no such file; set SCRIMP_DATA_DIR"),
        ("vmnist", "vmnist.npz: no such file; set SCRIMP_DATA_DIR"),
    ],
)
def test_what_is_not_there_says_where_it_belongs(tmp_path, monkeypatch, source, said):
    monkeypatch.delenv(data.FOLDER, raising=False)
    with pytest.raises(UserError, match=said):
        data.dataset(Data(source=source), tmp_path)


def test_every_source_states_its_licence():
    assert set(data.LICENCES) == set(get_args(SHARE_SOURCES))
