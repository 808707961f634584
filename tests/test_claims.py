"""The claims: files that hold, verdicts as stated in advance, a page that says no more than was measured."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_up_sweep import write_sweep
from PIL import Image
from scipy import stats

from benchmarks.claims import __main__ as command
from benchmarks.claims import claim as claims
from benchmarks.claims import data, outcome, report
from benchmarks.claims.claim import Claim, Comparison, Data
from benchmarks.claims.verdict import combine, difference, judge
from scrimp_platform.store import Storage
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest

ROOT = Path(__file__).parents[1]
VALUES = st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=3, max_size=6)


def expects(expect: str, margin: float = 0.0) -> Comparison:
    return Comparison(score="fd_classifier", arm="new", against="old", expect=expect, margin=margin)  # type: ignore


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_holds_together(name):
    """Its arms are recipes, its comparisons name arms and scores that there are, and there are seeds enough."""
    claim = claims.load(name)
    for size, experiment in claim.sizes.items():
        space = claim.space(size)
        assert space.budget.trials == len(claim.arms)
        assert experiment.repeats >= 3
    if not claim.not_run:
        assert {"cpu", "gpu"} == set(claims.owner(claim).sizes)


def test_every_paper_has_claims():
    assert {claims.load(name).paper for name in claims.names()} == set(report.PAPERS)


TREE = {
    "paper": "ambient",
    "claim": "A good learning rate is better",
    "arms": {"good": {"optimizer.lr": 3e-3}, "bad": {"optimizer.lr": 1e-6}},
    "comparisons": [{"score": "fd_classifier", "arm": "good", "against": "bad", "expect": "lower"}],
    "controls": [
        {"score": "fd_classifier", "arm": "good", "against": "good", "expect": "no lower", "margin": 0.5, "at": 0.5}
    ],
    "rungs": [0.5, 1.0],
    "sizes": {"cpu": {"data": {"source": "digits"}, "recipe": "tiny-edm", "kimg": 60, "repeats": 3}},
}


def make_claim(**changes) -> Claim:
    return claims.parse(TREE | changes, "made-up")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"comparisons": [TREE["comparisons"][0] | {"arm": "best"}]}, "no arm best; arms are good, bad"),
        ({"comparisons": [TREE["comparisons"][0] | {"score": "fid"}]}, "fid: is measured with extractor inception"),
        ({"comparisons": [TREE["comparisons"][0] | {"at": 0.3}]}, "nothing is scored at 0.3"),
        ({"comparisons": [TREE["comparisons"][0] | {"margin": 0.1}]}, "take none"),
        ({"not_run": "too large"}, "either arms with sizes"),
        ({"arms": {}}, "either arms with sizes"),
        ({"comparisons": []}, "a claim has comparisons"),
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


@given(VALUES, VALUES)
def test_a_difference_has_the_interval_of_scipy_s_welch_test(arm, against):
    found = difference(arm, against)
    assume(min(np.std(arm), np.std(against)) > 1e-3)
    expected = stats.ttest_ind(arm, against, equal_var=False).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], rel=1e-6, abs=1e-6)


def test_a_factor_scales_the_other_arm_and_its_spread():
    arm, against = [3.0, 4.0, 6.0], [2.0, 3.0, 5.0]
    assert difference(arm, against, 1.5) == difference(arm, [1.5 * value for value in against])


def test_a_score_that_no_seed_changes_has_a_point_for_an_interval():
    found = difference([2e15] * 3, [5e15] * 3)
    assert found.low == found.high == -3e15
    assert judge(expects("lower"), [2e15] * 3, [5e15] * 3) == "supported"


@pytest.mark.parametrize(
    ("comparison", "arm", "verdict"),
    [
        (expects("lower"), [8.0, 8.1, 7.9], "supported"),
        (expects("lower"), [12.0, 12.1, 11.9], "not supported"),
        (expects("lower"), [6.0, 14.0, 9.0], "undecided at this scale"),
        (expects("higher"), [12.0, 12.1, 11.9], "supported"),
        (expects("higher"), [8.0, 8.1, 7.9], "not supported"),
        (expects("no higher", 0.1), [10.3, 10.4, 10.2], "supported"),
        (expects("no higher", 0.1), [12.0, 12.1, 11.9], "not supported"),
        (expects("no higher", 0.1), [11.0, 11.3, 10.7], "undecided at this scale"),
        (expects("no lower", 0.1), [9.7, 9.6, 9.8], "supported"),
        (expects("no lower", 0.1), [8.0, 8.1, 7.9], "not supported"),
        (expects("lower"), [8.0], "undecided at this scale"),
        (expects("lower"), [], "undecided at this scale"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(comparison, arm, verdict):
    assert judge(comparison, arm, [10.0, 10.1, 9.9]) == verdict


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided at this scale"], "undecided at this scale"),
        (["supported", "not supported", "undecided at this scale"], "not supported"),
    ],
)
def test_a_claim_needs_all_its_comparisons(verdicts, together):
    assert combine(verdicts) == together


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Claim:
    """The claims are one, and its sweep is to be in this storage folder."""
    claim = make_claim()
    monkeypatch.setattr(claims, "load", lambda name: claim)
    monkeypatch.setattr(claims, "names", lambda: ["made-up"])
    monkeypatch.setattr(command, "PAGE", tmp_path / "claims.md")
    monkeypatch.setattr(outcome, "KEPT", tmp_path / "kept")
    return claim


def test_a_complete_sweep_gives_a_row_with_its_verdict_and_a_table_of_arms(made_up, tmp_path):
    write_sweep(tmp_path / "made-up-cpu", made_up.space("cpu"))
    outcome.note_machine(Storage(tmp_path).sweep("made-up-cpu"), "an abacus")
    page = report.page(["made-up"], Storage(tmp_path))
    row = next(line for line in page.splitlines() if line.startswith("| [made-up]"))
    assert row.count("|") == 8
    assert "| 3 | supported | `make claims CLAIM=made-up` | an abacus |" in row
    found = outcome.read(made_up, "cpu", Storage(tmp_path))
    assert found is not None
    gap = difference(*found.sides(made_up.comparisons[0]))
    assert gap.high < 0
    assert f"[{gap.low:.1f}, {gap.high:.1f}]" in row
    assert len(found.values("good", "fd_classifier", 0.5)) == 3
    assert "- Control: fd_classifier: good at 0.5 of the training no lower (50%) than good?" in page
    assert "| good | optimizer.lr 0.003 | 3 |" in page


def test_what_was_kept_of_a_complete_sweep_gives_the_same_page_where_its_folder_is_not(made_up, tmp_path):
    write_sweep(tmp_path / "made-up-cpu", made_up.space("cpu"))
    page = report.page(["made-up"], Storage(tmp_path))
    measured = outcome.read(made_up, "cpu", Storage(tmp_path))
    assert measured is not None
    outcome.keep(made_up, "cpu", measured)
    assert report.page(["made-up"], Storage(tmp_path / "elsewhere")) == page
    write_sweep(tmp_path / "begun anew" / "made-up-cpu", made_up.space("cpu"), most=5)
    assert report.page(["made-up"], Storage(tmp_path / "begun anew")) == page


def test_there_is_no_verdict_before_the_last_repeat_has_ended(made_up, tmp_path):
    write_sweep(tmp_path / "made-up-cpu", made_up.space("cpu"), most=5)
    page = report.page(["made-up"], Storage(tmp_path))
    assert "under way: 4 of 6 repeats" in page
    assert "| supported |" not in page


def test_an_arm_that_failed_leaves_the_claim_undecided(made_up, tmp_path):
    write_sweep(tmp_path / "made-up-cpu", made_up.space("cpu"), lambda repeat: "too hot" if repeat.trial else "")
    page = report.page(["made-up"], Storage(tmp_path))
    assert "| 0 to 3 | undecided at this scale |" in page
    assert "difference not known (fewer than two repeats finished)" in page


def test_a_sweep_of_what_the_claim_once_said_does_not_count(made_up, tmp_path):
    write_sweep(tmp_path / "made-up-cpu", make_claim(rungs=[1.0], controls=[]).space("cpu"))
    assert "not run yet" in report.page(["made-up"], Storage(tmp_path))


def test_the_page_that_is_kept_says_what_the_kept_scores_say(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert report.page(claims.names(), Storage(tmp_path)) == (ROOT / "docs/claims.md").read_text()


def test_the_page_has_a_row_for_every_claim_though_nothing_has_run(tmp_path, monkeypatch):
    monkeypatch.setattr(outcome, "KEPT", tmp_path / "kept")
    page = report.page(claims.names(), Storage(tmp_path))
    for name in claims.names():
        assert f"| [{name}](#{name}): " in page
        assert f"\n## {name}\n" in page
        reason = claims.load(name).not_run
        assert (f"| not run: {reason} |" if reason else f"| not run yet | `make claims CLAIM={name}` |") in page


def test_a_complete_claim_is_not_trained_again(made_up, tmp_path, monkeypatch):
    from scrimp_platform import sweep

    monkeypatch.setattr(sweep, "run_command", lambda options: pytest.fail("trained again"))
    write_sweep(tmp_path / "made-up-cpu", made_up.space("cpu"))
    command.command.main(["run", "--size", "cpu", "--storage", str(tmp_path)], standalone_mode=False)
    assert "| supported |" in command.PAGE.read_text()


def test_a_claim_is_run_as_an_ordinary_sweep_of_its_arms(made_up, tmp_path, monkeypatch):
    from scrimp_platform import plan, sweep

    def train(options: plan.SweepOptions) -> None:
        the_plan = plan.make_plan(options)
        assert list(the_plan.space.arms) == ["good", "bad"]
        write_sweep(the_plan.folder.path, the_plan.space)

    monkeypatch.setattr(sweep, "run_command", train)
    monkeypatch.setattr(data, "dataset", lambda images, folder: _scored(folder / images.name))
    command.command.main(["run", "made-up", "--size", "cpu", "--storage", str(tmp_path)], standalone_mode=False)
    assert "| supported |" in command.PAGE.read_text()


def _scored(folder: Path) -> Path:
    from made_up_sweep import make_dataset

    facts = manifest.load_manifest(make_dataset(folder))
    classifier = manifest.Classifier(file="none", sha256="", accuracy=1, seed=0)
    (folder / manifest.MANIFEST_FILE).write_text(facts.model_copy(update={"classifier": classifier}).to_json())
    return folder


def test_a_size_that_a_claim_does_not_have_is_refused(made_up, tmp_path):
    with pytest.raises(UserError, match="has no size gpu, only cpu"):
        command.run(made_up, "gpu", tmp_path)


def test_a_part_of_the_digits_is_scored_by_the_classifier_of_all(scored_digits, tmp_path):
    shutil.copytree(scored_digits.folder, tmp_path / "digits")
    part = data.dataset(Data(source="digits", limit=50, full_reference=True), tmp_path)
    facts, whole = manifest.load_manifest(part), manifest.load_manifest(tmp_path / "digits")
    assert facts.splits["train"].count == 50
    assert facts.splits["reference"].count == 1797
    assert facts.classifier == whole.classifier
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


def test_cifar10_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.delenv(data.FOLDER, raising=False)
    with pytest.raises(UserError, match="set SCRIMP_DATA_DIR to a folder with cifar10/"):
        data.dataset(Data(source="cifar10"), tmp_path)


def test_make_runs_all_claims_or_one():
    root = Path(__file__).parent.parent
    for arguments in ([], ["CLAIM=ld-mafp"]):
        said = subprocess.run(["make", "-n", "claims", *arguments], cwd=root, capture_output=True, text=True).stdout
        name = "".join(arguments).removeprefix("CLAIM=")
        assert f"python -m benchmarks.claims run {name}".strip() in said
