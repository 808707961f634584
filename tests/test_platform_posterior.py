"""The posterior of a race against closed forms, against Student's interval, and against simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from scrimp_platform.search import posterior

SCORES = [[5.0, 5.4, 5.2], [5.1, 5.5], [6.1, 6.0, 6.4, 6.2], [5.6]]


def negative(samples: list[list[float]]) -> list[list[float]]:
    """Scores on the linear scale, since not all of them are positive."""
    return [[value - 10 for value in sample] for sample in samples]


def test_given_noise_and_spread_the_means_are_those_of_conjugate_normals(monkeypatch):
    ratio = 0.7
    monkeypatch.setattr(posterior, "RATIOS", np.array([ratio]))
    monkeypatch.setattr(posterior, "_LOG_PRIOR", np.zeros(1))
    monkeypatch.setattr(posterior, "DRAWS", 200_000)
    counts = np.array([len(sample) for sample in SCORES])
    means = np.array([float(np.mean(sample)) for sample in SCORES])
    squares = sum(float(np.sum((np.array(sample) - np.mean(sample)) ** 2)) for sample in SCORES)
    draws, noise = posterior.draw(means, counts, squares)

    # All scores at once: their covariance in units of s^2, with a variance of the common mean that is as good as flat.
    flat = 1e8
    trial = np.repeat(np.arange(len(SCORES)), counts)
    scores = np.concatenate(SCORES)
    covariance = flat + ratio**2 * (trial[:, None] == trial) + np.eye(len(trial))
    cross = flat + ratio**2 * (np.arange(len(SCORES))[:, None] == trial)
    expected = scores.mean() + cross @ np.linalg.solve(covariance, scores - scores.mean())
    prior = flat + ratio**2 * np.eye(len(SCORES))
    spread = np.sqrt(np.diag(prior - cross @ np.linalg.solve(covariance, cross.T)))
    assert draws.mean(axis=0) == pytest.approx(expected, abs=0.005)
    assert (draws / noise[:, None] - expected / noise[:, None]).std(axis=0) == pytest.approx(spread, rel=0.01)

    # The noise: its sum of squares over all scores has one degree of freedom less than there are scores.
    centred = scores - scores.mean()
    total = float(centred @ np.linalg.solve(covariance, centred))
    expected_noise = np.sqrt(total / reference.chi2.ppf([0.9, 0.5, 0.1], len(scores) - 1))
    assert np.quantile(noise, [0.1, 0.5, 0.9]) == pytest.approx(expected_noise, rel=0.01)


def test_of_a_trial_alone_the_interval_is_students():
    (summary,) = posterior.of_scores(negative(SCORES[:1]), "minimize").summaries
    values = negative(SCORES[:1])[0]
    low, high = reference.t.interval(0.95, 2, loc=np.mean(values), scale=reference.sem(values))
    assert summary.mean == pytest.approx(np.mean(values), abs=0.01)
    assert (summary.low, summary.high) == pytest.approx((low, high), abs=0.06)


def test_means_are_drawn_towards_each_other_and_keep_their_order():
    plain = [np.mean(sample) for sample in SCORES]
    means = [summary.mean for summary in posterior.of_scores(SCORES, "minimize").summaries]
    assert np.argsort(means).tolist() == np.argsort(plain).tolist()
    assert np.ptp(means) < np.ptp(plain)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_unit_of_a_score_does_not_matter(direction):
    for samples in (SCORES, negative(SCORES)):
        one = posterior.of_scores(samples, direction)
        ten = posterior.of_scores([[10 * value for value in sample] for sample in samples], direction)
        for summary, scaled in zip(one.summaries, ten.summaries, strict=True):
            ends = (summary.mean, summary.low, summary.high)
            assert (scaled.mean, scaled.low, scaled.high) == pytest.approx([10 * end for end in ends])
        assert ten.near_best(0.02) == pytest.approx(one.near_best(0.02), abs=0.001)


def test_the_order_of_the_trials_does_not_matter():
    one = posterior.of_scores(SCORES, "minimize")
    turned = posterior.of_scores(SCORES[::-1], "minimize")
    assert turned.summaries[::-1] == one.summaries
    assert turned.near_best(0.0)[::-1] == one.near_best(0.0)


def test_maximising_is_minimising_the_negative():
    mixed = [[value - 5.3 for value in sample] for sample in SCORES]
    up = posterior.of_scores(mixed, "maximize")
    down = posterior.of_scores([[-value for value in sample] for sample in mixed], "minimize")
    assert up.near_best(0.0) == down.near_best(0.0)
    for summary, other in zip(up.summaries, down.summaries, strict=True):
        assert (summary.low, summary.mean, summary.high) == pytest.approx((-other.high, -other.mean, -other.low))


def test_no_interval_of_a_positive_score_reaches_below_0():
    wild = [[0.1, 9.0], [0.5, 3.0]]
    assert all(summary.low > 0 for summary in posterior.of_scores(wild, "minimize").summaries)


def test_a_score_without_noise_is_exact():
    sizes = posterior.of_scores([[0.1, 0.1, 0.1], [0.2, 0.2], [0.1, 0.1], []], "minimize")
    assert [summary.mean for summary in sizes.summaries[:3]] == pytest.approx([0.1, 0.2, 0.1])
    assert all(summary.low == summary.high == summary.mean for summary in sizes.summaries[:3])
    assert sizes.near_best(0.0) == [1, 0, 1, 0]
    assert sizes.worse(0, 2) == sizes.worse(2, 0) == 0


def test_without_a_second_seed_nothing_is_known_of_the_noise():
    known = posterior.of_scores([[5.0], [9.0], [7.0]], "minimize")
    assert [summary.mean for summary in known.summaries] == [5.0, 9.0, 7.0]
    assert all(math.isnan(summary.low) and math.isnan(summary.high) for summary in known.summaries)
    assert known.near_best(0.0) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_trial_without_a_score_may_be_anything():
    known = posterior.of_scores([[5.0, 5.1], [5.2, 5.0], []], "minimize")
    chances = known.near_best(0.0)
    assert sum(chances) == pytest.approx(1)
    assert 0.1 < chances[2] < 0.5


def test_the_same_seeds_may_choose_the_best_and_report_its_score():
    """The truth is drawn from the prior, and what is best by its seeds is what is looked at."""
    chance = np.random.default_rng(0)
    noise = 0.05
    covered, errors, student, plain, stated, true = [], [], [], [], [], []
    for _ in range(800):
        ratio = min(np.tan(math.pi / 2 * chance.random()) ** 2, 20)
        truth = chance.normal(0, ratio * noise, 5)
        samples = [list(np.exp(chance.normal(mean - noise**2 / 2, noise, 4))) for mean in truth]
        known = posterior.of_scores(samples, "minimize")
        chosen = min(range(5), key=lambda place: known.summaries[place].mean)
        summary = known.summaries[chosen]
        expected = math.exp(truth[chosen])
        covered.append(summary.low <= expected <= summary.high)
        errors.append((summary.mean / expected - 1) / noise)
        stated.append(known.near_best(0.02)[chosen])
        true.append(truth[chosen] <= truth.min() + math.log(1.02))

        scale = reference.sem(samples[chosen])
        low, high = reference.t.interval(0.95, 3, loc=np.mean(samples[chosen]), scale=scale)
        student.append(low <= expected <= high)
        plain.append((np.mean(samples[chosen]) / expected - 1) / noise)
    assert np.mean(covered) >= 0.94
    assert abs(np.mean(errors)) <= 0.1
    assert np.mean(stated) == pytest.approx(np.mean(true), abs=0.05)
    assert np.mean(plain) < -0.2  # which is why the plain mean is not reported
    assert np.mean(student) < np.mean(covered)
