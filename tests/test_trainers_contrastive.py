"""The extractor of datasets without labels: its loss, its bytes, and what it sees."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.metrics import contrastive
from scrimp_trainers.metrics.features import open_extractor
from scrimp_trainers.recipe.scoring import Scoring


def digits(count: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:count] * 255 / 16).round().astype(np.uint8)[:, None]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "unlabelled"
    prepare("digits", out, Options(labels="none", limit=700))
    return out


def test_the_loss_is_simclrs():
    projected = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for i in range(6):
        similar = [
            math.exp(torch.cosine_similarity(projected[i], projected[k], dim=0).item() / contrastive.TEMPERATURE)
            for k in range(6)
        ]
        total -= math.log(similar[(i + 3) % 6] / (sum(similar) - similar[i]))
    assert contrastive.contrastive_loss(projected).item() == pytest.approx(total / 6, rel=1e-6)


def test_same_images_and_seed_give_the_same_bytes_whatever_the_threads():
    images, threads, made = digits(30), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            state, _ = contrastive.train_encoder(images, images[:0], seed=5)
            made.append(safetensors.torch.save(state))
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1]


def test_a_dataset_without_labels_gets_one_that_sees_what_is_wrong_with_images(unlabelled):
    manifest = open_dataset(unlabelled).manifest
    assert manifest.classes is None
    assert manifest.encoder is not None
    assert set(manifest.encoder.degradations) == set(contrastive.DEGRADATIONS)
    assert min(manifest.encoder.degradations.values()) > 1.5
    assert manifest.encoder.unseen == []


def test_its_features_are_those_of_the_classifiers_width(unlabelled):
    dataset = open_dataset(unlabelled)
    scoring = Scoring(extractor="contrastive")
    extractor = open_extractor(scoring, unlabelled, dataset.manifest, torch.device("cpu"))
    features, logits = extractor.features(torch.from_numpy(dataset.images("holdout")[0][:5]))
    assert features.shape == (5, 64)
    assert logits is None


def test_another_file_than_the_manifests_is_refused(unlabelled, tmp_path):
    manifest: Manifest = open_dataset(unlabelled).manifest
    (tmp_path / "encoder.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"encoder\.safetensors: is missing or not the file that the manifest names"):
        contrastive.load_encoder(tmp_path, manifest)


@pytest.mark.parametrize("options", [Options(labels="none", limit=100), Options(labels="none", classifier=False)])
def test_few_images_or_the_option_leave_it_out(options, tmp_path):
    assert prepare("digits", tmp_path / "out", options).encoder is None
