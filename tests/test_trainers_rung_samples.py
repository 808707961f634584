"""A repeat whose lower rungs score fewer samples than the last one."""

from pathlib import Path

import pytest
from trainers_small import small

from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.run import train_repeat

RECIPE = small(training__batch_size=32, training__kimg=0.128, sampler__steps=1)
OF_REAL = ("fd_classifier_real", "fd_classifier_holdout")


def repeat(dataset, folder: Path, samples: int, rung_samples: int | None) -> list[MetricsRow]:
    scoring = Scoring(extractor="classifier", samples=samples)
    options = {"scoring": scoring, "objective": "fd_classifier", "rung_samples": rung_samples, "device": "cpu"}
    return list(train_repeat(RECIPE, dataset, folder, 5, rungs_kimg=[0.032, 0.064], **options))


def scores_of(row: MetricsRow) -> dict[str, float | str]:
    untimed = row.scores.keys() - {"device_hours"}
    return {name: row.scores[name] for name in untimed}


@pytest.fixture(scope="module")
def rows(scored_digits, tmp_path_factory) -> dict[str, list[MetricsRow]]:
    folder = tmp_path_factory.mktemp("repeats")
    return {
        "fewer": repeat(scored_digits, folder / "fewer", 60, 30),
        "all": repeat(scored_digits, folder / "all", 60, None),
        "few": repeat(scored_digits, folder / "few", 30, None),
    }


def test_a_row_says_of_how_many_samples_its_scores_are(rows):
    assert [row.value("samples") for row in rows["fewer"] if row.rung is not None] == [30, 30, 60]


def test_the_last_score_is_that_of_a_repeat_that_scores_all_samples_everywhere(rows):
    last = scores_of(rows["fewer"][-1])
    expected = scores_of(rows["all"][-1])
    best = "fd_classifier_best"
    assert {**last, best: None} == {**expected, best: None}


def test_a_lower_rung_is_scored_as_the_first_samples_are_by_themselves(rows):
    fewer, few = rows["fewer"][0], rows["few"][0]
    for name in ("fd_classifier", "kd_classifier", "similarity_mean", *OF_REAL):
        assert fewer.value(name) == few.value(name)
    assert fewer.value("fd_classifier_real") != rows["fewer"][-1].value("fd_classifier_real")


def test_what_does_not_depend_on_the_samples_is_the_same_at_every_rung(rows):
    for name in ("similarity_threshold", "memorized_fraction_holdout", "sample_flops"):
        assert len({row.value(name) for row in rows["fewer"]}) == 1


def test_scores_of_fewer_samples_are_never_the_best_so_far(rows):
    fewer = rows["fewer"]
    assert ["fd_classifier_best" in row.scores for row in fewer] == [False, False, True]
    assert fewer[-1].value("fd_classifier_best") == fewer[-1].value("fd_classifier")
