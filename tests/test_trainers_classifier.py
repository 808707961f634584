import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import ClassifierRecord, Manifest
from scrimp_trainers.metrics.classifier import load_classifier, train_classifier

Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Arrays:
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images * 255 / 16).round().astype(np.uint8)[:, None]  # type: ignore[union-attr]
    return images, source.target.astype(np.int64)  # type: ignore[union-attr]


def bars(count: int, size: int = 8, seed: int = 0) -> Arrays:
    """Noise with one bright row (class 0) or one bright column (class 1)."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 100, (count, 1, size, size), dtype=np.uint8)
    labels = random.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        line = image[0] if label == 0 else image[0].T
        line[random.integers(size)] = 255
    return images, labels


def nothing(images: np.ndarray) -> Arrays:
    return images[:0], np.zeros(0, dtype=np.int64)


def saved(folder: Path, state: dict[str, torch.Tensor], classes: int) -> Manifest:
    data = safetensors.torch.save(state)
    (folder / "classifier.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Manifest(
        name="bars",
        content_hash="0" * 64,
        size=8,
        channels=1,
        classes=[str(label) for label in range(classes)],
        splits={},
        reference="train",
        classifier=ClassifierRecord(file="classifier.safetensors", sha256=digest, accuracy=1.0, seed=0),
        provenance={},
    )


def test_it_learns_real_handwritten_digits(digits: Arrays):
    images, labels = digits
    _, accuracy = train_classifier(images[:600], labels[:600], images[1400:], labels[1400:], classes=10, seed=0)
    assert accuracy > 0.9


def test_same_data_and_seed_give_the_same_bytes_whatever_the_threads_and_generators():
    images, labels = bars(50)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            state, _ = train_classifier(images, labels, *nothing(images), classes=2, seed=5)
            made.append(safetensors.torch.save(state))
            assert torch.get_num_threads() == count
            assert torch.initial_seed() == count
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1]
    state, _ = train_classifier(images, labels, *nothing(images), classes=2, seed=6)
    assert safetensors.torch.save(state) != made[0]


def test_accuracy_is_of_images_that_it_was_not_trained_on():
    images, _ = bars(90)
    labels = np.random.default_rng(1).integers(0, 2, 90)
    _, accuracy = train_classifier(images[:60], labels[:60], images[60:], labels[60:], classes=2, seed=0)
    assert accuracy < 0.9  # labels are noise: only images it has learned by heart could be told right


@pytest.mark.parametrize("size", [5, 28, 100])
def test_it_takes_images_of_any_size(size: int):
    images, labels = bars(12, size=size)
    state, _ = train_classifier(images[:8], labels[:8], images[8:], labels[8:], classes=2, seed=0)
    assert all(value.isfinite().all() for value in state.values())


def test_loaded_from_the_dataset_it_classifies_and_gives_narrow_features(tmp_path: Path):
    images, labels = bars(200)
    state, accuracy = train_classifier(images[:100], labels[:100], images[100:], labels[100:], classes=2, seed=0)
    network = load_classifier(tmp_path, saved(tmp_path, state, classes=2))
    features, logits = network(torch.from_numpy(images[100:]))
    assert features.shape == (100, 64)
    assert (logits.argmax(dim=1).numpy() == labels[100:]).mean() == pytest.approx(accuracy)


def test_another_file_than_the_manifests_is_refused(tmp_path: Path):
    images, labels = bars(40)
    state, _ = train_classifier(images, labels, *nothing(images), classes=2, seed=0)
    manifest = saved(tmp_path, state, classes=2)
    with (tmp_path / "classifier.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(UserError, match=r"classifier\.safetensors.*prepare the dataset again"):
        load_classifier(tmp_path, manifest)


def test_one_class_cannot_be_learned():
    images, labels = bars(40)
    with pytest.raises(UserError, match="two classes"):
        train_classifier(images, labels * 0, *nothing(images), classes=1, seed=0)
