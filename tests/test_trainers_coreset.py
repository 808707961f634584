"""Coresets: scores equal those of scipy and scikit-learn, counts are exact, and lists are made once."""

import csv
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.metrics import references
from scrimp_trainers.precompute import coreset
from scrimp_trainers.precompute.coreset_picture import draw_picture
from scrimp_trainers.precompute.coreset_scores import RIDGE, choose_kept, score_features
from scrimp_trainers.recipe.techniques import Coreset

CPU = torch.device("cpu")
LABELS = np.repeat([4, 0, 2], [30, 40, 25])[np.random.default_rng(1).permutation(95)]


def positions_kept(dataset, settings, device, seed) -> np.ndarray:
    return np.flatnonzero(coreset.score_dataset(dataset, settings, device, seed).kept)


def correlated(count: int = 95, width: int = 6, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, width)) @ random.normal(size=(width, width)) + 3).astype(np.float32)


def by_class(features: np.ndarray, score) -> np.ndarray:
    """Apply a score to the features of each class by itself."""
    found = np.empty(len(features))
    for label in np.unique(LABELS):
        found[label == LABELS] = score(features[label == LABELS].astype(np.float64))
    return found


def log_density(x: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    cov: Any = covariance  # scipy's annotations know numbers alone
    return multivariate_normal.logpdf(x, x.mean(axis=0), cov)


def test_gaussian_scores_equal_scipys_with_the_ridge_of_instance_selection():
    expected = by_class(correlated(), lambda x: log_density(x, np.cov(x.T, bias=True) + RIDGE * np.eye(6)))
    np.testing.assert_allclose(score_features(correlated(), LABELS, Coreset()), expected, rtol=1e-9)


def test_gaussian_scores_equal_instance_selections_mixture_of_one_component():
    expected = by_class(correlated(), lambda x: GaussianMixture(1, reg_covar=RIDGE).fit(x).score_samples(x))
    np.testing.assert_allclose(score_features(correlated(), LABELS, Coreset()), expected, rtol=1e-9)


def test_shrunk_gaussian_scores_equal_scipys_also_with_fewer_images_than_features():
    features = correlated(width=60)
    expected = by_class(features, lambda x: log_density(x, ledoit_wolf(x)[0] + RIDGE * np.eye(60)))
    np.testing.assert_allclose(score_features(features, LABELS, Coreset(covariance="shrunk")), expected, rtol=1e-8)


def test_ppca_scores_equal_scikit_learns_and_the_density_of_its_covariance():
    settings, features = Coreset(score="ppca"), correlated(width=12)
    expected = by_class(features, lambda x: PCA(_components(x)).fit(x).score_samples(x))
    np.testing.assert_allclose(score_features(features, LABELS, settings), expected, rtol=1e-9)
    expected = by_class(features, lambda x: log_density(x, _ppca_covariance(x)))
    np.testing.assert_allclose(score_features(features, LABELS, settings), expected, rtol=1e-6)


def _components(x: np.ndarray) -> int:
    """Return the place, counted from 0, of the component with which more than 95% of the variance is explained."""
    return int(np.argmax(np.cumsum(PCA().fit(x).explained_variance_ratio_) > 0.95))


def _ppca_covariance(x: np.ndarray) -> np.ndarray:
    """Tipping and Bishop's maximum likelihood solution: what the components leave over is spread evenly."""
    values, vectors = np.linalg.eigh(np.cov(x.T))
    components = _components(x)
    values[: len(values) - components] = values[: len(values) - components].mean()
    return vectors * values @ vectors.T


def test_knn_scores_are_minus_the_distance_to_the_fifth_neighbour_of_the_class():
    found = score_features(correlated(), LABELS, Coreset(score="knn"))
    expected = by_class(correlated(), lambda x: -NearestNeighbors(n_neighbors=5).fit(x).kneighbors()[0][:, 4])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    expected = by_class(correlated(), lambda x: -np.sort(cdist(x, x), axis=1)[:, 5])  # the first is the image itself
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_closest_scores_are_minus_the_distance_to_the_class_median():
    expected = by_class(correlated(), lambda x: -np.sqrt(np.square(x - np.median(x, axis=0)).sum(axis=1)))
    np.testing.assert_allclose(score_features(correlated(), LABELS, Coreset(score="closest")), expected, rtol=1e-12)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("keep", [0.2, 0.4, 0.8])
def test_moderate_keeps_the_middle_of_the_sorted_distances(keep: float, per_class: bool):
    features = correlated(90)
    labels = np.repeat([0, 1, 2], 30)
    distances = np.concatenate(
        [np.linalg.norm(part - np.median(part, axis=0), axis=1) for part in features.reshape(3, 30, -1)]
    )
    settings = Coreset(score="moderate", keep=keep, per_class=per_class)
    expected = []
    for members in np.arange(90).reshape(3, 30) if per_class else [np.arange(90)]:
        low, high = (round(len(members) * (0.5 + sign * keep / 2)) for sign in (-1, 1))
        expected += members[np.argsort(distances[members])][low:high].tolist()
    assert choose_kept(score_features(features, labels, settings), labels, settings).tolist() == sorted(expected)


def test_moderate_keeps_what_its_code_keeps_of_three_thousand_images_unless_told_otherwise():
    """Moderate-DS sorts the distances of all classes at once; class by class most of the choice is another."""
    random = np.random.default_rng(3)
    labels = random.integers(10, size=3000)
    spread = 1 + labels[:, None] / 2  # of the features of each class
    features = (random.normal(size=(3000, 16)) * spread).astype(np.float32)

    distances = np.empty(3000)
    for label in range(10):
        part = features[labels == label].astype(np.float64)
        distances[labels == label] = np.linalg.norm(part - np.median(part, axis=0), axis=1)
    low, high = round(3000 * 0.45), round(3000 * 0.55)
    official = np.sort(distances.argsort()[low:high])

    settings = Coreset(score="moderate", keep=0.1)
    kept = choose_kept(score_features(features, labels, settings), labels, settings)
    assert kept.tolist() == official.tolist()

    within = Coreset(score="moderate", keep=0.1, per_class=True)
    kept = choose_kept(score_features(features, labels, within), labels, within)
    assert len(kept) == 300
    assert len(np.intersect1d(kept, official)) < 150


def test_other_scores_choose_class_by_class_unless_told_otherwise():
    """As instance selection does."""
    for score in get_args(Coreset.model_fields["score"].annotation):
        assert Coreset(score=score).by_class == (score != "moderate")
        assert not Coreset(score=score, per_class=False).by_class


def test_random_scores_depend_on_the_seed_alone():
    settings = Coreset(score="random", keep=0.3)
    first, again, other = (score_features(correlated(width=3), LABELS, settings, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert choose_kept(first, LABELS, settings).tolist() != choose_kept(other, LABELS, settings).tolist()


def test_without_labels_all_images_are_of_one_class():
    expected = score_features(correlated(), np.zeros(95, dtype=np.int64), Coreset())
    np.testing.assert_array_equal(score_features(correlated(), None, Coreset()), expected)


@pytest.mark.parametrize(
    ("score", "width", "labels", "complaint"),
    [
        (
            "gaussian",
            25,
            LABELS,
            r"class 2 has 25 images, but of 25 features 26 are needed; use coreset.covariance shrunk",
        ),
        (
            "ppca",
            9,
            np.repeat([0, 1], [74, 21]),
            r"class 1 has 21 images, but of 9 features 22 are needed; use closest",
        ),
        ("knn", 4, np.repeat([0, 1], [90, 5]), r"class 1 has 5 images, but of 4 features 6 are needed; use closest"),
    ],
)
def test_a_class_too_small_for_a_score_is_refused_with_a_way_out(score, width, labels, complaint):
    with pytest.raises(UserError, match=complaint):
        score_features(correlated(width=width), labels, Coreset(score=score))


def test_a_class_too_small_for_a_score_is_called_by_its_name():
    with pytest.raises(UserError, match="class sheep has 25 images"):
        score_features(correlated(width=25), LABELS, Coreset(), class_names=["cat", "dog", "sheep"])


@pytest.mark.parametrize("score", ["gaussian", "closest", "moderate", "random"])
def test_a_class_of_one_image_keeps_it(score):
    settings = Coreset(score=score, covariance="shrunk", keep=0.1, per_class=True)
    labels = np.append(np.zeros(94, dtype=np.int64), 1)
    assert choose_kept(score_features(correlated(), labels, settings), labels, settings)[-1] == 94


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
def test_images_that_a_score_cannot_tell_apart_are_refused():
    with pytest.raises(UserError, match="the images of the dataset are too much alike"):
        score_features(np.ones((30, 4), dtype=np.float32), None, Coreset(score="ppca"))


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    values = draw(st.lists(st.integers(-4, 4), min_size=1, max_size=60))  # few values, many of them equal
    labels = draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    return np.array(values, dtype=np.float64), draw(st.sampled_from([None, np.array(labels, dtype=np.int64)]))


@examples(max_examples=200)
@given(case=scored(), keep=st.floats(0.001, 1), per_class=st.booleans(), side=st.sampled_from(["high", "low"]))
def test_counts_are_exact_and_nothing_that_was_dropped_is_better_or_as_good_and_earlier(case, keep, per_class, side):
    values, labels = case
    kept = choose_kept(values, labels, Coreset(keep=keep, per_class=per_class, side=side))
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    best = values if side == "high" else -values
    for label in np.unique(labels) if per_class and labels is not None else [None]:
        members = np.arange(len(values)) if label is None else np.flatnonzero(labels == label)
        inside, outside = members[np.isin(members, kept)], members[~np.isin(members, kept)]
        assert len(inside) == max(1, round(keep * len(members)))
        if len(outside):
            worst = min((best[one], -one) for one in inside)
            assert worst > max((best[one], -one) for one in outside)


SETTINGS = Coreset(features="classifier", keep=0.1)


@pytest.fixture(scope="module")
def with_features(scored_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "digits"
    shutil.copytree(scored_digits.folder, folder, ignore=shutil.ignore_patterns("cache"))
    coreset.score_dataset(open_dataset(folder), SETTINGS, CPU, seed=0)
    return folder


@pytest.fixture
def digits(with_features: Path, tmp_path: Path) -> Dataset:
    """A copy with the features in its cache, but no list."""
    shutil.copytree(with_features, tmp_path / "digits", ignore=shutil.ignore_patterns("*.csv*"))
    return open_dataset(tmp_path / "digits")


def test_a_coreset_is_the_best_tenth_of_each_class_of_the_digits(digits: Dataset):
    kept = positions_kept(digits, SETTINGS, CPU, seed=0)
    labels = digits.entries("train")[1]
    assert labels is not None
    assert np.bincount(labels[kept]).tolist() == [round(0.1 * count) for count in np.bincount(labels)]
    features = references.cached(next((digits.folder / "cache").glob("*.safetensors")), dict)["features"].numpy()
    assert kept.tolist() == choose_kept(score_features(features, labels, SETTINGS), labels, SETTINGS).tolist()


def test_a_list_of_another_format_is_made_again(digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    old = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    monkeypatch.setattr(coreset, "FORMAT", coreset.FORMAT + 1)
    assert coreset.score_dataset(digits, SETTINGS, CPU, seed=0).file != old.file


def test_the_list_names_each_image_with_its_class_score_and_fate(digits: Dataset):
    found = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    with found.file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    keys, labels = digits.entries("train")
    assert labels is not None
    assert [row["key"] for row in rows] == keys
    assert [row["class"] for row in rows] == [str(label) for label in labels]
    assert [float(row["score"]) for row in rows] == found.scores.tolist()
    assert np.flatnonzero([row["kept"] == "1" for row in rows]).tolist() == np.flatnonzero(found.kept).tolist()


def test_a_second_look_reads_the_list_and_opens_no_surrogate(digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    first = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    monkeypatch.setattr(coreset, "open_extractor", lambda *_: pytest.fail("opened again"))
    again = coreset.score_dataset(digits, SETTINGS, CPU, seed=1)  # gaussian scores know no chance
    np.testing.assert_array_equal(again.scores, first.scores)
    np.testing.assert_array_equal(again.kept, first.kept)


def test_every_setting_has_a_list_of_its_own(digits: Dataset):
    random = SETTINGS.model_copy(update={"score": "random"})
    changes = [{}, {"keep": 0.2}, {"score": "knn"}, {"side": "low"}, {"per_class": False}, {"covariance": "shrunk"}]
    cases = [(SETTINGS.model_copy(update=change), 0) for change in changes] + [(random, 0), (random, 1)]
    positions = [positions_kept(digits, settings, CPU, seed).tolist() for settings, seed in cases]
    assert len({tuple(kept) for kept in positions}) == len(cases)
    assert len(list((digits.folder / "cache").glob("coreset-*.csv"))) == len(cases)
    assert [positions_kept(digits, settings, CPU, seed).tolist() for settings, seed in cases] == positions
    assert len(list((digits.folder / "cache").glob("*.safetensors"))) == 1  # the features are shared


def test_other_data_and_another_surrogate_have_lists_of_their_own(digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    files = {coreset.score_dataset(digits, SETTINGS, CPU, seed=0).file}
    other = replace(digits, manifest=digits.manifest.model_copy(update={"content_hash": "1" * 64}))
    files.add(coreset.score_dataset(other, SETTINGS, CPU, seed=0).file)
    monkeypatch.setattr(coreset, "weights_hash", lambda *_: "another file")
    files.add(coreset.score_dataset(digits, SETTINGS, CPU, seed=0).file)
    assert len(files) == 3


def test_random_needs_no_surrogate(digits_dataset: Dataset):
    kept = positions_kept(digits_dataset, Coreset(score="random", keep=0.5, per_class=False), CPU, seed=0)
    assert len(kept) == round(0.5 * digits_dataset.manifest.splits["train"].count)


def test_a_surrogate_that_the_dataset_lacks_is_refused(digits_dataset: Dataset):
    with pytest.raises(UserError, match="extractor classifier: dataset digits has no classifier"):
        positions_kept(digits_dataset, SETTINGS, CPU, seed=0)


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "\0" + text])
def test_a_damaged_list_is_made_anew(digits: Dataset, damage):
    found = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    whole = found.file.read_text()
    found.file.write_text(damage(whole))
    coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    assert found.file.read_text() == whole


def test_of_several_that_want_the_same_list_one_makes_it(digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    made, make = [], coreset.score_features
    monkeypatch.setattr(coreset, "score_features", lambda *arguments: made.append(1) or make(*arguments))
    threads = [threading.Thread(target=coreset.score_dataset, args=(digits, SETTINGS, CPU, 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_folder_that_cannot_be_written_still_has_a_coreset(digits: Dataset):
    shutil.rmtree(digits.folder / "cache")
    (digits.folder / "cache").write_text("in the way")
    found = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    assert not found.file.exists()
    assert found.kept.sum() > 0


def test_the_picture_shows_the_best_kept_first_and_the_worst_dropped_last(digits: Dataset):
    found = coreset.score_dataset(digits, SETTINGS, CPU, seed=0)
    sheet = np.asarray(draw_picture(digits, SETTINGS, found, columns=4))
    images = digits.images("train")[0]
    zeros = found.classes["0"]
    best, worst = zeros[found.scores[zeros].argmax()], zeros[found.scores[zeros].argmin()]
    assert _places(sheet, images[best, 0])[0][0] == _places(sheet, images[worst, 0])[0][0]  # the same row
    assert _places(sheet, images[best, 0])[0][1] < sheet.shape[1] / 2 < _places(sheet, images[worst, 0])[0][1]


def _places(sheet: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """Where an image, six screen pixels a pixel, is on the sheet."""
    tile = image.repeat(6, 0).repeat(6, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], tile.shape)[:, :, ::7, ::7]
    return list(zip(*np.nonzero((windows == tile[::7, ::7]).all(axis=(2, 3))), strict=True))
