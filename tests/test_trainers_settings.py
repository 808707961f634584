import subprocess
import sys

import pytest
from pydantic import ValidationError

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import ClassifierRecord, EncoderRecord, Manifest, Split
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe.scoring import Scoring


def manifest(count: int = 100, classifier: bool = True) -> Manifest:
    return Manifest(
        name="birds",
        content_hash="0" * 64,
        size=8,
        channels=1,
        classes=["a", "b"] if classifier else None,
        splits={"train": Split(count=count, per_class=None, shards=[])},
        reference="train",
        classifier=ClassifierRecord(file="classifier.safetensors", sha256="", accuracy=1.0, seed=0)
        if classifier
        else None,
        provenance={},
    )


def test_nobody_gets_an_extractor_that_was_not_named():
    with pytest.raises(ValidationError, match="extractor"):
        Scoring.model_validate({})


def test_fid_means_inception_and_nothing_else():
    for extractor in names.FIDELITY:
        named_so = {"fid", "kid", "isc", "precision", "recall"} & set(names.score_names(Scoring(extractor=extractor)))
        assert bool(named_so) == (extractor == "inception")


def test_scores_of_different_extractors_never_share_a_name():
    every = [name for scores in names.FIDELITY.values() for name in scores]
    assert len(every) == len(set(every))


def test_an_objective_of_another_extractor_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^fid: .*inception.*classifier.*fd_classifier") as caught:
        names.require_objectives(["kimg", "fid"], Scoring(extractor="classifier"))
    assert "\n" not in str(caught.value)


def test_an_objective_that_nothing_measures_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"^fidd: .*memorized_fraction"):
        names.require_objectives(["fidd"], Scoring(extractor="inception"))


@pytest.mark.parametrize("extractor", list(names.FIDELITY))
def test_what_is_measured_is_accepted(extractor: names.Extractor):
    measured = [*names.score_names(Scoring(extractor=extractor)), names.class_name(extractor), *names.COST, "loss"]
    names.require_objectives(measured, Scoring(extractor=extractor))


def test_the_mean_over_classes_of_another_extractor_is_refused():
    with pytest.raises(UserError, match=r"^fid_class_mean: is measured with extractor inception"):
        names.require_objectives(["fid_class_mean"], Scoring(extractor="classifier"))


def labelled(*counts: int) -> Manifest:
    split = Split(count=sum(counts), per_class=list(counts), shards=[])
    return manifest().model_copy(update={"splits": {"train": split}})


@pytest.mark.parametrize(
    ("counts", "samples", "enough"), [((50, 60), 100, True), ((50, 60), 99, False), ((49, 60), 900, False)]
)
def test_class_wise_scores_need_enough_images_of_every_class(counts: tuple[int, ...], samples: int, enough: bool):
    scoring = Scoring(extractor="classifier", samples=samples)
    assert names.class_wise(scoring, labelled(*counts)) == enough
    assert not names.class_wise(scoring, manifest())


def test_an_objective_over_classes_that_there_would_be_none_of_is_refused():
    asked = ["kimg", "fd_classifier_class_mean"]
    enough = Scoring(extractor="classifier", samples=100)
    names.check_classes(asked, enough, labelled(50, 60), conditional=True)
    names.check_classes(["fd_classifier"], enough, manifest(), conditional=False)
    with pytest.raises(UserError, match=r"set conditioning\.classes$"):
        names.check_classes(asked, enough, labelled(50, 60), conditional=False)
    with pytest.raises(UserError, match=r"50 reference images of each of the 2 classes of dataset birds"):
        names.check_classes(asked, enough, labelled(50, 40), conditional=True)


def test_a_dataset_without_classifier_is_told_so():
    with pytest.raises(UserError, match=r"classifier.*birds"):
        names.check_scoring(Scoring(extractor="classifier"), manifest(classifier=False))
    names.check_scoring(Scoring(extractor="classifier"), manifest())
    names.check_scoring(Scoring(extractor="inception"), manifest(classifier=False))


def test_a_dataset_without_a_contrastive_encoder_or_with_a_blind_one_is_told_so():
    scoring = Scoring(extractor="contrastive")
    with pytest.raises(UserError, match=r"birds has no contrastive encoder.*use classifier"):
        names.check_scoring(scoring, manifest())

    def encoder(noise: float) -> EncoderRecord:
        return EncoderRecord(file="e.safetensors", sha256="", degradations={"blur": 7.0, "noise": noise}, seed=0)

    unlabelled = manifest(classifier=False)
    names.check_scoring(scoring, unlabelled.model_copy(update={"encoder": encoder(noise=1.5)}))
    with pytest.raises(UserError, match=r"birds does not see noise; use inception"):
        names.check_scoring(scoring, unlabelled.model_copy(update={"encoder": encoder(noise=0.9)}))


def test_a_weight_file_for_the_datasets_own_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="leave `weights` out"):
        names.check_scoring(Scoring(extractor="classifier", weights=tmp_path / "w.pth"), manifest())


def test_too_few_reference_images_are_refused():
    with pytest.raises(UserError, match="7 reference images"):
        names.check_scoring(Scoring(extractor="inception"), manifest(count=7))


def test_the_settings_cost_no_heavy_import():
    code = "import scrimp_trainers.metrics.names, sys; print({'torch', 'torch_fidelity', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


BOTH = Scoring.model_validate(
    [{"extractor": "inception", "samples": 500}, {"extractor": "dinov2", "also": ["fld_gap"]}]
)


def test_a_list_of_extractors_scores_the_same_samples_with_each():
    assert [(each.extractor, each.samples) for each in BOTH.each] == [("inception", 500), ("dinov2", 500)]
    assert Scoring.model_validate(BOTH.model_dump()) == BOTH
    assert Scoring.model_validate([{"extractor": "clip"}]) == Scoring(extractor="clip")


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ([], "name at least one extractor"),
        ([{"extractor": "clip"}, {"extractor": "clip"}], "lists an extractor twice"),
        ([{"extractor": "clip", "samples": 50}, {"extractor": "dinov2", "samples": 60}], "same number, 50 or 60"),
        ([{"extractor": "clip"}, {"samples": 50}], r"extractor[\s\S]*Field required"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(listed: list[dict[str, object]], complaint: str):
    with pytest.raises(ValidationError, match=complaint):
        Scoring.model_validate(listed)


def test_with_several_extractors_every_score_ends_in_its_own():
    listed = names.score_names(BOTH)
    assert len(listed) == len(set(listed))
    assert {"fid_inception", "memorized_fraction_inception", "memorized_fraction_dinov2", "fld_gap_dinov2"} <= set(
        listed
    )
    assert "fld_gap_inception" not in listed
    for name in listed:
        assert name == "pixel_copied_fraction" or "_inception" in name or "_dinov2" in name
    assert names.in_full("memorized_fraction_holdout", "clip") == "memorized_fraction_clip_holdout"
    assert names.in_full("fid_class_3", "inception") == "fid_inception_class_3"


def test_with_several_extractors_objectives_name_theirs_in_full():
    names.require_objectives(["fid_inception", "memorized_fraction_dinov2", "fid_inception_class_mean", "kimg"], BOTH)
    with pytest.raises(UserError, match=r"^fid: several extractors .* in full: fid_inception$"):
        names.require_objectives(["fid"], BOTH)
    with pytest.raises(
        UserError, match=r"^memorized_fraction: .* memorized_fraction_inception or memorized_fraction_dinov2$"
    ):
        names.require_objectives(["memorized_fraction"], BOTH)
    with pytest.raises(UserError, match=r"^fd_clip: is measured with extractor clip, .* scored with inception, dinov2"):
        names.require_objectives(["fd_clip"], BOTH)


def test_each_extractor_of_a_list_has_to_suit_the_dataset():
    with pytest.raises(UserError, match="fld_gap: dataset birds has no held-out images"):
        names.check_scoring(BOTH, manifest())
