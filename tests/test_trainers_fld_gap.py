"""The generalisation gap of the feature likelihood divergence."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest, Split, SplitName
from scrimp_trainers.metrics import names
from scrimp_trainers.metrics.families import fld_gap
from scrimp_trainers.metrics.fidelity import Compared
from scrimp_trainers.recipe.scoring import Scoring

WIDTH = 16


def normal(count, seed, width=WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


TRAINING = normal(200, 0)
HOLDOUT = normal(150, 1)
FRESH = normal(300, 2)
NEAR = TRAINING[:100] + 0.05 * normal(100, 3)


def gap(samples, training=TRAINING, holdout=HOLDOUT):
    compared = Compared("classifier", samples, None, training, {}, training, holdout)
    return fld_gap.scores(compared)["fld_gap_classifier"]


@pytest.mark.parametrize(
    ("samples", "value"),
    [(FRESH, -3.966391), (NEAR, -7160.898), (torch.cat([NEAR[:30], FRESH[:70]]), -46.58030)],
    ids=["fresh", "near copies", "some of them"],
)
def test_it_is_that_of_the_authors_code(samples, value):
    """The values are what the authors' formulas and fit give for these features."""
    assert gap(samples) == pytest.approx(value, rel=1e-4)


def test_the_likelihood_is_that_of_a_mixture_of_gaussians_around_the_samples():
    samples, images, log_variances = normal(7, 4), normal(5, 5), normal(1, 6, width=7)[0]
    each = [
        multivariate_normal.logpdf(images, mean, np.exp(log_variance) * np.eye(WIDTH))
        for mean, log_variance in zip(samples.numpy(), log_variances.tolist(), strict=True)
    ]
    expected = -(logsumexp(each, axis=0) - np.log(7)).mean() / WIDTH
    assert fld_gap._mean_nll(images, samples, log_variances).item() == pytest.approx(expected, rel=1e-5)


def test_the_fit_makes_training_images_likelier():
    samples = FRESH[:50]
    distances = torch.cdist(TRAINING, samples).square().min(dim=0).values
    start = ((distances + 1e-3) / WIDTH).log()
    fitted = fld_gap.fit(samples, TRAINING)
    assert fld_gap._mean_nll(TRAINING, samples, fitted) < fld_gap._mean_nll(TRAINING, samples, start)


def test_the_same_samples_have_the_same_score():
    assert gap(FRESH) == gap(FRESH)


def test_features_that_are_the_same_for_all_held_out_images_do_not_count():
    flat = [torch.cat([features, torch.zeros(len(features), 2)], dim=1) for features in (FRESH, TRAINING, HOLDOUT)]
    assert gap(*flat) == pytest.approx(gap(FRESH), rel=1e-5)


def test_it_is_measured_where_it_is_asked_for_and_images_are_held_out():
    asked = Scoring(extractor="dinov2", also=("fld_gap",))
    assert "fld_gap_dinov2" in names.score_names(asked)
    splits: dict[SplitName, Split] = {"train": Split(count=100, per_class=None, shards=[])}
    manifest = Manifest(
        name="birds",
        content_hash="0",
        size=8,
        channels=1,
        classes=None,
        splits=splits,
        reference="train",
        provenance={},
    )
    with pytest.raises(UserError, match=r"scoring\.also fld_gap: dataset birds has no held-out images; .* --holdout"):
        names.check_scoring(asked, manifest)
    splits["holdout"] = Split(count=20, per_class=None, shards=[])
    names.check_scoring(asked, manifest.model_copy(update={"splits": splits}))
