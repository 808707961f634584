import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from scrimp_trainers.metrics import fidelity
from scrimp_trainers.metrics.fidelity import Compared
from scrimp_trainers.metrics.names import FIDELITY
from scrimp_trainers.recipe.scoring import Extractor


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(count, width, generator=generator) @ mix + shift


def compare(extractor: Extractor, samples: Tensor, reference: Tensor, logits: Tensor | None = None) -> Compared:
    return Compared(extractor, samples, logits, reference, fidelity.statistics(reference))


@pytest.mark.parametrize(("count", "width"), [(300, 24), (40, 96)], ids=["full rank", "more features than samples"])
def test_scores_equal_torch_fidelitys(count: int, width: int):
    samples, reference = normal(count, width, 1, shift=0.1), normal(count + 50, width, 2) * 1.1
    logits = normal(count, 10, 3) * 4
    ours = fidelity.scores(compare("classifier", samples, reference, logits))
    fid = fid_statistics_to_metric(*(fid_features_to_statistics(part) for part in (samples, reference)), verbose=False)
    kid = kid_features_to_metric(samples, reference, kid_subset_size=count, verbose=False)
    prc = prc_features_to_metric(samples, reference, verbose=False)
    expected = [
        fid["frechet_inception_distance"],
        kid["kernel_inception_distance_mean"],
        kid["kernel_inception_distance_std"],
        isc_features_to_metric(logits)["inception_score_mean"],
        prc["precision"],
        prc["recall"],
    ]
    assert [ours[name] for name in FIDELITY["classifier"]] == pytest.approx(expected, rel=1e-6)


def test_frechet_of_two_gaussians_reaches_the_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for independent coordinates."""
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.3, 0.0, -1.0])
    samples = torch.from_numpy(np.random.default_rng(0).standard_normal((200_000, 3))).float() * scale + shift
    reference = torch.from_numpy(np.random.default_rng(1).standard_normal((200_000, 3))).float()
    known = fidelity.statistics(reference[:1000]) | {
        "mean": torch.zeros(3, dtype=torch.float64),
        "covariance": torch.eye(3, dtype=torch.float64),
        "root": torch.eye(3, dtype=torch.float64),
    }
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert fidelity.frechet(samples, known) == pytest.approx(expected, rel=0.02)


def test_a_set_is_at_no_distance_from_itself():
    features = normal(200, 16, 4)
    found = fidelity.scores(compare("vgg16", features, features))
    assert found["fd_vgg16"] == pytest.approx(0, abs=1e-6)
    assert found["precision_vgg16"] == found["recall_vgg16"] == 1


def test_copies_of_one_image_are_precise_but_recall_nothing():
    reference = normal(300, 8, 5)
    known = fidelity.statistics(reference)
    precision, recall = fidelity.precision_recall(reference[:1].repeat(50, 1), reference, known["radii"])
    assert precision == 1
    assert recall < 0.02


def test_kid_takes_smaller_subsets_where_there_are_fewer_images_and_says_so():
    reference = normal(80, 8, 6)
    assert fidelity.scores(compare("clip", normal(50, 8, 7), reference))["kid_subset_size"] == 50
    assert fidelity.scores(compare("clip", normal(2000, 8, 7), reference))["kid_subset_size"] == 80


def test_large_sets_are_compared_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    samples, reference = normal(90, 8, 8), normal(110, 8, 9)
    whole = fidelity.precision_recall(samples, reference, fidelity.radii(reference))
    monkeypatch.setattr(fidelity, "CHUNK", 1000)
    assert fidelity.precision_recall(samples, reference, fidelity.radii(reference)) == whole


@pytest.mark.parametrize(
    ("count", "others", "width"), [(300, 400, 24), (40, 60, 96), (40, 300, 96), (300, 60, 96)], ids=str
)
def test_frechet_of_two_sets_needs_no_statistics(count: int, others: int, width: int):
    samples, reference = normal(count, width, 1, shift=0.1), normal(others, width, 2) * 1.1
    expected = fidelity.frechet(samples, fidelity.statistics(reference))
    assert fidelity.frechet_of_sets(samples, reference) == pytest.approx(expected, rel=1e-6)


def test_class_scores_compare_each_class_with_its_own_reference():
    samples, reference = normal(180, 6, 3), normal(240, 6, 4)
    labels, reference_labels = torch.arange(180) % 3, torch.arange(240) % 3
    samples[labels == 1] += 2
    found = fidelity.class_scores("inception", samples, labels, reference, reference_labels)
    expected = [fidelity.frechet(samples[i::3], fidelity.statistics(reference[i::3])) for i in range(3)]
    assert [found[f"fid_class_{i}"] for i in range(3)] == pytest.approx(expected)
    assert found["fid_class_1"] > 10 * found["fid_class_0"]
    assert found["fid_class_mean"] == pytest.approx(np.mean(expected))
    assert len(found) == 4
