import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data import shards
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.subsets import choose_subsets
from scrimp_trainers.ingest import CONTACT_SHEET, prepare


def made(out: Path, source: str = "digits", classifier: bool | None = False, **options: Any) -> Manifest:
    return prepare(source, out, Options(classifier=classifier, **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- what is written


def test_the_manifest_tells_what_the_shards_hold(digits_dataset: Dataset):
    manifest = digits_dataset.manifest
    assert manifests.load_manifest(digits_dataset.folder) == manifest
    # Other tests may have used the dataset, which fills its cache.
    files = {name for name in contents(digits_dataset.folder) if not name.startswith("cache/")}
    assert files == {manifests.MANIFEST_FILE, CONTACT_SHEET} | {
        shard.file for split in manifest.splits.values() for shard in split.shards
    }
    for split in manifest.splits.values():
        assert split.per_class is not None
        assert split.count == sum(split.per_class) == sum(shard.count for shard in split.shards)
        for shard in split.shards:
            data = (digits_dataset.folder / shard.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert sum(name.endswith(".png") for name in tar.getnames()) == shard.count
    assert sum(split.count for split in manifest.splits.values()) == 1797


def test_plain_webdataset_reads_the_shards(digits_dataset: Dataset):
    from webdataset.compat import WebDataset

    images, labels, keys = digits_dataset.images("holdout")
    assert labels is not None
    file = digits_dataset.folder / digits_dataset.manifest.splits["holdout"].shards[0].file
    read: list[dict[str, Any]] = list(iter(WebDataset(str(file), shardshuffle=False).decode("l8")))  # type: ignore
    assert [sample["__key__"] for sample in read] == keys
    assert [sample["cls"] for sample in read] == labels.tolist()
    np.testing.assert_array_equal(np.stack([sample["png"] for sample in read]), images[:, 0])


def test_same_input_and_options_give_the_same_bytes(tmp_path: Path):
    made(tmp_path / "a", workers=1, classifier=True, limit=100, name="digits")
    time.sleep(1.1)  # a time stamp would show
    made(tmp_path / "elsewhere" / "b", workers=3, classifier=True, limit=100, name="digits")
    assert contents(tmp_path / "a") == contents(tmp_path / "elsewhere" / "b")


def test_what_is_written_names_no_folder_of_this_machine(tmp_path: Path):
    for i in range(3):
        save(tmp_path / "source" / f"{i}.png", noise(8, 8))
    made(tmp_path / "out", str(tmp_path / "source"), reference=str(tmp_path / "source"))
    for data in contents(tmp_path / "out").values():
        assert str(tmp_path).encode() not in data


def test_the_content_hash_is_of_pixels_classes_and_splits_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = made(tmp_path / "a")
    assert made(tmp_path / "b", name="other").content_hash == first.content_hash
    changes: list[dict[str, Any]] = [{"seed": 1}, {"limit": 50}, {"holdout": 0.2}, {"size": 16}]
    for number, change in enumerate(changes):
        assert made(tmp_path / f"c{number}", **change).content_hash != first.content_hash
    monkeypatch.setattr(shards, "MOST_IMAGES", 100)
    assert made(tmp_path / "d").content_hash == first.content_hash
    assert len(open_dataset(tmp_path / "d").manifest.splits["train"].shards) == 17


def test_a_labelled_dataset_gets_a_classifier_that_works(tmp_path: Path):
    manifest = made(tmp_path / "digits", classifier=True)
    assert manifest.classifier is not None
    assert manifest.classifier.accuracy > 0.9
    data = (tmp_path / "digits" / manifest.classifier.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest.classifier.sha256


def test_damaged_shards_are_noticed(tmp_path: Path):
    made(tmp_path / "out", limit=20)
    file = tmp_path / "out" / "train-000000.tar"
    data = bytearray(file.read_bytes())
    data[700] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"train-000000\.tar: is missing or damaged"):
        open_dataset(tmp_path / "out").images("train")
    with pytest.raises(UserError, match="no reference split"):
        open_dataset(tmp_path / "out").images("reference")


# --- pixels


def edm_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """`center_crop` of EDM's dataset_tool.py, as published."""
    crop = np.min(pixels.shape[:2])
    top, bottom = (pixels.shape[0] - crop) // 2, (pixels.shape[0] + crop) // 2
    left, right = (pixels.shape[1] - crop) // 2, (pixels.shape[1] + crop) // 2
    image = Image.fromarray(pixels[top:bottom, left:right])
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("shape", [(40, 40), (41, 32), (33, 64), (17, 100), (10, 9), (24, 24)])
def test_images_are_cropped_and_resized_as_edm_does(shape: tuple[int, int], tmp_path: Path):
    pixels = noise(*shape, 3)
    save(tmp_path / "in" / "1.png", pixels)
    made(tmp_path / "out", str(tmp_path / "in"), size=24)
    images, _, _ = open_dataset(tmp_path / "out").images("train")
    np.testing.assert_array_equal(images[0].transpose(1, 2, 0), edm_crop(pixels, 24))


def test_grey_stays_grey_until_one_image_has_colour(tmp_path: Path):
    for i in range(70):
        save(tmp_path / "in" / f"{i:02d}.png", noise(4, 4, seed=i))
    assert made(tmp_path / "grey", str(tmp_path / "in")).channels == 1
    save(tmp_path / "in" / "70.png", noise(4, 4, 3))
    assert made(tmp_path / "colour", str(tmp_path / "in"), holdout=0).channels == 3
    images, _, keys = open_dataset(tmp_path / "colour").images("train")
    for i in (0, 69):
        grey = np.broadcast_to(noise(4, 4, seed=i), (3, 4, 4))
        np.testing.assert_array_equal(images[keys.index(f"{i:08d}")], grey)
    np.testing.assert_array_equal(images[keys.index("00000070")], noise(4, 4, 3).transpose(2, 0, 1))


def test_other_ways_to_store_colour_become_rgb(tmp_path: Path):
    flat = np.full((8, 8, 3), (200, 30, 90), dtype=np.uint8)
    image = Image.fromarray(flat)
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "0.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "in" / "1.png")
    image.convert("RGBA").save(tmp_path / "in" / "2.png")
    image.convert("CMYK").save(tmp_path / "in" / "3.tiff")
    Image.new("1", (8, 8), 1).save(tmp_path / "in" / "4.png")
    made(tmp_path / "out", str(tmp_path / "in"), holdout=0)
    images, _, keys = open_dataset(tmp_path / "out").images("train")
    for i in range(4):
        np.testing.assert_allclose(images[keys.index(f"{i:08d}")].transpose(1, 2, 0), flat, atol=2)
    assert images[keys.index("00000004")].min() == 255


def test_photographs_are_turned_upright(tmp_path: Path):
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter clockwise
    save(tmp_path / "in" / "1.png", pixels, exif=exif)
    made(tmp_path / "out", str(tmp_path / "in"))
    images, _, _ = open_dataset(tmp_path / "out").images("train")
    np.testing.assert_array_equal(images[0].transpose(1, 2, 0), np.rot90(pixels, -1))


# --- subsets


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=80),
    st.integers(0, 2**31),
    st.integers(1, 80),
    st.integers(0, 40),
)
def test_subsets_are_seeded_nested_and_apart(classes: list[int], seed: int, limit: int, held: int):
    labels = np.array(classes)
    count, held = len(labels), min(held, len(labels) - 1)
    limit = min(limit, count - held)
    everything, out = choose_subsets(count, labels, None, seed=seed, holdout=held)
    train, again = choose_subsets(count, labels, None, seed=seed, holdout=held, limit=limit)
    assert sorted([*everything, *out]) == list(range(count))
    assert len(out) == held
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(train, everything[:limit])
    for label in set(classes):  # stratified: each class gives its share, rounded up or down
        share = held * classes.count(label) / count
        assert int(share) <= (labels[out] == label).sum() <= int(share) + 1


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(0, 99), st.integers(1, 3))
def test_per_class_takes_as_many_of_each(classes: list[int], seed: int, number: int):
    labels = np.array([*range(4), *range(4), *range(4), *classes])
    train, _ = choose_subsets(len(labels), labels, None, seed=seed, holdout=0, per_class=number)
    assert np.bincount(labels[train]).tolist() == [number] * 4
    more, _ = choose_subsets(len(labels), labels, None, seed=seed, holdout=0, per_class=3)
    assert set(train) <= set(more)


def test_a_tenth_is_held_out_by_default_and_never_trained_on(digits_dataset: Dataset):
    splits = digits_dataset.manifest.splits
    assert (splits["train"].count, splits["holdout"].count) == (1618, 179)
    assert not set(digits_dataset.images("train")[2]) & set(digits_dataset.images("holdout")[2])


def test_case_one_compares_with_the_set_the_subset_came_from(tmp_path: Path):
    manifest = made(tmp_path / "out", limit=100, reference="digits")
    assert manifest.reference == "reference"
    assert (manifest.splits["train"].count, manifest.splits["reference"].count) == (100, 1797)
    images, _, keys = open_dataset(tmp_path / "out").images("train")
    whole, _, names = open_dataset(tmp_path / "out").images("reference")
    np.testing.assert_array_equal(images, whole[[names.index(key) for key in keys]])
    assert made(tmp_path / "other", limit=100).reference == "train"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1700}, r"limit: 1,700 images requested, but there are 1,618"),
        ({"limit": 0}, "limit: must be at least 1"),
        ({"per_class": 200}, r"per-class: 200 images requested, but class \d has"),
        ({"per_class": 5, "limit": 5}, "exclude each other"),
        ({"holdout": 1797}, "no image is left"),
        ({"holdout": 1798}, "holdout: 1,798 images requested"),
        ({"holdout": -1}, "holdout: must be"),
        ({"holdout": 1.5}, "holdout: must be"),
        ({"size": 0}, "size: must be at least 1"),
        ({"size": 100_000}, "size: must be at most"),
        ({"reference": "nowhere"}, "nowhere: no such folder or file"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        made(tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


# --- whole or not at all


def test_a_folder_that_exists_is_left_alone(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(UserError, match="out: exists already"):
        made(tmp_path / "out")
    assert contents(tmp_path) == {"out/mine": b"precious"}


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        if done == 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("digits", tmp_path / "new" / "out", Options(classifier=False), interrupt)
    assert not any(tmp_path.iterdir())


def killed_at(out: Path, image: int) -> None:
    script = f"""if True:
        import os, signal
        from pathlib import Path
        from scrimp_trainers.data.options import Options; from scrimp_trainers.ingest import CONTACT_SHEET, prepare
        def progress(done, total):
            if done == {image}:
                os.kill(os.getpid(), signal.SIGKILL)
        prepare("digits", Path({str(out)!r}), Options(classifier=False), progress)
    """
    ended = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONPATH": "trainers"})
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("image", [1, 1200, 1797])
def test_a_kill_leaves_nothing_that_passes_for_a_dataset_and_the_next_call_clears_it(image: int, tmp_path: Path):
    killed_at(tmp_path / "out", image)
    for folder in (tmp_path / "out", tmp_path / "out.part"):
        with pytest.raises(UserError, match="not a dataset"):
            open_dataset(folder)
    made(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_dataset(tmp_path / "out").images("train")[0].shape == (1618, 1, 8, 8)


def test_two_at_once_do_not_write_to_the_same_folder(tmp_path: Path):
    def meanwhile(done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(UserError, match="another process is making it"):
                made(tmp_path / "out")

    prepare("digits", tmp_path / "out", Options(classifier=False), meanwhile)
    assert open_dataset(tmp_path / "out").images("holdout")[0].shape == (179, 1, 8, 8)


def test_a_full_disk_is_told_with_what_was_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full; about \d+ MiB are needed"):
        made(tmp_path / "out", size=64)
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out: cannot be created"):
        made(tmp_path / "file" / "out")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path):
    made(tmp_path / "out", limit=10)
    file = tmp_path / "out" / manifests.MANIFEST_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 2}))
    with pytest.raises(UserError, match=r"schema_version.*prepare the dataset again"):
        open_dataset(tmp_path / "out")


def test_progress_counts_every_image(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    prepare("digits", tmp_path / "out", Options(classifier=False), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 1797) for done in range(1, 1798)]


def test_neither_preparing_nor_refusing_needs_torch():
    script = "import sys; import scrimp_trainers.ingest; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": "trainers"})


@pytest.mark.slow
def test_fifty_thousand_images_and_their_classifier_take_at_most_two_cpu_minutes(tmp_path: Path, real_data: Path):
    source = real_data / "cifar10" / "cifar10_jpeg_train.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not here")
    with np.load(source) as content:
        data, offsets, labels = content["jpeg"].tobytes(), content["offsets"], content["labels"]
    images = [np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in itertools.pairwise(offsets)]
    rows = np.stack(images).transpose(0, 3, 1, 2).reshape(len(images), -1)
    (tmp_path / "cifar").mkdir()
    for number, first in enumerate(range(0, 50_000, 10_000), 1):
        part = {b"data": rows[first : first + 10_000], b"labels": labels[first : first + 10_000].tolist()}
        (tmp_path / "cifar" / f"data_batch_{number}").write_bytes(pickle.dumps(part, protocol=2))
    before = os.times()
    manifest = made(tmp_path / "out", str(tmp_path / "cifar"), classifier=True)
    after = os.times()
    # CPU time: on a shared machine the clock measures the neighbours, too.
    cpu_seconds = sum(after[:4]) - sum(before[:4])
    assert manifest.splits["train"].per_class == [4500] * 10
    assert manifest.classifier is not None
    assert manifest.classifier.accuracy > 0.4
    assert cpu_seconds < 120


@pytest.mark.parametrize("labels", [None, "none"])
def test_the_contact_sheet_shows_the_first_training_images_over_their_classes(labels, tmp_path: Path):
    prepare("digits", tmp_path / "digits", Options(classifier=False, limit=20, labels=labels))
    sheet = np.asarray(Image.open(tmp_path / "digits" / CONTACT_SHEET))
    images, _, _ = open_dataset(tmp_path / "digits").images("train")
    np.testing.assert_array_equal(sheet[16:166:20, 16:166:20, 0], images[0, 0])
    under = sheet[167:178, 6:166]
    assert (under < 100).any() == (labels is None)
