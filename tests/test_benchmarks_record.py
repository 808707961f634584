"""The recorded curves: recipes that are drawn anew alike, images that are drawn as stated, records that say it all."""

import gzip
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from benchmarks.search import datasets, record
from benchmarks.search.record import Repeat
from scrimp_spaces.space import Space, load_space
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.data.options import Options
from scrimp_trainers.fit import check_fit
from scrimp_trainers.ingest import prepare

SPACE = load_space(record.SPACE)
RECIPES = record.read_recipes()
KEYS = {"dataset", "recipe", "seed", "values", "ending", "rungs"}
ORIGIN = {"dataset_hash", "classifier", "code", "versions", "machine", "date"}


@pytest.fixture(scope="module")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Light squares on the left or on the right, with a classifier that tells them apart."""
    folder = tmp_path_factory.mktemp("toy")
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = random.integers(0, 60, (80, 8, 8), dtype=np.uint8)
    images[labels == 1, 2:6, 4:] += 150
    images[labels == 0, 2:6, :4] += 150
    np.savez(folder / "toy.npz", images=images, labels=labels)
    prepare(str(folder / "toy.npz"), folder / "toy", Options(near=0))
    return open_dataset(folder / "toy")


def toy_space(**override: object) -> Space:
    return Space.of(
        recipe="tiny-edm",
        override={"network.channels": 8, "sampler.steps": 2, "optimizer.warmup_kimg": 0} | override,
        search={"training.batch_size": {"choice": [8, 16]}},
        objectives={"fd_classifier": "minimize"},
        scoring={"extractor": "classifier", "samples": 20},
        budget={"trials": 2, "rungs_kimg": [0.04, 0.08]},
    )


def manifest(size: int, channels: Literal[1, 3]) -> Manifest:
    split = Split(count=1000, per_class=None, shards=[])
    return Manifest(
        name="any",
        content_hash="0" * 64,
        size=size,
        channels=channels,
        classes=["a", "b"],
        splits={"train": split},
        reference="train",
        provenance={},
    )


def test_the_recipes_are_drawn_anew_bit_for_bit():
    assert record.recipes_text(record.draw_recipes(SPACE)) == record.RECIPES.read_text()


def test_there_are_48_different_recipes_and_each_can_be_trained_on_every_dataset():
    assert len({json.dumps(values) for values in RECIPES}) == 48
    for values in RECIPES:
        assert list(values) == SPACE.active(values)
        recipe = SPACE.base().replace(values)
        for facts in (manifest(8, 1), manifest(16, 1), manifest(16, 3)):
            check_fit(recipe, facts)


def test_all_datasets_advance_together_and_early_repeats_have_second_seeds():
    every = record.repeats()
    assert len(every) == len(set(every)) == 6 * 64
    for name in datasets.ORIGINALS:
        own = [repeat for repeat in every if repeat.dataset == name]
        assert [repeat.recipe for repeat in own if repeat.seed == 1] == list(range(48))
        assert [repeat.recipe for repeat in own if repeat.seed == 2] == list(range(16))
    early = every[:66]
    assert {repeat.recipe for repeat in early if repeat.seed == 1} >= set(range(8))
    assert any(repeat.seed == 2 for repeat in early)
    assert {(repeat.recipe, repeat.seed) for repeat in early} == {
        (repeat.recipe, repeat.seed) for repeat in early if repeat.dataset == "quickdraw"
    }


def test_every_committed_record_is_of_these_recipes():
    rows = record.read_curves()
    assert len(rows) == len(list(record.CURVES.rglob("*.json")))
    for row in rows:
        check_record(row, SPACE)
        assert row["values"] == RECIPES[row["recipe"]]


def test_all_records_of_a_dataset_are_of_the_same_images():
    rows = record.read_curves()
    pairs = {(row["dataset"], row["dataset_hash"]) for row in rows}
    assert len(pairs) == len({row["dataset"] for row in rows})


def check_record(row: dict, space: Space) -> None:
    costs = set(record.COST) if row["rungs"] else set()
    assert set(row) == KEYS | ORIGIN | costs
    marks = [rung["rung"] for rung in row["rungs"]]
    expected = list(space.budget.rungs_kimg)
    assert marks == expected if row["ending"] == "finished" else marks == expected[: len(marks)]
    for rung in row["rungs"]:
        assert set(rung) == set(record.RUNG)
        assert rung["kimg"] == pytest.approx(rung["rung"], abs=space.base().training.batch_size / 1000)
    seconds = [rung["cpu_seconds"] for rung in row["rungs"]]
    assert seconds == sorted(seconds)


def test_a_repeat_is_recorded_with_every_rung_and_its_origin(toy_dataset: Dataset, tmp_path: Path):
    repeat = Repeat("toy", 1, 3)
    row = record.train(repeat, {"training.batch_size": 16}, toy_space(), toy_dataset, tmp_path)
    assert json.loads(record.record_text(row)) == row
    check_record(row, toy_space())
    assert (row["dataset"], row["recipe"], row["seed"], row["ending"]) == ("toy", 1, 3, "finished")
    assert row["values"] == {"training.batch_size": 16}
    assert row["dataset_hash"] == toy_dataset.manifest.content_hash
    assert row["nonzero_parameters"] == row["parameters"] > 1000
    assert all(rung["fd_classifier"] > 0 for rung in row["rungs"])
    assert not any(tmp_path.rglob("*.safetensors"))


def test_a_repeat_that_diverges_is_recorded_as_such(toy_dataset: Dataset, tmp_path: Path):
    space = toy_space(**{"optimizer.lr": 1e6})
    row = record.train(Repeat("toy", 0, 1), {"training.batch_size": 8}, space, toy_dataset, tmp_path)
    check_record(row, space)
    assert row["ending"].startswith("diverged: ")


def test_scores_that_are_not_finite_are_none():
    assert record._short(math.nan) is None
    assert record._short(123456.789) == 123457


def test_status_and_table_say_what_is_recorded(tmp_path: Path):
    def write(recipe: int, seed: int, ending: str, score: float | None) -> None:
        row = {"dataset": "kanji", "recipe": recipe, "seed": seed, "ending": ending}
        rungs = [{"rung": 8.0, "cpu_seconds": 36.0, "fd_classifier": score}]
        record.write_atomic(Repeat("kanji", recipe, seed).file(tmp_path), record.record_text(row | {"rungs": rungs}))

    assert not any("hours" in line for line in record.status_lines(tmp_path))
    write(0, 1, "finished", 10.0)
    write(0, 2, "finished", 30.0)
    write(1, 1, "diverged: at once", None)

    status = list(record.status_lines(tmp_path))
    assert "kanji: 3 of 64 recorded, 1 diverged, 36 s of one core a repeat" in status
    assert status[-1] == "left: 381 repeats, about 3.8 hours of one core"
    table = [line.split() for line in record.table_lines(tmp_path)]
    assert table[0] == ["recipe", *datasets.ORIGINALS]
    assert table[1][:2] == ["0", "20"]
    assert table[2][:2] == ["1", "inf"]
    assert table[3][1].startswith("network.kind=")


def test_a_dataset_without_its_original_is_skipped_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(record, "ORIGINALS", {"kanji": datasets.ORIGINALS["kanji"]})
    record.record_missing(tmp_path, tmp_path / "curves", tmp_path / "storage")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / datasets.ORIGINALS["kanji"][0]) in said
    assert not (tmp_path / "curves").exists()


def test_a_drawing_is_fitted_into_the_image_whatever_its_place_and_scale():
    strokes = [np.array([[0.0, 0.0], [8.0, 4.0], [2.0, 8.0]]), np.array([[4.0, 4.0]])]
    drawn = datasets.render(strokes)
    assert drawn.shape == (16, 16)
    assert np.array_equal(drawn, datasets.render([stroke * 32 - 100 for stroke in strokes]))


def test_a_line_is_one_pixel_wide_and_leaves_the_margin():
    """A level line of 112 by 8 pixels of the fine canvas, and half a disk at each end, is the ink of so many pixels."""
    level = datasets.render([np.array([[0, 0], [10, 0]])]) / 255
    length = 16 * datasets.FINER - 2 * datasets.MARGIN
    ink = length * datasets.WIDTH + math.pi * (datasets.WIDTH / 2) ** 2
    assert level.sum() == pytest.approx(ink / datasets.FINER**2, rel=0.1)
    assert set(np.flatnonzero(level.sum(axis=1))) <= {7, 8}
    assert np.allclose(level.sum(axis=1).sum(), datasets.render([np.array([[0, 0], [0, 10]])]).sum() / 255, rtol=0.02)


def test_blocks_are_averaged_as_pillow_does():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).reduce(2))
    assert np.array_equal(datasets.block_means(pixels, 2), expected)


def test_kanji_are_labelled_by_their_strokes(tmp_path: Path):
    steps = np.array([[0, 0, 0], [5, 0, 1], [-5, 5, 0], [5, 0, 1], [1, 1, 0], [3, 3, 1]], dtype=np.float32)
    save(tmp_path, "kanji", train=steps, train_offsets=np.array([0, 4, 6]))
    images, labels = datasets.read_images("kanji", tmp_path)
    assert labels.tolist() == [2, 1]
    assert images[0].any(axis=1).sum() >= 2  # two level strokes, one below the other
    assert np.array_equal(images[0], datasets.render([np.array([[0, 0], [5, 0]]), np.array([[0, 5], [5, 5]])]))


def test_digits_of_pen_strokes_keep_their_labels(tmp_path: Path):
    steps = np.array([[9, 9, 0, 0], [0, 9, 1, 1], [3, 3, 0, 0], [9, 0, 1, 1]], dtype=np.int8)
    save(tmp_path, "vmnist", train=steps, train_offsets=np.array([0, 2, 4]), train_labels=np.array([1, 7]))
    images, labels = datasets.read_images("vmnist", tmp_path)
    assert labels.tolist() == [1, 7]
    assert images[0].any(axis=0).sum() <= 2 < images[0].any(axis=1).sum()  # upright


def test_drawings_are_labelled_by_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "WORDS", 2)
    drawing = [[[0, 10], [0, 10]], [[0, 10], [10, 0]]]
    lines = [json.dumps({"word": word, "drawing": drawing}) for word in ("ant", "ant", "bee", "cow")]
    file = tmp_path / datasets.ORIGINALS["quickdraw"][0]
    file.parent.mkdir()
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    images, labels = datasets.read_images("quickdraw", tmp_path)
    assert labels.tolist() == ["ant", "ant", "bee"]
    assert images[0][2, 2] > 0
    assert images[0][2, 13] > 0


def test_omniglot_is_light_on_black(tmp_path: Path):
    page = Image.new("1", (105, 105), 1)
    page.paste(0, (45, 4, 60, 102))
    png = io.BytesIO()
    page.save(png, "PNG")
    file = tmp_path / datasets.ORIGINALS["omniglot"][0]
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("set/Greek/character01/0001_01.png", png.getvalue())
    images, labels = datasets.read_images("omniglot", tmp_path)
    assert labels.tolist() == ["Greek character01"]
    assert images[0][8, 7] == 255
    assert images[0][:, 0].max() == 0


def save(folder: Path, name: str, **arrays: np.ndarray) -> None:
    file = folder / datasets.ORIGINALS[name][0]
    file.parent.mkdir()
    np.savez(file, **arrays)  # type: ignore[arg-type]
