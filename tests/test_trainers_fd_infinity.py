"""The Fréchet distance without the bias of the sample count."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.metrics import fidelity, names
from scrimp_trainers.metrics.families import fd_infinity
from scrimp_trainers.metrics.fidelity import Compared
from scrimp_trainers.recipe.scoring import Scoring

WIDTH = 16


def compared(count: int, seed: int, shift: float = 0.5) -> Compared:
    """Compare standard normal samples, shifted in one coordinate, with a reference whose Gaussian is known exactly."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, WIDTH, generator=generator)
    samples[:, 0] += shift
    eye = torch.eye(WIDTH, dtype=torch.float64)
    known = {"mean": torch.zeros(WIDTH, dtype=torch.float64), "covariance": eye, "root": eye}
    return Compared("classifier", samples, None, samples, known)


def test_it_is_nearer_to_the_distance_of_the_distributions_than_the_plain_one():
    """That is shift^2; of n samples the plain distance is too large by about (d + d (d + 1) / 4) / n."""
    plain, extrapolated = [], []
    for seed in range(20):
        case = compared(400, seed)
        plain.append(fidelity.frechet(case.features, case.known))
        extrapolated.append(fd_infinity.scores(case)["fd_infinity_classifier"])
    bias = (WIDTH + WIDTH * (WIDTH + 1) / 4) / 400
    assert np.mean(plain) - 0.25 == pytest.approx(bias, rel=0.25)
    assert abs(np.mean(extrapolated) - 0.25) < 0.2 * bias


def test_it_is_the_intercept_of_a_linear_fit_in_the_inverse_sample_count(monkeypatch):
    counts, values = [], []

    def frechet(features, known):
        counts.append(len(features))
        values.append(3.0 + 40.0 / len(features) + 0.01 * len(counts) ** 2)
        return values[-1]

    monkeypatch.setattr(fidelity, "frechet", frechet)
    found = fd_infinity.scores(compared(1000, 0))["fd_infinity_classifier"]
    assert (len(counts), counts[0], counts[-1]) == (15, 100, 1000)
    fit = LinearRegression().fit(1 / np.array(counts)[:, None], values)
    assert found == pytest.approx(fit.intercept_, rel=1e-9)


def test_the_same_samples_have_the_same_score():
    assert fd_infinity.scores(compared(100, 3)) == fd_infinity.scores(compared(100, 3))


def test_it_is_measured_where_it_is_asked_for():
    asked = Scoring(extractor="inception", also=("fd_infinity",))
    names.require_objectives(["fid_infinity"], asked)
    assert "fid_infinity" in names.score_names(asked)
    with pytest.raises(UserError, match=r"^fid_infinity: is not measured .* set scoring.also to \[fd_infinity\]"):
        names.require_objectives(["fid_infinity"], Scoring(extractor="inception"))
    with pytest.raises(UserError, match="there are no scores 'fd_zero'; use clip_score, fd_infinity, fld_gap"):
        names.require_objectives(["fid"], Scoring(extractor="inception", also=("fd_zero",)))
