"""A second modality with its codec, network and extractor, all of them a user's own: nothing in Scrimp knows them.

Items are pen strokes, up to 16 points with two coordinates each, padded. They are written to shards, trained on,
resumed bit for bit, sampled, drawn as pictures, scored and exported like images.
"""

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainers_small import CPU, small

import scrimp
from scrimp_trainers import fit
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import shards
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.data.manifest import MANIFEST_FILE, RESIDENT, Manifest, Split, load_manifest
from scrimp_trainers.data.modalities.images import ImageModality
from scrimp_trainers.data.modalities.modality import Items, open_modality
from scrimp_trainers.data.shards import Sample, write_shards
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.training.inputs import Prepared
from scrimp_trainers.training.loop import read_losses, train
from scrimp_trainers.training.session import Session
from scrimp_trainers.training.state import initial_state

COUNT = 60
LENGTH = 16

PARTS = '''
"""Pen strokes: a modality, and the codec, network and extractor that go with it."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.networks import Network
from scrimp_trainers.recipe.techniques import CodecSection

SIDE = 12


class Strokes:
    """Points [n, 2] in the unit square; together [B, 2, size], with a mask [B, 1, size]."""

    suffix = "points"

    def __init__(self, size, channels):
        self.shape = (channels, size)
        self.item_bytes = 4 * channels * size

    @staticmethod
    def build(*, size, channels):
        return Strokes(size, channels)

    def decode(self, data, where):
        return np.frombuffer(data, "<f4").reshape(-1, self.shape[0])

    def encode(self, item):
        return item.astype("<f4").tobytes()

    def collate(self, items):
        values = torch.zeros(len(items), *self.shape)
        mask = torch.zeros(len(items), 1, self.shape[1], dtype=torch.bool)
        for row, item in enumerate(items):
            values[row, :, : len(item)] = torch.from_numpy(item.T.copy())
            mask[row, :, : len(item)] = True
        return Items(values, mask)

    def render(self, items):
        """A white pixel at each point."""
        x, y = (items.values * (SIDE - 1)).round().long().clamp(0, SIDE - 1).unbind(1)
        pictures = torch.zeros(len(items), SIDE * SIDE, dtype=torch.uint8, device=x.device)
        white = torch.full_like(pictures[:, : x.shape[1]], 255)
        if items.mask is not None:
            white = white * items.mask[:, 0]
        return pictures.scatter_reduce(1, y * SIDE + x, white, "amax").view(-1, 1, SIDE, SIDE)


class Centred(CodecSection):
    """Coordinates from -1 to 1, times a factor."""

    modality: ClassVar[str] = "strokes:Strokes"

    factor: float = 1.0

    def shape(self, items):
        return items

    def item_shape(self, x):
        return x

    def encode(self, values, draw):
        return (values * 2 - 1) * self.factor

    def decode(self, x):
        return Items((x / self.factor + 1) / 2)


class Line(Network):
    """Convolutions along the points."""

    width: int = 8
    reach: int = 3

    def build(self, *, image_size, channels, classes, augment_labels, coordinates):
        return Points(self.width, self.reach, image_size, channels, classes)

    @staticmethod
    def load(folder):
        return Points.from_folder(folder)


class Points(Denoiser):
    def __init__(self, width, reach, size, channels, classes):
        super().__init__()
        self.config = {"width": width, "reach": reach, "size": size, "channels": channels, "classes": classes}
        self.shape = torch.Size((channels, size))
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width)
        self.level = nn.Linear(1, width)
        self.first = nn.Conv1d(channels + 1, width, reach, padding="same")
        self.last = nn.Conv1d(width, channels, reach, padding="same")

    def forward(self, x, levels, conditions=None):
        shown = torch.ones_like(x[:, :1])
        labels = torch.full((len(x),), self.classes, device=x.device)
        if conditions is not None and conditions.mask is not None:
            shown = shown * conditions.mask
        if conditions is not None and conditions.labels is not None:
            labels = conditions.labels
        told = self.label(labels) + self.level(levels.float()[:, None])
        hidden = torch.relu(self.first(torch.cat([x * shown, shown], 1)) + told[:, :, None])
        return self.last(hidden)


class Blocks(nn.Module):
    """Means over a grid of a picture."""

    def __init__(self, weights):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(3)

    def forward(self, images):
        return (self.pool(images.float() / 255).flatten(1),)
'''

RECIPE = """
parts: [strokes.py]
network: {kind: "strokes:Line", width: 8}
codec: {kind: "strokes:Centred", factor: 0.8}
conditioning: {classes: true, label_drop: 0.2}
optimizer: {lr: 2.0e-3, warmup_kimg: 0}
training: {kimg: 0.04, batch_size: 20}
sampler: {steps: 3, guidance: 1.5}
"""


def strokes() -> list[np.ndarray]:
    """Return straight lines of 4 to 16 points, some rising and some falling."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        start, end = random.uniform(0, 1, 2)
        x = np.linspace(start, end, int(random.integers(4, LENGTH + 1)))
        lines.append(np.stack([x, x if number % 2 else 1 - x], 1).astype(np.float32))
    return lines


def write_dataset(folder: Path) -> None:
    """Write the strokes as a dataset, in shards of 25."""
    modality = open_modality("strokes:Strokes", size=LENGTH, channels=2)
    items = strokes()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MOST_IMAGES", 25)
        samples = [Sample(f"{i:04d}", modality.encode(item), i % 2) for i, item in enumerate(items)]
        written = write_shards(samples, folder, "train", modality)
    manifest = Manifest(
        name="strokes",
        modality="strokes:Strokes",
        content_hash=hashlib.sha256(b"".join(item.tobytes() for item in items)).hexdigest(),
        size=LENGTH,
        channels=2,
        classes=["falling", "rising"],
        splits={"train": Split(count=COUNT, per_class=[COUNT // 2] * 2, shards=written)},
        reference="train",
        provenance={},
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json())


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "strokes.py").write_text(PARTS)
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_own_files", {})
        parts.load_files([folder / "strokes.py"])
        write_dataset(folder / "data")
    return folder


@pytest.fixture
def recipe(lab, monkeypatch) -> Recipe:
    monkeypatch.setattr(parts, "_own_files", {})
    return recipes.load(lab / "recipe.yaml")


@pytest.fixture
def dataset(lab, recipe) -> Dataset:
    return open_dataset(lab / "data")


def session(recipe: Recipe, dataset: Dataset, folder: Path) -> Session:
    return Session(recipe, dataset, folder, 3, prepare_techniques(recipe, dataset, 3, CPU), device=CPU)


# --- shards, batches


def test_shards_hold_the_items_and_give_them_back(dataset):
    assert [shard.count for shard in dataset.manifest.splits["train"].shards] == [25, 25, 10]
    items, labels, keys = dataset.items("train")
    assert keys[-1] == "0059"
    assert labels is not None
    assert items.mask is not None
    for number, line in enumerate(strokes()):
        mask = items.mask[number, 0]
        assert mask.tolist() == [place < len(line) for place in range(LENGTH)]
        assert np.array_equal(items.values[number][:, mask].numpy().T, line)
        assert labels[number] == number % 2


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0], ids=["resident", "streamed"])
def test_batches_hold_the_items_they_say(dataset, resident_bytes):
    items, _, _ = dataset.items("train")
    drawn = batches(dataset, batch_size=8, seed=0, device=CPU, workers=0, resident_bytes=resident_bytes)
    for batch in itertools.islice(drawn, 9):
        assert batch.mask is not None
        assert items.mask is not None
        assert torch.equal(batch.values, items.values[batch.index])
        assert torch.equal(batch.mask, items.mask[batch.index])
        assert torch.equal(batch.labels, batch.index % 2)  # type: ignore[arg-type]


def test_pictures_of_a_split_are_what_the_modality_draws(dataset):
    pictures, _, _ = dataset.images("train")
    assert pictures.shape == (COUNT, 1, 12, 12)
    for picture, line in zip(pictures, strokes(), strict=True):
        x, y = np.rint(line * 11).astype(int).T
        expected = np.zeros((12, 12), np.uint8)
        expected[y, x] = 255
        assert np.array_equal(picture[0], expected)


# --- training


def test_two_steps_train_and_an_interrupted_run_ends_with_the_same_weights(recipe, dataset, tmp_path):
    fit.check_fit(recipe, dataset.manifest)
    whole, rest = (session(recipe, dataset, tmp_path / "run") for _ in range(2))
    before = {name: tensor.clone() for name, tensor in whole.state.network.state_dict().items()}
    steps = whole.steps()
    whole.train_to(20, steps, 1e9)
    whole.save("last")
    whole.train_to(40, steps, 1e9)

    rest.resume()
    assert rest.state.step == 1
    rest.train_to(40, rest.steps(), 1e9)
    expected, resumed = whole.state.network.state_dict(), rest.state.network.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    assert all(not torch.equal(tensor, before[name]) for name, tensor in expected.items())


def trained_on(recipe: Recipe, values: torch.Tensor, mask: torch.Tensor | None) -> tuple[list[float], torch.Tensor]:
    """Take two steps on one batch; return the losses and all weights."""
    state = initial_state(recipe, image_size=values.shape[-1], channels=2, classes=2, seed=0, device=CPU)
    index = torch.arange(len(values))
    batch = Batch(values, index % 2, index, torch.zeros(len(values), dtype=torch.bool), mask)
    codec: Any = recipe.codec  # its own section is the codec
    steps = list(train(recipe, state, itertools.repeat(batch), Prepared(codec=codec), device=CPU))
    return read_losses(steps), torch.cat([weight.flatten() for weight in state.network.parameters()])


def test_what_stands_at_padding_does_not_matter(recipe):
    values = torch.rand(20, 2, LENGTH, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(LENGTH).expand(20, 1, LENGTH) < 5
    losses, weights = trained_on(recipe, values, mask)
    same_losses, same_weights = trained_on(recipe, torch.where(mask, values, 7.0), mask)
    assert losses == same_losses
    assert torch.equal(weights, same_weights)


def test_a_mask_that_leaves_nothing_out_changes_nothing(recipe):
    values = torch.rand(20, 2, LENGTH, generator=torch.Generator().manual_seed(0))
    losses, weights = trained_on(recipe, values, torch.ones(20, 1, LENGTH, dtype=torch.bool))
    plain_losses, plain_weights = trained_on(recipe, values, None)
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    torch.testing.assert_close(weights, plain_weights)


@pytest.mark.parametrize("kind", ["edm", "epsilon", "v", "ambient"])
def test_the_loss_is_the_mean_over_what_is_not_padding(recipe, kind, monkeypatch):
    """Items of 5 points padded to 16, against the same 5 points alone: same noise, and a network without reach."""
    values = {
        "edm": {},
        "epsilon": {"diffusion.kind": "ddpm", "sampler.kind": "ddim"},
        "v": {"diffusion.kind": "ddpm", "diffusion.prediction": "v", "sampler.kind": "ddim"},
        "ambient": {"ambient.sigma_n": 0.5, "ambient.noise": "fresh"},
    }[kind]
    recipe = recipe.replace(values).replace({"network.reach": 1, "training.kimg": 0.02})
    noise = torch.randn(20, 2, LENGTH, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("scrimp_trainers.training.loop._draw_normal", lambda *args: noise[..., : args[-1][-1]])
    points = torch.rand(20, 2, 5, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(points, (0, LENGTH - 5), value=9.0)
    mask = torch.arange(LENGTH).expand(20, 1, LENGTH) < 5
    losses, _ = trained_on(recipe, padded, mask)
    alone, _ = trained_on(recipe, points, None)
    assert losses == pytest.approx(alone, rel=1e-5)


# --- samples, scores, models


def test_it_is_sampled_drawn_scored_and_exported_like_images(recipe, dataset, tmp_path):
    options = {"extractor": "strokes:Blocks", "samples": 40}
    *_, last = scrimp.train(recipe, dataset, tmp_path / "out", seed=1, **options)
    assert np.isfinite(last.value("fd_strokes_Blocks"))
    assert 0 <= last.value("pixel_copied_fraction") <= 1
    assert (tmp_path / "out" / "samples.png").exists()
    assert (tmp_path / "out" / "neighbours.png").exists()

    model = scrimp.load_model(tmp_path / "out" / "model")
    assert model.recipe == recipe
    pictures = model.sample(5, seed=2)
    assert pictures.shape == (5, 1, 12, 12)
    assert pictures.dtype == np.uint8
    assert set(np.unique(pictures)) == {0, 255}
    assert np.array_equal(pictures[:2], model.sample(2, seed=2))
    scores = scrimp.evaluate(model, dataset, **options)
    assert np.isfinite(scores["fd_strokes_Blocks"])
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "60 strokes:Strokes of 2 x 16" in card
    assert 'scrimp.load_parts("strokes.py")' in card


# --- what does not go together


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"network.kind": "unet"}, r"network.kind: 'unet' needs a grid; use codec.kind none"),
        ({"network.kind": "dit"}, r"network.kind: 'dit' needs a grid"),
        ({"network.kind": "mdt"}, r"network.kind: 'mdt' needs a grid"),
        ({"mafp.p2": 0.1}, r"mafp needs a grid; use codec.kind none, or turn mafp off"),
        ({"ood.weight": 1.0}, r"ood needs a grid"),
        ({"patches.real_p": 0.5}, r"patches needs a grid"),
    ],
)
def test_what_needs_a_grid_is_refused(recipe, values, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe.replace(values)


def test_items_of_another_modality_or_without_mirror_images_are_refused(recipe, dataset):
    with pytest.raises(UserError, match=r"codec.kind: 'none' is for images, but dataset strokes is of strokes:Strokes"):
        fit.check_fit(small(), dataset.manifest)
    with pytest.raises(UserError, match=r"training.flip: strokes:Strokes of dataset strokes have no mirror images"):
        fit.check_fit(recipe.replace({"training.flip": True}), dataset.manifest)


def test_a_dataset_does_not_load_the_file_of_its_modality(lab, monkeypatch):
    monkeypatch.setattr(parts, "_own_files", {})
    dataset = open_dataset(lab / "data")
    with pytest.raises(UserError, match=r"strokes:Strokes: the file strokes.py has not been loaded"):
        dataset.items("train")


# --- images


def test_a_dataset_of_before_is_one_of_images(digits_dataset, tmp_path):
    shutil.copytree(digits_dataset.folder, tmp_path / "digits", ignore=shutil.ignore_patterns("cache"))
    file = tmp_path / "digits" / MANIFEST_FILE
    content = json.loads(file.read_text())
    assert content.pop("modality") == "images"
    file.write_text(json.dumps(content))
    assert load_manifest(tmp_path / "digits") == digits_dataset.manifest
    old = open_dataset(tmp_path / "digits")
    assert old.modality == ImageModality(8, 1)
    assert np.array_equal(old.images("train")[0], digits_dataset.images("train")[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_comes_back_from_its_file(channels):
    images = open_modality("images", size=6, channels=channels)
    item = np.random.default_rng(0).integers(0, 256, (channels, 6, 6), dtype=np.uint8)
    assert np.array_equal(images.decode(images.encode(item), "here"), item)
    assert item.nbytes == images.item_bytes
    assert item.shape == images.shape
    together = images.collate([item, item])
    assert together.mask is None
    assert torch.equal(images.render(together), torch.from_numpy(np.stack([item, item])))


def test_images_are_grey_or_rgb():
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        open_modality("images", size=8, channels=2)


def test_some_items_keep_their_masks():
    items = Items(torch.arange(6.0).view(3, 2), torch.tensor([[True, False], [True, True], [False, False]]))
    chosen = items[torch.tensor([2, 0])]
    assert chosen.values.tolist() == [[4, 5], [0, 1]]
    assert chosen.mask is not None
    assert chosen.mask.tolist() == [[False, False], [True, False]]
    assert len(items[1:]) == 2
