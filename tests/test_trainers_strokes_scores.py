"""Pen drawings are scored by their pictures and by what they are, exported, and read without Scrimp."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawings_small import recipe_of, small_drawings
from scipy.stats import wasserstein_distance
from without_scrimp import run_card

import scrimp
from scrimp_platform.cli import main
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.manifest import load_manifest
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.data.modalities.strokes import RENDERER
from scrimp_trainers.export import load_model
from scrimp_trainers.metrics import names
from scrimp_trainers.metrics.score import Scorer
from scrimp_trainers.recipe.scoring import Scoring

NAMES = ["wasserstein_points", "wasserstein_strokes", "wasserstein_curvature"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("labelled")
    small_drawings(folder, count=200, holdout=40, classifier=True)
    return open_dataset(folder / "data")


def scoring(**values: Any) -> Scoring:
    return Scoring(extractor="classifier", also=("strokes",), samples=40, **values)


def scores_of(dataset: Dataset, items: Items) -> dict[str, Any]:
    measured = dataset.modality.statistics(items)  # type: ignore[attr-defined]
    return Scorer(dataset, scoring(), "cpu").score([dataset.modality.render(items)], 0, [measured]).values


def test_the_training_drawings_themselves_have_a_distance_of_zero(dataset):
    items, _, _ = dataset.items("train")
    scores = scores_of(dataset, items)
    assert [scores[name] for name in NAMES] == [0, 0, 0]
    assert scores["fd_classifier"] == pytest.approx(0, abs=1e-3)
    assert scores["pixel_copied_fraction"] == 1
    assert scores["renderer"] == RENDERER == "64px-line2-margin4-antialiased"


def test_the_distances_are_scipys(dataset):
    items, _, _ = dataset.items("train")
    measured = dataset.modality.statistics(items).double().numpy()
    scores = scores_of(dataset, items[:50])
    for column, name in enumerate(NAMES):
        expected = wasserstein_distance(measured[:50, column], measured[:, column])
        assert scores[name] == pytest.approx(expected)


def test_such_scores_are_known_by_name_and_not_for_images(dataset, digits_dataset):
    assert set(NAMES) <= set(names.score_names(scoring()))
    names.require_objectives(["wasserstein_points", "fd_classifier"], scoring())
    names.check_scoring(scoring(), dataset.manifest)
    others = Scoring(extractor="inception", also=("strokes",))
    with pytest.raises(UserError, match=r"scoring.also strokes: is not for images as in dataset digits"):
        names.check_scoring(others, load_manifest(digits_dataset.folder))


def test_a_pictures_classifier_knows_the_drawings(dataset):
    assert dataset.manifest.classifier is not None
    assert dataset.manifest.classifier.accuracy > 0.8


# --- models


@pytest.fixture(scope="module", params=[("delta", False), ("absolute", True)], ids=["delta", "absolute-classes"])
def trained(request, dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "out"
    form, classes = request.param
    recipe = recipe_of(codec__form=form, conditioning__classes=classes, sampler__kind="ddim", sampler__steps=5)
    *_, last = scrimp.train(recipe, dataset.folder, folder, seed=1, extractor="classifier", samples=40)
    assert np.isfinite(last.value("fd_classifier"))
    return folder


def test_a_model_is_scored_and_sampled_like_one_of_images(trained, dataset):
    assert (trained / "samples.png").exists()
    assert (trained / "neighbours.png").exists()
    model = scrimp.load_model(trained / "model")
    pictures = model.sample(5, seed=2)
    assert pictures.shape == (5, 1, 64, 64)
    assert np.array_equal(pictures[:2], model.sample(2, seed=2))
    items = next(model.items(5, seed=2))
    assert items.mask is not None
    assert np.array_equal(model.modality.render(items).numpy(), pictures)
    scores = scrimp.evaluate(model, dataset, extractor="classifier", samples=40)
    assert scores["renderer"] == RENDERER


def test_samples_are_written_as_pictures_and_as_svg(trained, tmp_path):
    main.main(["sample", str(trained / "model"), str(tmp_path / "samples"), "-n", "3", "--steps", "2"])
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    drawn = sorted((tmp_path / "samples" / "svg").iterdir())
    assert [file.name for file in drawn] == ["000000.svg", "000001.svg", "000002.svg"]
    assert drawn[0].read_text().startswith("<svg ")


def test_the_code_on_the_card_draws_without_scrimp_what_the_network_draws(trained):
    model = trained / "model"
    network, recipe = load_model(model, "cpu")
    labels = ", labels" if recipe.conditioning.classes else ""
    x = torch.randn(16, *network.shape)
    torch.save(x, model / "x.pt")
    then = f"x = torch.load('x.pt')\nestimate = network(x, torch.tensor(17), lengths{labels})\n"
    then += "torch.save([drawings, lengths, estimate.detach()], 'drawn.pt')\n"
    run_card(model, then)

    drawings, lengths, theirs = torch.load(model / "drawn.pt")
    assert len(drawings) == 16
    for drawing, length in zip(drawings, lengths, strict=True):
        assert drawing.shape == (length, 3)
        assert set(drawing[:, 2].unique().tolist()) <= {0, 1}

    mask = torch.arange(network.shape[-1]) < lengths[:, None, None]
    told = torch.arange(16) % 2 if labels else None
    with torch.no_grad():
        ours = network(x, torch.full((16,), 17), Conditions(told, mask=mask, lengths=lengths.numpy()))
    torch.testing.assert_close(theirs * mask, ours * mask)


def test_a_model_of_drawings_is_not_evaluated_on_images(trained, digits_dataset):
    with pytest.raises(UserError, match="draws strokes, but dataset digits is of images"):
        scrimp.evaluate(scrimp.load_model(trained / "model"), digits_dataset.folder, samples=40)
